"""What each alignment of a calibration is remembered by: coarse maps, residuals of pixels and pairs, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.alignment.judge import scene_median_depth, world_points
from lora3d_splat.alignment.observations import sample_grid
from lora3d_splat.confidence import reliability_curve
from lora3d_splat.geometry.procrustes import Similarity, robust_similarity
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import similarity, transform_points
from lora3d_splat.records import AlignedScene, CalibratedConfidence, CalibrationPass, PairPrediction, Reliability, View

GRID_LONG_SIDE = 128
"""Longest side of a view's grid: a dozen views make some 100,000 points, as many as a browser turns with ease."""
RESIDUAL_EDGES = torch.logspace(-3, 0, 31)
"""Edges of the bins of `residual_share`: 0.1 % to 100 % of the median depth."""
RELIABILITY_SAMPLES = 800
"""Pixels per view and pair that reliability is judged by."""


@dataclass(frozen=True)
class PassPoints:
    """The points of a pass with everything they can be coloured by; world frame of the calibration's scene."""

    points_world: np.ndarray
    """(N, 3) float32"""
    rgb: np.ndarray
    """(N, 3) uint8"""
    confidence: np.ndarray
    """(N,) float32 the network's log-confidence"""
    calibrated: np.ndarray
    """(N,) float32"""
    residual: np.ndarray
    """(N,) float32 fraction of the median depth"""

    def chosen(self, mask: np.ndarray) -> PassPoints:
        """The points of a mask (N,) or of indices."""
        return PassPoints(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def summarise(
    name: str,
    views: Sequence[View],
    scene: AlignedScene,
    confidence: CalibratedConfidence,
    predictions: Sequence[PairPrediction],
    reliability: Reliability | None,
) -> CalibrationPass:
    """A pass in its own world frame; `predictions` hold at least those of `scene.pairs`."""
    step = max(1, -(-max(max(view.size) for view in views) // GRID_LONG_SIDE))
    unit = scene_median_depth(scene)
    targets = {v: world_points(scene, v)[_grid(step)] for v, placed in enumerate(scene.registered) if placed}
    total = {v: torch.zeros(points.shape[:2]) for v, points in targets.items()}
    seen = dict.fromkeys(targets, 0)
    medians, share = [], torch.zeros(len(RESIDUAL_EDGES) - 1)
    by_pair = {item.pair: item for item in predictions}
    for position, pair in enumerate(scene.pairs):
        frame = similarity(
            scene.pair_scale[position], scene.T_world_pair[position, :3, :3], scene.T_world_pair[position, :3, 3]
        )
        item, gaps = by_pair[pair], []
        for view, cloud in ((pair.reference, item.points_reference), (pair.other, item.points_other)):
            points = transform_points(frame.float(), cloud[_grid(step)].reshape(-1, 3).float())
            gap = (points.view_as(targets[view]) - targets[view]).norm(dim=-1) / unit
            total[view] += gap
            seen[view] += 1
            gaps.append(gap.flatten())
        both = torch.cat(gaps)
        medians.append(both.median())
        share += torch.histogram(both.clamp(RESIDUAL_EDGES[0], RESIDUAL_EDGES[-1]), RESIDUAL_EDGES).hist
    nothing = [torch.zeros(depth[_grid(step)].shape) for depth in scene.depth]
    return CalibrationPass(
        name=name,
        registered=scene.registered,
        T_world_camera=scene.T_world_camera,
        focal=scene.focal,
        principal_point=scene.principal_point,
        step=step,
        depth=tuple(depth[_grid(step)].float() for depth in scene.depth),
        confidence=tuple(values[_grid(step)].half() for values in confidence.view_raw_confidence),
        calibrated=tuple(values[_grid(step)].half() for values in confidence.view_confidence),
        residual=tuple(
            (total[v] / seen[v] if seen.get(v) else empty).clamp_max(1e4).half() for v, empty in enumerate(nothing)
        ),
        pairs=scene.pairs,
        pair_residual=torch.stack(medians) if medians else torch.zeros(0),
        residual_share=share / share.sum().clamp_min(1),
        reliability=reliability,
    )


def judge_reliability(
    scene: AlignedScene, confidence: CalibratedConfidence, predictions: Sequence[PairPrediction], unseen: bool
) -> Reliability | None:
    """Errors of predictions over the confidences of the pixels they hit.

    Each prediction gets its own best similarity, as in `pair_residual`; None without a pair of registered views.
    """
    usable = [p for p in predictions if scene.registered[p.pair.reference] and scene.registered[p.pair.other]]
    if not usable:
        return None
    unit = scene_median_depth(scene)
    worlds = {v: world_points(scene, v) for p in usable for v in (p.pair.reference, p.pair.other)}
    errors, raw, calibrated = [], [], []
    for item in usable:
        sides = ((item.pair.reference, item.points_reference), (item.pair.other, item.points_other))
        grids = [(v, cloud, sample_grid((cloud.shape[0], cloud.shape[1]), RELIABILITY_SAMPLES)) for v, cloud in sides]
        source = torch.cat([cloud.reshape(-1, 3)[grid] for _, cloud, grid in grids]).double()
        target = torch.cat([worlds[v].reshape(-1, 3)[grid] for v, _, grid in grids]).double()
        errors.append(robust_similarity(source, target, torch.ones(len(source)).double(), 0.05 * unit)[1] / unit)
        raw += [confidence.view_raw_confidence[v].flatten()[grid] for v, _, grid in grids]
        calibrated += [confidence.view_confidence[v].flatten()[grid] for v, _, grid in grids]
    error = torch.cat(errors).float()
    before = reliability_curve(torch.cat(raw).float(), error)
    after = reliability_curve(torch.cat(calibrated).float(), error)
    return Reliability(unseen, before.confidence, before.error, after.confidence, after.error)


def in_frame_of(moving: CalibrationPass, kept: CalibrationPass) -> CalibrationPass:
    """The same pass in the world frame of another, registered by the pixels that both have placed."""
    if moving is kept:
        return kept
    shared = [v for v in range(len(kept.depth)) if kept.registered[v] and moving.registered[v]]
    if not shared:
        return moving
    source, target = (torch.cat([grid_points(each, v).reshape(-1, 3) for v in shared]) for each in (moving, kept))
    trust = torch.cat([torch.minimum(moving.calibrated[v], kept.calibrated[v]).flatten() for v in shared]).double()
    every = len(source) // 20_000 + 1
    unit = float(torch.cat([kept.depth[v].flatten() for v in shared]).median())
    fit, _ = robust_similarity(source[::every], target[::every], trust[::every], 0.02 * unit)
    return _moved(moving, fit)


def grid_points(each: CalibrationPass, view: int) -> Tensor:
    """(h, w, 3) float64 world points of a view's grid."""
    grid_focal, grid_centre = each.focal[view] / each.step, _grid_centre(each.principal_point[view], each.step)
    points = unproject(each.depth[view].double(), grid_focal, grid_centre)
    return transform_points(each.T_world_camera[view], points.flatten(0, 1)).view_as(points)


def pass_points(each: CalibrationPass, views: Sequence[View], limit: int | None = None) -> PassPoints:
    """All points of the registered views, thinned evenly to at most `limit`."""
    parts = []
    for index, view in enumerate(views):
        if not each.registered[index]:
            continue
        maps = (each.confidence[index], each.calibrated[index], each.residual[index])
        part = PassPoints(
            grid_points(each, index).reshape(-1, 3).float().numpy(),
            np.ascontiguousarray(view.image[_grid(each.step)]).reshape(-1, 3),
            *(values.flatten().float().numpy() for values in maps),
        )
        parts.append(part.chosen(each.depth[index].flatten().numpy() > 0))
    whole = PassPoints(*(np.concatenate([getattr(p, n) for p in parts]) for n in PassPoints.__dataclass_fields__))
    count = len(whole.points_world)
    if limit is None or count <= limit:
        return whole
    # A shuffled order: an even stride over rows of pixels would leave lines.
    return whole.chosen(np.sort(np.random.default_rng(0).permutation(count)[:limit]))


def _grid(step: int) -> tuple[slice, slice]:
    return slice(step // 2, None, step), slice(step // 2, None, step)


def _grid_centre(principal_point: Tensor, step: int) -> Tensor:
    """The principal point in grid pixels, whose centres are those of every `step`-th network pixel."""
    return (principal_point - (step // 2 + 0.5)) / step + 0.5


def _moved(each: CalibrationPass, fit: Similarity) -> CalibrationPass:
    poses = each.T_world_camera.clone()
    poses[:, :3, :3] = fit.rotation @ poses[:, :3, :3]
    poses[:, :3, 3] = fit.apply(poses[:, :3, 3])
    poses[[not placed for placed in each.registered]] = torch.eye(4, dtype=poses.dtype)
    return replace(each, T_world_camera=poses, depth=tuple(depth * float(fit.scale) for depth in each.depth))
