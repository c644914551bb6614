"""`find_tracks`: what feature tracks make of the photographs of an aligned scene; nothing without texture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from ...geometry.cameras import network_to_photograph_focal
from ...records import AlignedScene, PairPrediction, SparseScene, View
from ..config import AlignmentConfig
from .ruler import own_depth
from .solve import Lenses, match_views, solve_tracks
from .views import diagonals

TrackMode = Literal["auto", "on", "off"]
ALL_PAIRS_UP_TO = 24
"""Up to this many views, features of all pairs are compared; beyond, those of the scene graph."""
CONVINCING_POINTS = 25
"""Points per placed view that a map needs to be believed unasked: on repeated texture fewer agree by accident."""
CONVINCING_SHARE = 0.5
"""Views that it must place, per view of the alignment: two views alone tell neither focal length nor scale."""


CONVINCING_EXPLAINED = 0.8
"""Share of the verified marks that the map must explain: repeated texture matches by the hundred, but not as one."""


def find_tracks(
    views: Sequence[View],
    scene: AlignedScene,
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig,
    mode: TrackMode = "auto",
) -> SparseScene | None:
    """Cameras and points by features alone, in a frame of their own; `scene` only suggests the
    focal length, and pointmaps how far apart views are that share no point.

    None where `mode` is off, where two views cannot be placed, and in the mode auto where the map has too few points or
    views, or contradicts too many marks, to be believed: then the pointmap alignment stands as it is.
    """
    if mode == "off":
        return None
    graph = {(min(ends), max(ends)) for ends in ((item.pair.reference, item.pair.other) for item in predictions)}
    chosen = combinations(range(len(views)), 2) if len(views) <= ALL_PAIRS_UP_TO else sorted(graph)
    matching = match_views(views, tuple(chosen), predictions)
    depths = [own_depth(scene, predictions, index) for index in range(len(views))]
    sparse = solve_tracks(views, matching, depths, lenses(views, scene, config))
    return sparse if mode == "on" or sparse is None or _convincing(sparse, scene) else None


def lenses(views: Sequence[View], scene: AlignedScene, config: AlignmentConfig) -> Lenses:
    """Who shares a lens under the focal setting, what is fixed, and what EXIF or else the pointmaps suggest."""
    size = diagonals(views)
    hints = np.array([view.focal_hint or np.nan for view in views]) / size
    seen = np.array([network_to_photograph_focal(float(f), v.affine) for f, v in zip(scene.focal, views, strict=True)])
    guess = np.where(
        np.isnan(hints), np.nanmedian(hints) if (~np.isnan(hints)).any() else np.median(seen / size), hints
    )
    fixed = np.full(len(views), np.nan)
    group = np.zeros(len(views), int)
    if config.focal == "exif":
        fixed = hints
        group = np.where(np.isnan(hints), 0, np.arange(len(views)) + 1)
    elif config.focal == "per-camera":
        cameras = [(view.camera, *sorted((view.width, view.height))) for view in views]
        group = np.array([cameras.index(camera) for camera in cameras])
    elif config.focal == "per-view":
        group = np.arange(len(views))
    elif config.fixed_focal is not None:
        fixed = config.fixed_focal / size
        group = np.unique(size, return_inverse=True)[1].ravel()
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    return Lenses(
        group.ravel(), fixed[first], np.array([np.median(guess[group.ravel() == k]) for k in range(len(first))])
    )


def _convincing(sparse: SparseScene, scene: AlignedScene) -> bool:
    """Whether the map agrees with its marks, has points enough, and views enough to overrule the alignment."""
    enough_views = sum(sparse.placed) >= CONVINCING_SHARE * sum(scene.registered)
    enough_points = len(sparse.points_world) >= CONVINCING_POINTS * sum(sparse.placed)
    return enough_views and enough_points and sparse.explained >= CONVINCING_EXPLAINED
