"""Camera errors against ground truth; a scene has its own unit and frame, so each docstring says what is fitted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.procrustes import align_trajectories
from ..geometry.transforms import invert_rigid, rotation_angle_deg


def ate_rmse(estimated_centres: Tensor, true_centres: Tensor) -> float:
    """Absolute trajectory error: root mean square distance of camera centres (N, 3) after a Sim(3) fit (Umeyama).

    In the unit of `true_centres`. Divide by the extent of the true centres to compare scenes. Needs N >= 3.
    """
    if len(estimated_centres) != len(true_centres) or len(true_centres) < 3:
        raise InputError(
            f"{len(estimated_centres)} estimated and {len(true_centres)} true camera centres",
            "as many of one as of the other, at least three",
            "score the registered views only, and skip trajectories of two",
        )
    fit = align_trajectories(estimated_centres, true_centres)
    gaps = fit.apply(estimated_centres.double()) - true_centres.double()
    return float(gaps.square().sum(-1).mean().sqrt())


def relative_rotation_error_deg(estimated_T_world_camera: Tensor, true_T_world_camera: Tensor) -> Tensor:
    """(N * (N - 1) / 2,) angle in degrees between estimated and true relative rotations of every view pair; no fit."""
    estimated, true = _relative(estimated_T_world_camera), _relative(true_T_world_camera)
    return rotation_angle_deg(estimated[:, :3, :3], true[:, :3, :3])


def relative_translation_direction_error_deg(estimated_T_world_camera: Tensor, true_T_world_camera: Tensor) -> Tensor:
    """(N * (N - 1) / 2,) angle in degrees between estimated and true baselines of every view pair, in its first camera.

    Free of scale; 180 where the estimate points backwards, NaN where a baseline is zero.
    """
    estimated = _relative(estimated_T_world_camera)[:, :3, 3]
    true = _relative(true_T_world_camera)[:, :3, 3]
    # atan2 of cross and dot keeps small angles exact, where arccos does not.
    angle = torch.atan2(torch.linalg.cross(estimated, true).norm(dim=-1), (estimated * true).sum(-1))
    zero = (estimated.norm(dim=-1) == 0) | (true.norm(dim=-1) == 0)
    return torch.rad2deg(angle).masked_fill(zero, torch.nan)


def focal_error(estimated: Tensor, true: Tensor) -> tuple[float, float]:
    """Mean absolute focal error, relative to the true focal and in the pixels of the inputs (N,)."""
    gap = (estimated.double() - true.double()).abs()
    return float((gap / true.double()).mean()), float(gap.mean())


def _relative(T_world_camera: Tensor) -> Tensor:
    """(M, 4, 4) T_first_second of every pair first < second."""
    first, second = torch.triu_indices(len(T_world_camera), len(T_world_camera), offset=1)
    T_world_camera = T_world_camera.double()
    return invert_rigid(T_world_camera[first]) @ T_world_camera[second]
