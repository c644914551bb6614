"""Depths of two views from soft matches, once their relative pose is known: least squares along every ray.

The rough depth and the match are weighed by how well either is known, so what has no parallax, no match, or one that
lies off its epipolar line, keeps its depth (Hartley and Zisserman 2004, ch. 12).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .relative_pose import NEAREST, OUTLIER, RelativePose, Sightings

LONGEST_STEP = 0.4
"""of a log depth, per round"""


@torch.no_grad()
def matched_depths(
    pose: RelativePose, first: Sightings, second: Sightings, depth_sigma: float, rounds: int = 4
) -> tuple[Tensor, Tensor]:
    """The z-depths (B, N) and (B, M) of both views in their own units.

    `depth_sigma` is the relative error of the depths that the sightings come with.
    """
    turn, scale = pose.rotation.transpose(1, 2), pose.log_scale.exp()[:, None]
    back = -(turn @ pose.translation[..., None])[..., 0]
    return (
        _along_rays(first, first.rays @ pose.rotation, back, depth_sigma, rounds),
        _along_rays(second, second.rays @ turn, pose.translation / scale, depth_sigma, rounds),
    )


def _along_rays(side: Sightings, rays: Tensor, shift: Tensor, depth_sigma: float, rounds: int) -> Tensor:
    """The same of one view, whose rays (B, N, 3) are turned into the other camera, and start at `shift` (B, 3)."""
    start = side.depth.log()
    log_depth = start
    for _ in range(rounds):
        Y = log_depth.exp()[..., None] * rays + shift[:, None]
        Z = Y[..., 2:].clamp(min=NEAREST)
        image = Y[..., :2] / Z
        slope = (Y - shift[:, None])[..., :2] / Z - image * (Y - shift[:, None])[..., 2:] / Z
        off = (image - side.seen) / side.sigma[..., None]
        slope = slope / side.sigma[..., None]
        length = slope.square().sum(-1).clamp(min=1e-12)
        ahead = (off * slope).sum(-1)
        across = (off.square().sum(-1) - ahead.square() / length).clamp(min=0)
        weight = side.weight / (1 + (across + ahead.square() / (length * (1 + depth_sigma**2 * length))) / OUTLIER) ** 2
        step = (weight * ahead + (log_depth - start) / depth_sigma**2) / (weight * length + depth_sigma**-2)
        log_depth = log_depth - step.clamp(-LONGEST_STEP, LONGEST_STEP)
    return log_depth.exp()
