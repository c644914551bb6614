"""Photographs to cameras by features alone: tracks, a few starts, the map that explains most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ...matching import FEWEST, RATIO, Features, PairMatches, Tracks, detect, link, nearest_both_ways, verify
from ...records import PairPrediction, SparseScene, View
from .bundle import BundleConfig
from .doubt import pointmap_gaps, wild_gap
from .guided import guided_matches
from .mapper import Map, begin, complete, raise_best
from .problem import Marks, unplaced
from .ruler import ruler_depths
from .two_view import Couple, focal_by_essentials
from .views import diagonals, mark_sigma, reduction, to_image

VERIFY_PIXELS = 1.5
"""Distance to the epipolar line that a match may have, pixels of the photograph as features were sought in it."""
LOOSE_RATIO = 0.9
"""Ratio of the nearest to the second nearest descriptor's distance up to which known cameras may settle a match."""
DOUBTFUL = 0.4
"""Share of a pair's verified matches that must be wild for the pair to be doubted."""
USUAL_FOCALS = (0.6, 0.8, 1.25)
"""Over the diagonal: tried beside what pointmaps and fundamental matrices say."""
CLEAR = 0.5
"""Below this, fundamental matrices tell the focal length."""
SAME_FOCAL = 0.15
"""Starts closer than this in log focal lead to the same map."""
GROWTH_MARKS = 400
"""Marks per view with which maps are grown; the best one is then refined with all."""
MOST = 0.7
"""Share of its marks that every view of a map must hold, or the map is grown once more."""
FINAL = BundleConfig(free_radial=True, cauchy=4.0, depth_sigma=0.3)
"""Two pixels: the last adjustment trusts marks that grew up with the map more than single steps do. Pointmaps err by 10
to 20 %, all views alike: any surer of them, few marks take their flatness for focal length (docs/tracks.md)."""
FEWEST_VIEWS = 2


@dataclass(frozen=True)
class Matching:
    """What matching of the photographs gives."""

    features: tuple[Features, ...]
    pairs: tuple[PairMatches, ...]
    """verified matches"""
    candidates: tuple[PairMatches, ...]
    """of every pair that was compared, also more ambiguous ones, nothing verified"""


@dataclass(frozen=True)
class Evidence:
    """What the photographs say before anything is placed."""

    tracks: Tracks
    marks: Marks
    couples: tuple[Couple, ...]


@dataclass(frozen=True)
class Lenses:
    """Which views share a lens, and what is known of it."""

    group: np.ndarray
    """(V,)"""
    fixed: np.ndarray
    """(G,) focal over the diagonal where the settings fix it, else NaN"""
    guess: np.ndarray
    """(G,) focal over the diagonal that the pointmaps suggest"""


def match_views(
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]] | None = None,
    predictions: Sequence[PairPrediction] = (),
) -> Matching:
    """Features of all views and verified matches of the unordered `pairs` (default all).

    Where the pointmaps of `predictions` contradict much of a pair wildly, what they contradict is left out of it,
    and it is verified without them. Single ones stay: beside outlines pointmaps are wrong more often than matches.
    """
    features = tuple(detect(view) for view in views)
    chosen = tuple(pairs) if pairs is not None else tuple(combinations(range(len(views)), 2))
    near = [nearest_both_ways(features[first], features[second], LOOSE_RATIO) for first, second in chosen]
    loose, candidates = [matches for matches, _ in near], [matches[ratio < RATIO] for matches, ratio in near]
    found = [_verified(views, features, *ends, item) for ends, item in zip(chosen, candidates, strict=True)]
    gaps = [_gaps(views, features, predictions, pair, item) for pair, item in zip(found, candidates, strict=True)]
    matched = [gap for pair, gap in zip(found, gaps, strict=True) if len(pair.matches) >= FEWEST]
    limit = wild_gap(np.concatenate([np.zeros(0), *matched]))
    for position, pair in enumerate(found):
        wild = _gaps(views, features, predictions, pair, pair.matches) > limit
        if wild.sum() > DOUBTFUL * len(wild):
            plausible = candidates[position][~(gaps[position] > limit)]
            found[position] = _verified(views, features, pair.first, pair.second, plausible)
            loose[position] = loose[position][~(_gaps(views, features, predictions, pair, loose[position]) > limit)]
    unverified = [PairMatches(*ends, item, np.zeros((3, 3))) for ends, item in zip(chosen, loose, strict=True)]
    return Matching(features, tuple(pair for pair in found if len(pair.matches) >= FEWEST), tuple(unverified))


def _verified(
    views: Sequence[View], features: Sequence[Features], first: int, second: int, matches: np.ndarray
) -> PairMatches:
    one, two = features[first].pixels[matches[:, 0]], features[second].pixels[matches[:, 1]]
    tolerance = VERIFY_PIXELS * (reduction(views[first]) * reduction(views[second])) ** 0.5
    inliers, fundamental = verify(one, two, tolerance)
    return PairMatches(first, second, matches[inliers], fundamental)


def _gaps(
    views: Sequence[View],
    features: Sequence[Features],
    predictions: Sequence[PairPrediction],
    pair: PairMatches,
    matches: np.ndarray,
) -> np.ndarray:
    """(M,) `pointmap_gaps` of the pair's keypoints (M, 2)."""
    ends = [features[view].pixels[matches[:, side]] for side, view in enumerate((pair.first, pair.second))]
    return pointmap_gaps(views, predictions, pair.first, pair.second, ends)


def evidence(
    views: Sequence[View], features: Sequence[Features], pairs: Sequence[PairMatches], depths: Sequence[Tensor]
) -> Evidence:
    """Tracks and pair geometry in image coordinates (relative to the centre, over the diagonal).

    `depths` are the views' own depth maps, each up to a factor.
    """
    tracks = link(features, pairs)
    rulers = [ruler_depths(view, depth, item.pixels) for view, depth, item in zip(views, depths, features, strict=True)]
    of_mark = np.full(len(tracks.track), np.nan)
    for index, ruler in enumerate(rulers):
        mine = tracks.view == index
        of_mark[mine] = ruler[tracks.keypoint[mine]]
    marks = Marks(
        tracks.track, tracks.view, to_image(views, tracks.pixels, tracks.view), mark_sigma(views)[tracks.view], of_mark
    )
    return Evidence(tracks, marks, tuple(_couple(views, features, rulers, tracks, pair) for pair in pairs))


def solve_tracks(
    views: Sequence[View], matching: Matching, depths: Sequence[Tensor], lenses: Lenses
) -> SparseScene | None:
    """Cameras and points of the views that features can place; None where not even two can be placed.

    `depths` are the views' own depth maps, each up to a factor.
    """
    found = evidence(views, matching.features, matching.pairs, depths)
    best = _mapped(views, found, lenses) if found.couples else None
    if best is None:
        return None
    mine = best.rig.placed[found.marks.view]
    explained = float(best.held[mine].mean()) if mine.any() else 0.0
    richer, better = _guided(views, matching, depths, best, lenses)
    both = _record(views, richer.tracks, better), _record(views, found.tracks, best)
    # The richer one comes first, and loses only where it has lost a view.
    sparse = max((item for item in both if item is not None), key=lambda item: sum(item.placed), default=None)
    return None if sparse is None else replace(sparse, explained=explained)


def _guided(
    views: Sequence[View], matching: Matching, depths: Sequence[Tensor], state: Map, lenses: Lenses
) -> tuple[Evidence, Map]:
    """The map refined with the matches that its cameras allow; those of views that it lacks stay as they are."""
    placed = state.rig.placed
    guided = guided_matches(views, matching.features, state.rig, matching.candidates)
    others = tuple(pair for pair in matching.pairs if not placed[[pair.first, pair.second]].all())
    found = evidence(views, matching.features, guided + others, depths)
    count = found.tracks.count
    start = Map(state.rig, np.zeros((count, 3)), np.zeros(len(found.marks.track), bool))
    return found, complete(start, found.marks, found.couples, count, FINAL, _fixed(lenses))


def _mapped(views: Sequence[View], found: Evidence, lenses: Lenses) -> Map | None:
    """The map that explains most of the verified matches, of several starts."""
    count = found.tracks.count
    some = _thinned(found.marks, count, len(views))
    growth = found.marks.where(some)
    young = [
        item
        for focal in _focal_starts(found.couples, lenses)
        for item in begin(
            unplaced(lenses.group, focal, np.zeros(len(focal))), growth, found.couples, count, _fixed(lenses)
        )
    ]
    best = raise_best(young, growth, count, _fixed(lenses))
    if best is None:
        return None
    held = np.zeros(len(some), bool)
    held[np.flatnonzero(some)[best.held]] = True
    best = complete(replace(best, held=held), found.marks, found.couples, count, FINAL, _fixed(lenses))
    return _grown_again(best, found, some, _fixed(lenses))


def _grown_again(state: Map, found: Evidence, some: np.ndarray, fixed: np.ndarray) -> Map:
    """The better of a map and of one grown anew with its lenses: a view placed under a wrong focal length stays wrong.

    Left out where every view holds most of its marks.
    """
    views, count = len(state.rig.placed), found.tracks.count
    held, whole = (np.bincount(view, minlength=views) for view in (found.marks.view[state.held], found.marks.view))
    if (held >= MOST * whole).all():
        return state
    nowhere = replace(state.rig, placed=np.zeros(views, bool))
    growth = found.marks.where(some)
    other = raise_best(begin(nowhere, growth, found.couples, count, fixed), growth, count, fixed)
    if other is None:
        return state
    held = np.zeros(len(some), bool)
    held[np.flatnonzero(some)[other.held]] = True
    other = complete(replace(other, held=held), found.marks, found.couples, count, FINAL, fixed)
    return max(state, other, key=lambda item: item.score(found.marks))


def _couple(
    views: Sequence[View], features: Sequence[Features], rulers: Sequence[np.ndarray], tracks: Tracks, pair: PairMatches
) -> Couple:
    first, second = pair.first, pair.second
    ends = [
        to_image(views, features[view].pixels[pair.matches[:, side]], np.full(len(pair.matches), view))
        for side, view in enumerate((first, second))
    ]
    to_pixels = [_pixels_of_image(views[view]) for view in (first, second)]
    fundamental = to_pixels[1].T @ pair.fundamental @ to_pixels[0]
    sigma = float(mark_sigma(views)[[first, second]].mean())
    fundamental = fundamental / np.linalg.norm(fundamental)
    depths = [rulers[view][pair.matches[:, side]] for side, view in enumerate((first, second))]
    track_of, mine = np.full(len(features[first].pixels), -1), tracks.view == first
    track_of[tracks.keypoint[mine]] = tracks.track[mine]
    track = track_of[pair.matches[:, 0]]
    return Couple(first, second, ends[0], ends[1], fundamental, sigma, depths[0], depths[1], track)


def _pixels_of_image(view: View) -> np.ndarray:
    """(3, 3) homogeneous map from image coordinates to photograph pixels."""
    size = float(np.hypot(view.width, view.height))
    return np.array([[size, 0, view.width / 2], [0, size, view.height / 2], [0, 0, 1]])


def _focal_starts(couples: Sequence[Couple], lenses: Lenses) -> list[np.ndarray]:
    """Different focal lengths (G,) to start from, most trusted first."""
    told, clarity = focal_by_essentials(couples)
    values = [float(np.nanmedian(lenses.guess)), *USUAL_FOCALS]
    if clarity < CLEAR:
        values.insert(0, told)
    starts: list[float] = []
    for value in values:
        if all(abs(np.log(value / other)) > SAME_FOCAL for other in starts):
            starts.append(value)
    if not np.isnan(lenses.fixed).any():
        starts = starts[:1]
    return [np.where(np.isnan(lenses.fixed), value, lenses.fixed) for value in starts]


def _fixed(lenses: Lenses) -> np.ndarray:
    return ~np.isnan(lenses.fixed)


def _thinned(marks: Marks, count: int, views: int) -> np.ndarray:
    """(M,) marks of the longest tracks, until every view has `GROWTH_MARKS` of them."""
    length = np.bincount(marks.track, minlength=count)
    ends = np.searchsorted(marks.track, np.arange(count + 1))
    filled, chosen = np.zeros(views, int), np.zeros(count, bool)
    for track in np.argsort(-length, kind="stable"):
        mine = marks.view[ends[track] : ends[track + 1]]
        if (filled[mine] < GROWTH_MARKS).any():
            filled[mine] += 1
            chosen[track] = True
    return chosen[marks.track]


def _record(views: Sequence[View], tracks: Tracks, state: Map) -> SparseScene | None:
    rig, held = state.rig, state.held
    enough = rig.placed & (np.bincount(tracks.view[held], minlength=len(views)) > 0)
    if enough.sum() < FEWEST_VIEWS:
        return None
    poses = np.tile(np.eye(4), (len(views), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rig.rotation.transpose(0, 2, 1), rig.centre
    poses[~enough] = np.eye(4)
    used, point = np.unique(tracks.track[held], return_inverse=True)
    return SparseScene(
        placed=tuple(enough.tolist()),
        T_world_camera=torch.from_numpy(poses),
        focal=torch.from_numpy(rig.focal[rig.group] * diagonals(views)),
        radial=torch.from_numpy(rig.radial[rig.group]),
        points_world=torch.from_numpy(state.points[used]),
        mark_point=torch.from_numpy(point.ravel()),
        mark_view=torch.from_numpy(tracks.view[held]),
        mark_pixels=torch.from_numpy(tracks.pixels[held]),
    )
