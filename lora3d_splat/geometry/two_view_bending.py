"""Two-view adjustment: relative pose and rough depths together, from soft matches.

Rough depths err together: a wall leans, a floor sags. A pose that is found with such depths held fixed leans as well.
So both views' log-depths may bend by smooth fields while the pose is found; what single depths err beyond that counts
as in `relative_pose`. Matches err together too, by a fraction of a pixel, and where the parallax is no more than that
they must not bend anything: the fields are held the tighter the less parallax there is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .relative_pose import (
    Prior,
    RelativePose,
    Sightings,
    kept,
    limited_step,
    normal_equations,
    prior_equations,
    whitened,
)

BEND = 0.15
"""standard deviation of the log-depth that each term of a field adds at the border of the picture"""
COMMON = 0.004
"""error that all matches may share, z = 1"""
TERMS = 5
"""of a field"""
FARTHEST = 1.0
"""largest coefficient of a field"""
MOST_PARALLAX = 0.5
"""of one match, z = 1, in the mean over all"""
BLUR = 0.01
"""added to the standard deviation of places in the first round; then it halves"""


class Bending(NamedTuple):
    """A relative pose, and by what field the log-depths of either view change."""

    pose: RelativePose
    fields: tuple[Tensor, Tensor]
    """(B, TERMS) coefficients of `terms`"""


def terms(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, TERMS): x, y, x^2, xy, y^2 at the middles of a grid, whose borders are at -1 and 1."""
    y = ((2 * torch.arange(rows, device=device) + 1) / rows - 1)[:, None].expand(-1, columns)
    x = ((2 * torch.arange(columns, device=device) + 1) / columns - 1).expand(rows, -1)
    return torch.stack([x, y, x * x, x * y, y * y], dim=-1).flatten(0, 1)


@torch.no_grad()
def bending(
    pose: RelativePose,
    first: Sightings,
    second: Sightings,
    grids: tuple[tuple[int, int], tuple[int, int]],
    prior: Prior,
    rounds: int = 12,
) -> Bending:
    """The pose and the fields of least robust cost near `pose`, for sightings at the cells of `grids`. Float32."""
    bases = [terms(*grid, first.depth.device) for grid in grids]
    fields = [torch.zeros_like(first.depth[:, :TERMS]) for _ in bases]
    ends = (range(7, 7 + TERMS), range(7 + TERMS, 7 + 2 * TERMS))
    unknowns = [torch.tensor([*range(7), *end], device=first.depth.device) for end in ends]
    for round_ in range(rounds):
        blur = BLUR * 2.0**-round_ if round_ < rounds - 2 else 0.0
        H, g = _padded(*prior_equations(pose, first, prior))
        weight, parallax = torch.zeros_like(g[:, 0]), torch.zeros_like(g[:, 0])
        for side, (seen, basis) in enumerate(zip((first, second), bases, strict=True)):
            bent = replace(seen, depth=seen.depth * (fields[side] @ basis.T).exp())
            sight = whitened(pose, bent.blurred(blur), side == 0, prior.depth)
            weights = seen.weight * kept(sight.residuals)
            by_fields = sight.by_depth[..., None] * basis[:, None]
            J = torch.cat([sight.by_pose, by_fields], dim=-1)
            more_H, more_g = normal_equations(sight.residuals, J, weights)
            rows = unknowns[side]
            H[:, rows[:, None], rows] += more_H
            g[:, rows] += more_g
            moves = sight.parallax.clamp(max=MOST_PARALLAX)
            weight, parallax = weight + weights.sum(1), parallax + (weights * moves).sum(1)
        hold = _overcounted(H, parallax / weight.clamp(min=1e-9))[:, None] * BEND**-2
        H.diagonal(dim1=1, dim2=2)[:, 7:] += hold
        g[:, 7:] += hold * torch.cat(fields, dim=1)
        step = limited_step(H, g, 1e-5)
        pose = pose.moved(step[:, :7])
        changes = step[:, 7:].split(TERMS, dim=1)
        fields = [(each + change).clamp(-FARTHEST, FARTHEST) for each, change in zip(fields, changes, strict=True)]
    return Bending(pose, (fields[0], fields[1]))


def _padded(H: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """With room for both fields."""
    return F.pad(H, (0, 2 * TERMS, 0, 2 * TERMS)), F.pad(g, (0, 2 * TERMS))


def _overcounted(H: Tensor, parallax: Tensor) -> Tensor:
    """How many times (B,) as much as they know the matches seem to say of what bends a picture.

    As many as they are, they know a coefficient no better than their common error over the parallax (B,).
    """
    told = H.diagonal(dim1=1, dim2=2)[:, 7:].mean(1)
    return (told * (COMMON / parallax.clamp(min=1e-9)) ** 2).clamp(min=1)
