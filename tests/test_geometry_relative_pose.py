"""Relative pose from matches and rough depths: exact, robust, from far starts."""

from dataclasses import fields

import pytest
import torch

from lora3d_splat.geometry.relative_pose import Prior, RelativePose, Sightings, relative_pose
from lora3d_splat.geometry.transforms import rotation_angle_deg, so3_exp


def sight(count: int, turn: float, depth_noise: float, outliers: float, seed: int = 0):
    """Two views walking around a cloud at distance 2: their sightings, and the true rotation and translation."""
    torch.manual_seed(seed)
    R = so3_exp(torch.deg2rad(torch.tensor([0.2 * turn, turn, 0.1 * turn])))
    middle = torch.tensor([0.0, 0.0, 2.0])
    t = middle - R @ middle
    sides = []
    for view in range(2):
        rays = torch.cat([torch.rand(count, 2) - 0.5, torch.ones(count, 1)], dim=1)
        depth = 1.4 + 1.2 * torch.rand(count)
        own = rays * depth[:, None]
        Y = own @ R.T + t if view else (own - t) @ R
        seen = Y[:, :2] / Y[:, 2:]
        wrong = torch.rand(count) < outliers
        seen[wrong] = torch.rand(int(wrong.sum()), 2) - 0.5
        rough = depth * (depth_noise * torch.randn(count)).exp()
        sides.append(Sightings(rays[None], rough[None], seen[None], torch.full((1, count), 0.01), torch.ones(1, count)))
    return sides, R, t


@pytest.mark.parametrize("turn", [0.0, 8.0, -25.0, 50.0])
def test_exact_matches_and_depths_give_the_pose(turn):
    (first, second), R, t = sight(200, turn, 0.0, 0.0)
    found = relative_pose(first, second, Prior(0.25, 0.2))
    assert rotation_angle_deg(found.rotation[0], R) < 0.05
    assert (found.translation[0] - t).norm() < 2e-3
    assert found.cost[0] < 1e-3


def test_depths_that_are_wrong_by_a_fifth_hardly_turn_it():
    (first, second), R, t = sight(300, 30.0, 0.2, 0.0)
    found = relative_pose(first, second, Prior(0.25, 0.2))
    assert rotation_angle_deg(found.rotation[0], R) < 1.0
    assert torch.nn.functional.cosine_similarity(found.translation[0], t, dim=0) > 0.999


def test_half_of_the_matches_may_be_wrong():
    (first, second), R, _ = sight(400, 30.0, 0.1, 0.5)
    found = relative_pose(first, second, Prior(0.25, 0.2))
    assert rotation_angle_deg(found.rotation[0], R) < 1.0


def test_the_second_views_unit_is_found():
    (first, second), R, _ = sight(300, 20.0, 0.02, 0.0)
    smaller = Sightings(second.rays, second.depth / 1.15, second.seen, second.sigma, second.weight)
    found = relative_pose(first, smaller, Prior(0.1, 0.2))
    assert found.log_scale[0].exp() == pytest.approx(1.15, abs=0.03)
    assert rotation_angle_deg(found.rotation[0], R) < 0.5


def test_pairs_of_a_batch_do_not_touch_each_other():
    pairs = [sight(100, turn, 0.1, 0.2, seed)[0] for seed, turn in enumerate((5.0, 40.0))]
    names = [field.name for field in fields(Sightings)]
    batch = [Sightings(*(torch.cat([getattr(p[side], name) for p in pairs]) for name in names)) for side in range(2)]
    together = relative_pose(*batch, Prior(0.25, 0.2))
    alone = relative_pose(*pairs[0], Prior(0.25, 0.2))
    assert torch.allclose(together.rotation[0], alone.rotation[0], atol=1e-4)


def test_no_weight_at_all_stays_finite():
    (first, second), _, _ = sight(50, 10.0, 0.0, 0.0)
    none = [Sightings(s.rays, s.depth, s.seen, s.sigma, torch.zeros_like(s.weight)) for s in (first, second)]
    found = relative_pose(*none, Prior(0.25, 0.2))
    assert all(torch.isfinite(value).all() for value in vars(found).values())


def test_a_tight_prior_holds_and_a_loose_one_lets_go():
    (first, second), R, _ = sight(200, 20.0, 0.1, 0.0)
    expected = torch.eye(3)[None], torch.zeros(1, 3)
    held = relative_pose(first, second, Prior(0.25, 0.2, *expected, turn=1e-4, shift=1e-4), [expected])
    assert rotation_angle_deg(held.rotation[0], torch.eye(3)) < 1.0
    free = relative_pose(first, second, Prior(0.25, 0.2, *expected, turn=1.0, shift=1.0), [expected])
    assert rotation_angle_deg(free.rotation[0], R) < 1.0


def test_exact_places_do_not_narrow_the_way_there():
    (first, second), R, _ = sight(400, 35.0, 0.1, 0.3)
    sharp = [Sightings(s.rays, s.depth, s.seen, s.sigma / 20, s.weight) for s in (first, second)]
    assert rotation_angle_deg(relative_pose(*sharp, Prior(0.25, 0.2)).rotation[0], R) < 0.2


def test_mirrored_pictures_have_the_mirrored_pose():
    sides, _, _ = sight(200, 20.0, 0.1, 0.1)
    left_right = torch.tensor([-1.0, 1.0, 1.0])
    mirrored = [Sightings(s.rays * left_right, s.depth, s.seen * left_right[:2], s.sigma, s.weight) for s in sides]
    found, expected = relative_pose(*mirrored, Prior(0.25, 0.2)), relative_pose(*sides, Prior(0.25, 0.2)).mirrored()
    assert rotation_angle_deg(found.rotation[0], expected.rotation[0]) < 0.01
    assert torch.allclose(found.translation, expected.translation, atol=1e-4)


def test_the_inverse_carries_points_back_in_the_other_views_unit():
    torch.manual_seed(0)
    pose = RelativePose(so3_exp(torch.randn(2, 3)), torch.randn(2, 3), torch.randn(2), torch.zeros(2))
    depths = torch.randn(2, 5, 3)
    X_1 = pose.log_scale.exp()[:, None, None] * depths @ pose.rotation.transpose(1, 2) + pose.translation[:, None]
    back = pose.inverted()
    X_2 = back.log_scale.exp()[:, None, None] * X_1 @ back.rotation.transpose(1, 2) + back.translation[:, None]
    torch.testing.assert_close(X_2, depths)
