"""Pose and leaning depths together: exact where there is parallax, unbent where there is hardly any."""

from dataclasses import replace

import pytest
import torch

from lora3d_splat.geometry.relative_pose import Prior, Sightings, relative_pose
from lora3d_splat.geometry.transforms import rotation_angle_deg, so3_exp
from lora3d_splat.geometry.two_view_bending import TERMS, bending, terms

GRID = (18, 24)
PRIOR = Prior(0.3, 0.02)


def sight(turn: float, lean: torch.Tensor, noise: float = 0.001, outliers: float = 0.0, seed: int = 0):
    """Two views walking around a cloud at distance 2, the first one's depths bent by `lean` (TERMS,).

    Their sightings, the true rotation, and the true depths of the first one.
    """
    torch.manual_seed(seed)
    R = so3_exp(torch.deg2rad(torch.tensor([0.2 * turn, turn, 0.1 * turn])))
    middle = torch.tensor([0.0, 0.0, 2.0])
    t = middle - R @ middle
    places = terms(*GRID, torch.device("cpu"))[:, :2] * torch.tensor([0.5, 0.375])
    rays, sides, depths = torch.cat([places, torch.ones(len(places), 1)], dim=1), [], []
    for view in range(2):
        depth = 1.6 + 0.8 * torch.rand(len(rays))
        own = rays * depth[:, None]
        Y = own @ R.T + t if view else (own - t) @ R
        seen = Y[:, :2] / Y[:, 2:] + noise * torch.randn(len(rays), 2)
        wrong = torch.rand(len(rays)) < outliers
        seen[wrong] = torch.rand(int(wrong.sum()), 2) - 0.5
        known = depth if view else depth * (terms(*GRID, depth.device) @ lean).exp()
        sigma = torch.full((1, len(rays)), max(noise, 1e-3))
        sides.append(Sightings(rays[None], known[None], seen[None], sigma, torch.ones(1, len(rays))))
        depths.append(depth)
    return sides, R, depths[0]


LEANING = torch.tensor([0.12, -0.1, 0.0, 0.08, 0.0])


@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_depths_that_lean_are_put_upright(outliers):
    sides, R, true = sight(25.0, LEANING, outliers=outliers)
    found = bending(relative_pose(*sides, PRIOR), *sides, (GRID, GRID), PRIOR)
    assert rotation_angle_deg(found.pose.rotation[0], R) < 0.2
    bent = sides[0].depth[0] * (terms(*GRID, true.device) @ found.fields[0][0]).exp()
    for depth, bounds in ((sides[0].depth[0], (0.04, 1.0)), (bent, (0.0, 0.015))):
        ratio = depth / true
        error = (ratio / ratio.median()).log().abs().mean()
        assert bounds[0] < error < bounds[1]
    assert found.fields[1].abs().max() < 0.03


def test_without_parallax_an_error_that_all_matches_share_bends_nothing():
    sides, _, _ = sight(0.3, torch.zeros(TERMS))
    drift = 0.003 * terms(*GRID, torch.device("cpu"))[:, 2:4]  # a third of a pixel of 128, at the border
    drifted = [replace(side, seen=side.seen + drift) for side in sides]
    found = bending(relative_pose(*drifted, PRIOR), *drifted, (GRID, GRID), PRIOR)
    assert all(field.abs().max() < 0.03 for field in found.fields)


def test_pairs_of_a_batch_do_not_touch_each_other():
    pairs = [sight(turn, LEANING, seed=k)[0] for k, turn in enumerate((10.0, 35.0))]
    batch = [
        Sightings(*(torch.cat([getattr(p[view], name) for p in pairs]) for name in vars(pairs[0][0])))
        for view in (0, 1)
    ]
    together = bending(relative_pose(*batch, PRIOR), *batch, (GRID, GRID), PRIOR)
    alone = bending(relative_pose(*pairs[1], PRIOR), *pairs[1], (GRID, GRID), PRIOR)
    assert torch.allclose(together.fields[0][1], alone.fields[0][0], atol=2e-3)


def test_no_weight_at_all_stays_finite():
    sides, _, _ = sight(10.0, LEANING)
    none = [replace(side, weight=torch.zeros_like(side.weight)) for side in sides]
    found = bending(relative_pose(*none, PRIOR), *none, (GRID, GRID), PRIOR)
    assert all(torch.isfinite(each).all() for each in (*found.fields, found.pose.rotation, found.pose.translation))
