"""Bundle adjustment: robust Levenberg-Marquardt over poses, lenses and points, the points eliminated (dense Schur).

Minimised is  sum c^2 / 2 log(1 + e^2 / c^2)  over the marks (Cauchy; e in standard deviations), the same over the
differences in log depth between the points and the views' own pointmaps, which keep views of little texture in place,
plus Gaussian priors on log focal and distortion. Triggs et al., "Bundle adjustment - a modern synthesis" (2000),
section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.spatial.transform import Rotation

from .problem import Marks, Rig, camera_points, project

POSE, LENS = 7, 2
"""Unknowns of a camera (translation, rotation vector, camera frame; log unit of its pointmap) and of a lens (log focal,
distortion)."""


@dataclass(frozen=True)
class BundleConfig:
    """How the adjustment runs."""

    steps: int = 25
    """Largest number of accepted or rejected steps."""
    tolerance: float = 1e-6
    """Relative fall of the cost below which it stops."""
    cauchy: float = 2.0
    """Error, in standard deviations, beyond which a mark loses its say."""
    free_focal: bool = True
    """Whether the focal lengths move."""
    free_radial: bool = False
    """Whether the distortions move."""
    free_poses: bool = True
    """Whether the poses move."""
    free_points: bool = True
    """Whether the points move; fixed points also fix the frame, and all poses are free."""
    focal_prior: float = 0.5
    """Standard deviation of log focal about where it starts."""
    depth_sigma: float | None = None
    """Standard deviation of a pointmap's log depth; None leaves the pointmaps out."""
    depth_cauchy: float = 2.0
    """The same as `cauchy`, for pointmaps."""
    depth_marks: float = 20.0
    """What a view's pointmap counts for at most, in independent depths: its errors hang together."""
    radial_prior: float = 0.03
    """Standard deviation of the distortion about zero: a few marks must not trade it for focal length."""


@dataclass(frozen=True)
class _Normal:
    """Normal equations at one place."""

    block: np.ndarray
    """(D, D) cameras and lenses"""
    gradient: np.ndarray
    """(D,)"""
    cross: np.ndarray
    """(D, P, 3)"""
    point_block: np.ndarray
    """(P, 3, 3)"""
    point_gradient: np.ndarray
    """(P, 3)"""


def adjust(
    rig: Rig, points: np.ndarray, marks: Marks, config: BundleConfig, fixed: np.ndarray | None = None
) -> tuple[Rig, np.ndarray]:
    """Move placed cameras, lenses and the marked points to the least cost; lenses `fixed` (G,) bool keep their focal.

    Every mark must belong to a placed camera. The first placed camera does not move,
    which fixes the frame.
    """
    active, local = np.unique(marks.track, return_inverse=True)
    local_marks = replace(marks, track=local.ravel())
    cloud, start = points[active].copy(), rig
    free = _free_columns(rig, config, fixed)
    damping = 1e-4
    cost = _cost(rig, cloud, local_marks, config, start)
    for _ in range(config.steps):
        normal = _normal_equations(rig, cloud, local_marks, config, start)
        step = _solve(normal, free, damping, config.free_points)
        if step is None:
            damping *= 10
            continue
        moved_rig, moved_cloud = _moved(rig, step[0]), cloud + step[1]
        moved = _cost(moved_rig, moved_cloud, local_marks, config, start)
        if not moved < cost:
            damping *= 8
            if damping > 1e6:
                break
            continue
        fall, cost = (cost - moved) / max(cost, 1e-30), moved
        rig, cloud, damping = moved_rig, moved_cloud, max(damping / 8, 1e-9)
        if fall < config.tolerance:
            break
    result = points.copy()
    result[active] = cloud
    return rig, result


def _free_columns(rig: Rig, config: BundleConfig, fixed: np.ndarray | None) -> np.ndarray:
    """(D,) bool: which unknowns move."""
    poses = np.repeat(rig.placed & config.free_poses, POSE).reshape(-1, POSE)
    if config.free_poses and config.free_points:
        poses[np.flatnonzero(rig.placed)[0]] = False
    poses[:, -1] = rig.placed & (config.depth_sigma is not None)
    lenses = np.tile([config.free_focal, config.free_radial], (len(rig.focal), 1))
    if fixed is not None:
        lenses[fixed, 0] = False
    used = np.isin(np.arange(len(rig.focal)), rig.group[rig.placed])
    return np.concatenate([poses.ravel(), (lenses & used[:, None]).ravel()])


def _cost(rig: Rig, cloud: np.ndarray, marks: Marks, config: BundleConfig, start: Rig) -> float:
    inside = camera_points(rig, cloud, marks)
    gap = (project(rig, inside, marks.view) - marks.image) / marks.sigma[:, None]
    squared = (gap**2).sum(1) / config.cauchy**2
    deep = np.log1p((_depth_gap(rig, inside, marks, config) / config.depth_cauchy) ** 2)
    prior = (np.log(rig.focal / start.focal) / config.focal_prior) ** 2 + (rig.radial / config.radial_prior) ** 2
    said = config.depth_cauchy**2 / 2 * (_depth_share(rig, marks, config) * deep).sum()
    return float(config.cauchy**2 / 2 * np.log1p(squared).sum() + said + prior.sum() / 2)


def _depth_gap(rig: Rig, inside: np.ndarray, marks: Marks, config: BundleConfig) -> np.ndarray:
    """(M,) by how many standard deviations points lie deeper than the pointmaps say; zero where these say nothing."""
    if config.depth_sigma is None:
        return np.zeros(len(inside))
    told = np.isfinite(marks.depth) & (inside[:, 2] > 1e-9)
    ratio = np.where(told, inside[:, 2], 1.0) / np.where(told, marks.depth, 1.0)
    return np.where(told, np.log(ratio) - rig.ruler[marks.view], 0.0) / config.depth_sigma


def _depth_share(rig: Rig, marks: Marks, config: BundleConfig) -> np.ndarray:
    """(M,) what the pointmap counts for at a mark, so that those of a view count for `depth_marks` together."""
    told = np.bincount(marks.view[np.isfinite(marks.depth)], minlength=len(rig.ruler))
    return np.minimum(config.depth_marks / told.clip(min=1), 1.0)[marks.view]


def _normal_equations(rig: Rig, cloud: np.ndarray, marks: Marks, config: BundleConfig, start: Rig) -> _Normal:
    views, lenses = len(rig.rotation), len(rig.focal)
    to_pose, to_lens, to_point, gap = _derivatives(rig, cloud, marks, config)
    # A mark's two coordinates share their weight, the depth has its own.
    weight = np.repeat(1.0 / (1.0 + (gap[:, :2] ** 2).sum(1, keepdims=True) / config.cauchy**2), 2, axis=1)
    if config.depth_sigma is not None:
        along = _depth_share(rig, marks, config) / (1.0 + (gap[:, 2] / config.depth_cauchy) ** 2)
        weight = np.c_[weight, along]
    size = POSE * views + LENS * lenses
    block, gradient = np.zeros((size, size)), np.zeros(size)
    cross = np.zeros((size, len(cloud), 3))
    point_block = _gather(np.einsum("mk,mki,mkj->mij", weight, to_point, to_point), marks.track, len(cloud))
    point_gradient = _gather(np.einsum("mk,mki,mk->mi", weight, to_point, gap), marks.track, len(cloud))
    for view in np.flatnonzero(np.bincount(marks.view, minlength=views)):
        mine = marks.view == view
        lens = POSE * views + LENS * rig.group[view]
        columns = np.r_[POSE * view : POSE * view + POSE, lens : lens + LENS]
        jacobian = np.concatenate([to_pose[mine], to_lens[mine]], axis=2)
        weighted = weight[mine, :, None] * jacobian
        block[np.ix_(columns, columns)] += np.tensordot(weighted, jacobian, axes=([0, 1], [0, 1]))
        gradient[columns] += np.tensordot(weighted, gap[mine], axes=([0, 1], [0, 1]))
        # A point has one mark per view, so plain indexing adds every one.
        cross[columns[:, None], marks.track[mine]] += np.einsum("mki,mkj->imj", weighted, to_point[mine])
    for group in range(lenses):
        focal, radial = POSE * views + LENS * group, POSE * views + LENS * group + 1
        block[focal, focal] += 1 / config.focal_prior**2
        gradient[focal] += np.log(rig.focal[group] / start.focal[group]) / config.focal_prior**2
        block[radial, radial] += 1 / config.radial_prior**2
        gradient[radial] += rig.radial[group] / config.radial_prior**2
    return _Normal(block, gradient, cross, point_block, point_gradient)


def _derivatives(rig: Rig, cloud: np.ndarray, marks: Marks, config: BundleConfig) -> tuple[np.ndarray, ...]:
    """Jacobians (M, E, 7), (M, E, 2), (M, E, 3) and errors (M, E), all in standard deviations.

    E is 2, across in both directions, or 3 with the pointmaps' depth.
    """
    rows = 2 if config.depth_sigma is None else 3
    inside = camera_points(rig, cloud, marks)
    depth = np.maximum(inside[:, 2], 1e-9)
    slopes = inside[:, :2] / depth[:, None]
    group = rig.group[marks.view]
    focal, radial = rig.focal[group], rig.radial[group]
    squared = (slopes**2).sum(1)
    stretch = 1 + radial * squared
    to_slopes = 2 * radial[:, None, None] * slopes[:, :, None] * slopes[:, None, :]
    to_slopes[:, [0, 1], [0, 1]] += stretch[:, None]
    to_slopes *= (focal / marks.sigma)[:, None, None]
    frame = np.zeros((len(slopes), 2, 3))
    frame[:, [0, 1], [0, 1]] = (1 / depth)[:, None]
    frame[:, :, 2] = -slopes / depth[:, None]
    to_inside = np.concatenate([to_slopes @ frame, np.zeros((len(slopes), 1, 3))], axis=1)
    told = np.isfinite(marks.depth) & (inside[:, 2] > 1e-9) & (config.depth_sigma is not None)
    per_depth = told / (config.depth_sigma or 1.0)
    to_inside[:, 2, 2] = per_depth / depth
    turning = np.zeros((len(slopes), 3, 3))  # minus the cross product matrix of the point
    x, y, z = inside.T
    turning[:, 0, 1], turning[:, 0, 2], turning[:, 1, 2] = z, -y, x
    turning[:, 1, 0], turning[:, 2, 0], turning[:, 2, 1] = -z, y, -x
    to_ruler = np.zeros((len(slopes), 3, 1))
    to_ruler[:, 2, 0] = -per_depth
    to_pose = np.concatenate([to_inside, to_inside @ turning, to_ruler], axis=2)
    image = (focal * stretch)[:, None] * slopes
    bend = (focal * squared)[:, None] * slopes
    to_lens = np.zeros((len(slopes), 3, 2))
    to_lens[:, :2] = np.stack([image, bend], axis=2) / marks.sigma[:, None, None]
    to_point = to_inside @ rig.rotation[marks.view]
    gap = (project(rig, inside, marks.view) - marks.image) / marks.sigma[:, None]
    gap = np.c_[gap, _depth_gap(rig, inside, marks, config)]
    return to_pose[:, :rows], to_lens[:, :rows], to_point[:, :rows], gap[:, :rows]


def _gather(values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Sum rows by index: (M, ...) -> (count, ...)."""
    flat = values.reshape(len(values), -1)
    summed = [np.bincount(index, weights=column, minlength=count) for column in flat.T]
    return np.stack(summed, axis=1).reshape(count, *values.shape[1:])


def _solve(
    normal: _Normal, free: np.ndarray, damping: float, free_points: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps of cameras and lenses (D,) and of points (P, 3); None where the system is singular."""
    if not free_points:
        normal = replace(normal, cross=np.zeros_like(normal.cross), point_gradient=np.zeros_like(normal.point_gradient))
    diagonal = np.einsum("pii->pi", normal.point_block)
    damped = normal.point_block + (damping * diagonal + 1e-12 * diagonal.max() + 1e-30)[:, :, None] * np.eye(3)
    inverse = np.linalg.inv(damped)
    cross = normal.cross[free]
    flat = cross.reshape(len(cross), -1)
    weighted = np.einsum("dpi,pij->dpj", cross, inverse).reshape(len(cross), -1)
    block = normal.block[np.ix_(free, free)]
    reduced = block + np.diag(damping * block.diagonal() + 1e-12) - weighted @ flat.T
    right = normal.gradient[free] - weighted @ normal.point_gradient.ravel()
    step = np.zeros(len(free))
    try:
        step[free] = -cho_solve(cho_factor(reduced), right) if len(right) else right
    except LinAlgError:
        return None
    back = normal.point_gradient + np.tensordot(step, normal.cross, axes=(0, 0))
    points = -np.einsum("pij,pj->pi", inverse, back)
    return (step, points) if np.isfinite(step).all() and np.isfinite(points).all() else None


def _moved(rig: Rig, step: np.ndarray) -> Rig:
    poses = step[: POSE * len(rig.rotation)].reshape(-1, POSE)
    lenses = step[POSE * len(rig.rotation) :].reshape(-1, LENS)
    turn = Rotation.from_rotvec(poses[:, 3:6]).as_matrix()
    return replace(
        rig,
        rotation=turn @ rig.rotation,
        translation=np.einsum("vij,vj->vi", turn, rig.translation) + poses[:, :3],
        focal=rig.focal * np.exp(lenses[:, 0].clip(-0.3, 0.3)),
        radial=(rig.radial + lenses[:, 1]).clip(-0.6, 0.6),
        ruler=rig.ruler + poses[:, 6],
    )
