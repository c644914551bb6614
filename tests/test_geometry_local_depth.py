"""Places move to where their matches meet, unless the matches are wrong or there is no parallax."""

from dataclasses import replace

import pytest
import torch

from lora3d_splat.geometry.local_depth import LOCAL, local_change
from lora3d_splat.geometry.relative_pose import RelativePose, Sightings
from lora3d_splat.geometry.transforms import so3_exp

GRID = (18, 24)


def sight(
    turn: float, bump: torch.Tensor, noise: float = 0.0005, inverse: bool = True
) -> tuple[RelativePose, Sightings]:
    """A pose, and a wall at distance 2 whose log-depths (N,) are off by `bump`, seen where it truly is."""
    torch.manual_seed(0)
    R = so3_exp(torch.deg2rad(torch.tensor([0.0, turn, 0.0])))
    middle = torch.tensor([0.0, 0.0, 2.0])
    t = middle - R @ middle
    v, u = torch.meshgrid(torch.linspace(-0.4, 0.4, GRID[0]), torch.linspace(-0.5, 0.5, GRID[1]), indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1)
    own = 2 * rays
    Y = (own - t) @ R if inverse else own @ R.T + t
    seen = Y[:, :2] / Y[:, 2:] + noise * torch.randn(len(rays), 2)
    ones = torch.ones(1, len(rays))
    pose = RelativePose(R[None], t[None], torch.zeros(1), torch.zeros(1))
    return pose, Sightings(rays[None], 2 * bump.exp()[None] * ones, seen[None], 0.001 * ones, ones)


def bump() -> torch.Tensor:
    """A block a tenth too near, in the middle of nothing."""
    field = torch.zeros(GRID)
    field[6:12, 8:16] = -0.1
    return field.flatten()


@pytest.mark.parametrize("inverse", [True, False])
def test_a_place_that_is_too_near_moves_back(inverse: bool) -> None:
    pose, side = sight(20.0, bump(), inverse=inverse)
    left = (bump() + local_change(pose, side, inverse, GRID)[0]).unflatten(0, GRID)
    assert left[8:10, 10:14].abs().max() < 0.02
    assert left[1:4, 2:5].abs().max() < 0.02


def test_wrong_matches_move_nothing() -> None:
    pose, side = sight(20.0, torch.zeros(GRID[0] * GRID[1]))
    wrong = replace(side, seen=side.seen + torch.tensor([0.15, 0.1]) * (torch.arange(432) % 3 == 0)[:, None])
    assert local_change(pose, wrong, True, GRID).abs().max() < 0.05


def test_without_parallax_depths_stay() -> None:
    pose, side = sight(0.05, bump(), noise=0.003)
    assert local_change(pose, side, True, GRID).abs().max() < 0.1 * LOCAL


def test_without_weight_nothing_moves() -> None:
    pose, side = sight(20.0, bump())
    assert (local_change(pose, replace(side, weight=torch.zeros_like(side.weight)), True, GRID) == 0).all()
