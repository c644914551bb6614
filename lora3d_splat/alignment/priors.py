"""What is known of the cameras before the alignment: intrinsics and poses, fixed or soft."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.cameras import principal_point_of
from ..geometry.procrustes import Similarity, weighted_similarity
from ..geometry.transforms import so3_log
from ..records import View


@dataclass(frozen=True)
class PoseSigma:
    """How far a known pose may be from the truth (standard deviations)."""

    position: float
    """unit of the known positions"""
    rotation_deg: float
    """degrees"""

    def __post_init__(self) -> None:
        if not (self.position > 0 and self.rotation_deg > 0):
            raise InputError(
                f"a pose sigma of {self.position}, {self.rotation_deg} degrees",
                "two positive numbers: position (unit of the poses) and rotation (degrees)",
                "leave the sigma out to hold the poses fixed",
            )


@dataclass(frozen=True)
class CameraPriors:
    """One entry per view; NaN where nothing is known. World frame and unit of the poses become those of the scene."""

    focal: Tensor
    """(V,) float64, network pixels"""
    T_world_camera: Tensor
    """(V, 4, 4) float64, OpenCV axes"""
    principal_point: Tensor
    """(V, 2) float64, network pixels; the photograph's centre where nothing else is known"""
    pose_sigma: PoseSigma | None = None
    """None holds known poses fixed"""

    @property
    def fixed_pose(self) -> Tensor:
        """(V,) bool: views whose pose is known and does not move."""
        return self.posed if self.pose_sigma is None else torch.zeros_like(self.posed)

    @property
    def posed(self) -> Tensor:
        """(V,) bool: views whose pose is known."""
        return self.T_world_camera.isfinite().all(-1).all(-1)

    def of(self, members: Sequence[int]) -> CameraPriors:
        """The priors of some of the views."""
        chosen = list(members)
        return CameraPriors(
            self.focal[chosen], self.T_world_camera[chosen], self.principal_point[chosen], self.pose_sigma
        )


def no_priors(views: Sequence[View]) -> CameraPriors:
    """Nothing known but the usual: principal points in the middle of the photographs."""
    count = len(views)
    return CameraPriors(
        torch.full((count,), torch.nan, dtype=torch.float64),
        torch.full((count, 4, 4), torch.nan, dtype=torch.float64),
        torch.tensor([principal_point_of(view) for view in views], dtype=torch.float64).reshape(count, 2),
    )


def pose_pull(T_world_view: Tensor, priors: CameraPriors) -> tuple[Tensor, Tensor]:
    """Gap (V, 6) of each pose to its soft prior, translation and rotation vector in world axes, and its precision.

    Both are zero where nothing is known, and where poses are held fixed.
    """
    known = priors.posed
    gap = torch.zeros(len(T_world_view), 6, dtype=T_world_view.dtype, device=T_world_view.device)
    if priors.pose_sigma is None or not bool(known.any()):
        return gap, torch.zeros_like(gap)
    here, there = T_world_view[known], priors.T_world_camera[known]
    gap[known, :3] = here[:, :3, 3] - there[:, :3, 3]
    gap[known, 3:] = so3_log(here[:, :3, :3] @ there[:, :3, :3].transpose(1, 2))
    sigma = torch.tensor([priors.pose_sigma.position] * 3 + [math.radians(priors.pose_sigma.rotation_deg)] * 3)
    return gap, known[:, None].to(gap) / sigma.to(gap) ** 2


def frame_of_priors(T_start_view: Tensor, priors: CameraPriors) -> Similarity | None:
    """The similarity that brings a start (V, 4, 4) into the frame of the known poses; None where none is known.

    Rotations vote for the turn, centres for unit and place; with a single known pose the unit stays.
    """
    known = priors.posed
    if not bool(known.any()):
        return None
    start, true = T_start_view[known], priors.T_world_camera[known]
    left, _, right = torch.linalg.svd((true[:, :3, :3] @ start[:, :3, :3].transpose(1, 2)).sum(0))
    sign = torch.ones(3, dtype=left.dtype, device=left.device)
    sign[2] = torch.linalg.det(left @ right)
    turn = (left * sign) @ right
    centres = start[:, :3, 3] @ turn.T
    middle_start, middle_true = centres.mean(0), true[:, :3, 3].mean(0)
    arms, wanted = centres - middle_start, true[:, :3, 3] - middle_true
    # Lengths, not projections: the unit does not shrink when the start's cameras are misplaced.
    scale = wanted.norm() / arms.norm() if len(start) > 1 else torch.ones_like(middle_true[0])
    return Similarity(scale, turn, middle_true - scale * middle_start)


def frame_of_centres(centres: Tensor, known: Tensor) -> Similarity:
    """The similarity that brings camera centres (N, 3) onto known positions; raises InputError for fewer than three."""
    usable = known.isfinite().all(-1)
    if int(usable.sum()) < 3:
        raise InputError(
            f"{int(usable.sum())} registered views with a known position",
            "at least three positions that do not lie on one line",
            "give more positions, or one known distance, which sets the scale alone",
        )
    source, target = centres[usable].double(), known[usable].double()
    return weighted_similarity(source, target, torch.ones_like(source[:, 0]))
