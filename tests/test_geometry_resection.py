"""Resection finds where a camera stands and its focal length, also among wrong points."""

import pytest
import torch

from lora3d_splat.geometry.resection import resect
from lora3d_splat.geometry.transforms import rotation_angle_deg, so3_exp


@pytest.mark.parametrize(("focal", "wrong"), [(1.0, 0.0), (1.4, 0.0), (0.8, 0.2)])
def test_pose_and_focal_length(focal, wrong):
    torch.manual_seed(0)
    R, t = so3_exp(torch.tensor([0.1, -0.3, 0.2])), torch.tensor([0.5, 0.1, -0.4])
    places = torch.rand(300, 2) - 0.5  # at z = 1 for focal length 1
    depth = 1.5 + torch.rand(300)
    own = torch.cat([places / focal, torch.ones(300, 1)], 1) * depth[:, None]
    points = own @ R.T + t
    bad = torch.rand(300) < wrong
    points[bad] += 0.5 * torch.randn(int(bad.sum()), 3)
    start = (so3_exp(torch.tensor([0.0, -0.2, 0.1])), torch.tensor([0.4, 0.0, -0.2]))
    found = resect(points[None], places, torch.ones(1, 300), (start[0][None], start[1][None]), 0.35, rounds=20)
    assert rotation_angle_deg(found.rotation[0], R) < 0.5
    assert (found.translation[0] - t).norm() < 0.02
    assert found.focal[0] == pytest.approx(focal, rel=0.02)


def test_points_without_weight_do_not_count():
    torch.manual_seed(0)
    places, depth = torch.rand(100, 2) - 0.5, 1 + torch.rand(100, 1)
    points = torch.cat([places, torch.ones(100, 1)], 1) * depth
    points[50:] = torch.randn(50, 3)
    weights = (torch.arange(100) < 50).float()
    found = resect(points[None], places, weights[None], (torch.eye(3)[None], torch.zeros(1, 3)), 0.35)
    assert rotation_angle_deg(found.rotation[0], torch.eye(3)) < 0.01
