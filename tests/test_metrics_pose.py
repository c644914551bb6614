"""Camera and point errors against ground truth, by hand and by invariance."""

from __future__ import annotations

import math

import pytest
import torch

from lora3d_splat.errors import InputError
from lora3d_splat.geometry.transforms import rigid, so3_exp
from lora3d_splat.metrics.geometry import cloud_error, scale_aligned_pointmap_error
from lora3d_splat.metrics.pose import (
    ate_rmse,
    focal_error,
    relative_rotation_error_deg,
    relative_translation_direction_error_deg,
)

GENERATOR = torch.Generator().manual_seed(0)


def cameras(count: int) -> torch.Tensor:
    vectors = torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64)
    return rigid(so3_exp(vectors), torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64))


def similar(poses: torch.Tensor) -> torch.Tensor:
    """The same cameras in another world frame of another unit."""
    turn = rigid(so3_exp(torch.tensor([0.4, -0.2, 0.9], dtype=torch.float64)), torch.tensor([1.0, 2.0, 3.0]).double())
    scaled = poses.clone()
    scaled[:, :3, 3] *= 2.5
    return turn @ scaled


def test_the_trajectory_error_ignores_frame_and_unit():
    poses = cameras(6)
    assert ate_rmse(similar(poses)[:, :3, 3], poses[:, :3, 3]) < 1e-9


def test_the_trajectory_error_by_hand():
    """A square whose diagonal corners are lifted by +1 and sunk by -1: no similarity helps, the RMSE is 1."""
    square = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=torch.float64) * 10
    lifted = square + torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    assert ate_rmse(square, lifted) == pytest.approx(1.0, rel=1e-6)


def test_two_centres_are_no_trajectory():
    with pytest.raises(InputError, match="at least three"):
        ate_rmse(torch.zeros(2, 3), torch.zeros(2, 3))


def test_relative_errors_ignore_frame_and_unit():
    poses = cameras(5)
    assert relative_rotation_error_deg(similar(poses), poses).shape == (10,)
    assert float(relative_rotation_error_deg(similar(poses), poses).max()) < 1e-5
    assert float(relative_translation_direction_error_deg(similar(poses), poses).max()) < 1e-5


def test_a_turned_camera_shows_in_its_own_pairs_only():
    """Camera 0 turned by 10 degrees: pairs (0,1) and (0,2) are off by 10, (1,2) by nothing."""
    poses = cameras(3)
    turned = poses.clone()
    turned[0, :3, :3] = poses[0, :3, :3] @ so3_exp(torch.tensor([0.0, math.radians(10), 0.0], dtype=torch.float64))
    assert relative_rotation_error_deg(turned, poses).tolist() == pytest.approx([10, 10, 0], abs=1e-5)


def test_translation_directions_by_hand():
    """Moving sideways instead of forwards is 90 degrees off, backwards 180; a zero baseline has no direction."""
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    forwards, sideways, backwards = poses.clone(), poses.clone(), poses.clone()
    forwards[1, 2, 3], sideways[1, 0, 3], backwards[1, 2, 3] = 1.0, 3.0, -0.5
    angles = [float(relative_translation_direction_error_deg(item, forwards)) for item in (sideways, backwards, poses)]
    assert angles[:2] == pytest.approx([90.0, 180.0])
    assert math.isnan(angles[2])


def test_the_focal_error_is_relative_and_in_pixels():
    relative, pixels = focal_error(torch.tensor([110.0, 95.0]), torch.tensor([100.0, 100.0]))
    assert (relative, pixels) == pytest.approx((0.075, 7.5))


def test_the_pointmap_error_ignores_scale_and_invalid_points():
    true = torch.randn(10, 12, 3, generator=GENERATOR) + torch.tensor([0.0, 0.0, 5.0])
    estimated, valid = 0.2 * true, torch.ones(10, 12, dtype=torch.bool)
    estimated[0], valid[0] = 1e3, False
    assert scale_aligned_pointmap_error(estimated, true, valid) < 1e-5
    assert math.isnan(scale_aligned_pointmap_error(estimated, true, torch.zeros_like(valid)))


def test_accuracy_and_completeness_by_hand():
    """One true point of four is missed by 3 units; every estimated point lies on a true one."""
    true = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 0, 0]])
    found = cloud_error(true[:3], true)
    assert (found.accuracy, found.completeness) == (0.0, 0.75)
    assert (found.accuracy_median, found.completeness_median) == (0.0, 0.0)
