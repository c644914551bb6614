"""Resection: where a camera of unknown focal length stands, from the points that its pixels see, in another frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .relative_pose import NEAREST, limited_step, normal_equations
from .transforms import skew, so3_exp

OUTLIER = 0.05
"""image distance, z = 1, at which a point keeps a quarter of its weight (Geman-McClure)"""


class Resection(NamedTuple):
    """X = rotation X_camera + translation."""

    rotation: Tensor
    """(B, 3, 3)"""
    translation: Tensor
    """(B, 3)"""
    focal: Tensor
    """(B,) relative to the assumed one"""


@torch.no_grad()
def resect(
    points: Tensor, places: Tensor, weights: Tensor, start: tuple[Tensor, Tensor], focal_sigma: float, rounds: int = 6
) -> Resection:
    """Robust least squares of the reprojection error, by Gauss-Newton.

    `points` (B, N, 3), `places` (N, 2) where they are seen at z = 1 for the assumed focal length,
    `weights` (B, N) >= 0, `start` rotation (B, 3, 3) and translation (B, 3), `focal_sigma` how far
    the focal length may be from the assumed one, log. Float32.
    """
    rotation, translation = start
    log_focal = torch.zeros_like(translation[:, 0])
    weights = weights / weights.mean(1, keepdim=True).clamp(min=1e-9)
    for _ in range(rounds):
        arm = points - translation[:, None]
        Y = arm @ rotation
        Z, focal = Y[..., 2:].clamp(min=NEAREST), log_focal.exp()[:, None, None]
        image = focal * Y[..., :2] / Z
        by_turn = rotation.transpose(1, 2)[:, None] @ skew(arm)
        changes = torch.cat([by_turn, -rotation.transpose(1, 2)[:, None].expand_as(by_turn)], dim=-1)
        J = (focal[..., None] * changes[..., :2, :] - image[..., None] * changes[..., 2:, :]) / Z[..., None]
        J = torch.cat([J, image[..., None]], dim=-1)
        r, J = (image - places) / OUTLIER, J / OUTLIER
        H, g = normal_equations(r, J, weights / (1 + r.square().sum(-1)) ** 2)
        H[:, 6, 6] += focal_sigma**-2  # a flat thing says nothing of the focal length
        g[:, 6] += log_focal * focal_sigma**-2
        step = limited_step(H, g, 1e-6)
        rotation, translation = so3_exp(step[:, :3]) @ rotation, translation + step[:, 3:6]
        log_focal = log_focal + step[:, 6]
    return Resection(rotation, translation, log_focal.exp())
