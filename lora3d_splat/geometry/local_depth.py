"""Depths of single places from their matches, once the pose of a pair is known.

Along the epipolar line a match says how deep its place is, to within the match's own error over the parallax. One match
says little; it and its neighbours, which err alike and so count as one, say more. The pose errs as well, by what all
matches share; so where there is hardly any parallax the depth stays what it was.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .relative_pose import RelativePose, Sightings, kept, whitened
from .two_view_bending import COMMON, MOST_PARALLAX

LOCAL = 0.2
"""standard deviation of the log-depth of a place, beyond what is smooth over the picture"""
FARTHEST = 3.0
"""standard deviations from which on a change is taken for a wrong match"""
ALIKE = 0.003
"""standard deviation of the error that neighbouring matches share, z = 1"""
REACH = 1
"""cells to each side that have a say"""


@torch.no_grad()
def local_change(pose: RelativePose, side: Sightings, inverse: bool, grid: tuple[int, int], rounds: int = 2) -> Tensor:
    """(B, N) change of log-depth at the cells of `grid`. `inverse` as in `whitened`; float32."""
    change = torch.zeros_like(side.depth)
    for _ in range(rounds):
        moved = replace(side, depth=side.depth * change.exp())
        change = _told(pose, moved, inverse, grid, change)
    return change


def _told(pose: RelativePose, side: Sightings, inverse: bool, grid: tuple[int, int], before: Tensor) -> Tensor:
    """The change (B, N) of a side whose depths have changed by `before`, its matches' and its neighbours' mean."""
    sight = whitened(pose, side.blurred(ALIKE), inverse, 0.0)
    told = sight.by_depth.square().sum(-1)
    parallax = (side.weight * sight.parallax.clamp(max=MOST_PARALLAX)).sum(1) / side.weight.sum(1).clamp(min=1e-9)
    step = -(sight.by_depth * sight.residuals).sum(-1) / told.clamp(min=1e-9)
    across = sight.residuals + sight.by_depth * step[..., None]
    change = before + step
    told = 1 / (1 / told.clamp(min=1e-9) + (COMMON / parallax.clamp(min=1e-9))[:, None] ** 2)
    weight = side.weight * told * kept(across) * (1 + (change / (FARTHEST * LOCAL)) ** 2) ** -2
    both = torch.stack([weight * change, weight], dim=1).unflatten(2, grid)
    means = F.avg_pool2d(F.pad(both, [REACH] * 4), 2 * REACH + 1, 1).flatten(2)
    return means[:, 0] / (means[:, 1] + LOCAL**-2)
