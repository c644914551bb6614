"""Tracks: keypoints of several views that show one point, from pairwise matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .features import Features
from .pairs import PairMatches


@dataclass(frozen=True)
class Tracks:
    """M observations of T tracks, ordered by track; every track has at most one observation per view."""

    track: np.ndarray
    """(M,) 0 to T - 1"""
    view: np.ndarray
    """(M,)"""
    pixels: np.ndarray
    """(M, 2) photograph pixels"""
    size: np.ndarray
    """(M,) keypoint diameter, photograph pixels"""
    keypoint: np.ndarray
    """(M,) index among the view's features"""

    @property
    def count(self) -> int:
        """T"""
        return int(self.track[-1]) + 1 if len(self.track) else 0


def link(features: Sequence[Features], pairs: Sequence[PairMatches]) -> Tracks:
    """Connected components of the matches; views in which a component has two places drop out of it.

    Keypoints at one place with several orientations count as one.
    """
    offsets = np.cumsum([0, *(len(item.pixels) for item in features)])
    place = np.concatenate([_places(item.pixels) + offset for item, offset in zip(features, offsets, strict=False)])
    edges = [item.matches + offsets[[item.first, item.second]] for item in pairs]
    nodes = place[np.concatenate([np.zeros((0, 2), np.int64), *edges])]
    graph = coo_matrix((np.ones(len(nodes)), (nodes[:, 0], nodes[:, 1])), shape=(offsets[-1],) * 2)
    label = connected_components(graph, directed=False)[1]
    members = np.unique(nodes)
    view = np.searchsorted(offsets, members, side="right") - 1
    return _consistent(label[members], view, members, features, offsets)


def _places(pixels: np.ndarray) -> np.ndarray:
    """(N,) the first keypoint at each keypoint's place."""
    _, first, inverse = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    return first[inverse.ravel()]


def _consistent(
    label: np.ndarray, view: np.ndarray, members: np.ndarray, features: Sequence[Features], offsets: np.ndarray
) -> Tracks:
    """Drop views that a component enters twice, then components of fewer than two views."""
    key = label.astype(np.int64) * len(features) + view
    _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
    single = counts[inverse] == 1
    label, view, members = label[single], view[single], members[single]
    _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    long_enough = counts[inverse] >= 2
    label, view, members = label[long_enough], view[long_enough], members[long_enough]
    order = np.lexsort((view, label))
    label, view, members = label[order], view[order], members[order]
    _, track = np.unique(label, return_inverse=True)
    pixels = np.concatenate([item.pixels for item in features])[members]
    size = np.concatenate([item.size for item in features])[members]
    return Tracks(track.ravel(), view, pixels, size, members - offsets[view])
