"""Pinhole intrinsics, projection and the focal of a pointmap."""

from __future__ import annotations

import pytest
import torch

from lora3d_splat.geometry.cameras import (
    focal_from_pointmap,
    intrinsics_matrix,
    network_to_photograph_focal,
    network_to_photograph_intrinsics,
    photograph_to_network_focal,
    photograph_to_network_intrinsics,
    pixel_grid,
)
from lora3d_splat.geometry.projection import project, unproject
from lora3d_splat.records import PixelAffine

AFFINE = PixelAffine(0.25, 0.2505, -3.0, 1.5)


def test_intrinsics_return_from_the_photograph():
    """network -> photograph -> network is the identity, per axis."""
    fx, fy, cx, cy = network_to_photograph_intrinsics(150.0, 80.0, 60.0, AFFINE)
    assert photograph_to_network_intrinsics(fx, fy, cx, cy, AFFINE) == pytest.approx((150.0, 150.0, 80.0, 60.0))
    assert network_to_photograph_focal(photograph_to_network_focal(700.0, AFFINE), AFFINE) == pytest.approx(700.0)


def test_intrinsics_by_hand():
    """Half size and a crop of 10 network pixels on the left: f doubles back, the centre moves by 10 before doubling."""
    assert network_to_photograph_intrinsics(100.0, 40.0, 30.0, PixelAffine(0.5, 0.5, -10.0, 0.0)) == (200, 200, 100, 60)


def test_a_network_pixel_and_its_photograph_pixel_see_the_same_ray():
    fx, fy, cx, cy = network_to_photograph_intrinsics(150.0, 80.0, 60.0, AFFINE)
    u, v = 33.0, 71.0
    u_net, v_net = AFFINE.scale_x * u + AFFINE.offset_x, AFFINE.scale_y * v + AFFINE.offset_y
    assert ((u - cx) / fx, (v - cy) / fy) == pytest.approx(((u_net - 80.0) / 150.0, (v_net - 60.0) / 150.0))


def test_pixel_centres_are_corner_based():
    grid = pixel_grid(2, 3)
    assert grid.shape == (2, 3, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[1, 2].tolist() == [2.5, 1.5]


def test_projecting_what_was_unprojected_gives_the_pixel_back():
    depth = torch.rand(12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1.0
    centre = torch.tensor([7.3, 6.1], dtype=torch.float64)
    pixels, z = project(unproject(depth, 20.0, centre), 20.0, centre)
    torch.testing.assert_close(pixels, pixel_grid(12, 16, torch.float64))
    torch.testing.assert_close(z, depth)


def test_projection_agrees_with_the_matrix():
    point = torch.tensor([0.4, -0.2, 2.0], dtype=torch.float64)
    matrix = intrinsics_matrix(*(torch.tensor(value, dtype=torch.float64) for value in (30.0, 30.0, 8.0, 6.0)))
    homogeneous = matrix @ point
    pixel, _ = project(point, 30.0, torch.tensor([8.0, 6.0]))
    torch.testing.assert_close(pixel, homogeneous[:2] / homogeneous[2])


def test_points_behind_the_camera_have_no_pixel():
    pixel, depth = project(torch.tensor([[0.0, 0.0, -1.0]]), 10.0, torch.zeros(2))
    assert bool(pixel.isnan().all())
    assert depth.item() == -1.0


def test_projection_is_differentiable():
    points = torch.tensor([[0.3, 0.1, 2.0], [-0.2, 0.4, 1.5]], dtype=torch.float64, requires_grad=True)
    focal = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    centre = torch.tensor([4.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p, f: project(p, f, centre)[0], (points, focal))


def _pointmap(focal: float) -> tuple[torch.Tensor, torch.Tensor]:
    depth = torch.rand(20, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1.0
    centre = torch.tensor([15.0, 10.0], dtype=torch.float64)
    return unproject(depth, focal, centre).flatten(0, 1), (pixel_grid(20, 30, torch.float64) - centre).flatten(0, 1)


def test_the_focal_of_an_exact_pointmap_is_exact():
    points, pixels = _pointmap(25.0)
    assert focal_from_pointmap(points, pixels, torch.ones(600).double()).item() == pytest.approx(25.0, rel=1e-9)


def test_wrong_points_hardly_move_the_focal():
    """The unsquared norm is a median: a least-squares focal would be off by far more than a percent."""
    points, pixels = _pointmap(25.0)
    wrong = torch.rand(600, generator=torch.Generator().manual_seed(3)) < 0.15
    points[wrong, :2] *= 2.0
    assert focal_from_pointmap(points, pixels, torch.ones(600).double()).item() == pytest.approx(25.0, rel=1e-2)
    slopes = points[:, :2] / points[:, 2:]
    assert abs(float((pixels * slopes).sum() / (slopes * slopes).sum()) / 25.0 - 1) > 0.1


def test_points_without_weight_or_behind_the_camera_have_no_vote():
    points, pixels = _pointmap(25.0)
    weights = torch.ones(600).double()
    points[:200, 2] *= -1
    points[200:500] = 7.0
    weights[200:500] = 0.0
    assert focal_from_pointmap(points, pixels, weights).item() == pytest.approx(25.0, rel=1e-9)
