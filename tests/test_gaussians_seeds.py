"""Seed points: every one finite, none twice, no more than asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plugin_scene import camera_pose, look, true_calibration, write_photographs

from lora3d_splat.errors import InputError
from lora3d_splat.gaussians.covisibility import SeedView, explained, novel_pixels
from lora3d_splat.gaussians.harmonics import harmonics_basis, rotate_harmonics
from lora3d_splat.gaussians.seeds import SeedConfig, draw, seed_points
from lora3d_splat.gaussians.spacing import neighbour_distance
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import so3_exp, transform_points


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    write_photographs(folder / "photos", 4)
    return true_calibration(sorted((folder / "photos").glob("*.png")), folder / "calibration")


def plane_view(shift: float, depth: float = 2.0) -> SeedView:
    """A camera at (shift, 0, 0) that looks straight at the plane z = `depth`."""
    pose = torch.eye(4)
    pose[0, 3] = shift
    depths, centre = torch.full((20, 30), depth), torch.tensor([15.0, 10.0])
    camera = unproject(depths, 20.0, centre)
    points = transform_points(pose, camera.reshape(-1, 3)).reshape(20, 30, 3)
    ones = torch.ones(20, 30)
    mask, rgb = torch.ones(20, 30, dtype=torch.bool), torch.zeros(20, 30, 3, dtype=torch.uint8)
    return SeedView(points, depths, mask, pose, 20.0, centre, rgb, ones, depths / 20.0)


def test_plane_seen_twice_is_seeded_once():
    """Of a plane seen by two cameras five pixels apart, the second keeps only the five columns the first cannot see."""
    first, second = novel_pixels((plane_view(0.0), plane_view(0.5)), 0.02)
    assert first.all()
    assert torch.equal(second.any(dim=0).nonzero()[:, 0], torch.arange(25, 30))
    assert second[:, 25:].all()


def test_tolerance_zero_keeps_every_pixel():
    """0 switches the pruning off."""
    assert all(bool(mask.all()) for mask in novel_pixels((plane_view(0.0), plane_view(0.5)), 0.0))


def test_other_depth_and_points_behind_explain_nothing():
    """A point in front of the surface, and one mirrored behind the camera, are no view of the surface."""
    view = plane_view(0.0)
    assert not explained(view, torch.tensor([[0.0, 0.0, 1.5], [0.0, 0.0, -2.0]]), 0.02).any()
    assert explained(view, torch.tensor([[0.0, 0.0, 2.01]]), 0.02).sum() == 1


def test_seeds_are_finite_and_on_the_surfaces(calibration):
    """Every seed of a perfect calibration lies on one of the three planes, coloured, with a positive size."""
    seeds = seed_points(calibration, SeedConfig(keep=1.0))
    assert seeds.points_world.isfinite().all()
    assert (seeds.scale > 0).all()
    assert seeds.scale.isfinite().all()
    assert seeds.points_world.abs().amin(dim=1).max() < 1e-4
    assert seeds.rgb.dtype == torch.uint8
    assert len(seeds.points_world) < 0.75 * seeds.candidates, "four overlapping views share most of what they see"


def test_seed_size_is_the_spacing_of_pixels(calibration):
    """On surfaces seen obliquely the size stays within twice a pixel's footprint and above half of it."""
    seeds = seed_points(calibration, SeedConfig(keep=1.0, covisibility_tolerance=0.0))
    footprint = torch.cat([(look(camera_pose(i))[0] / 60.0).flatten() for i in range(4)])
    assert seeds.scale.min() >= 0.5 * footprint.min() - 1e-6
    assert seeds.scale.max() <= 2.0 * footprint.max() + 1e-6


def test_cap_draws_and_grows(calibration):
    """A quarter of the points is twice as large, and the draw is reproducible."""
    every = seed_points(calibration, SeedConfig())
    config = SeedConfig(max_points=len(every.points_world) // 4)
    fewer, again = seed_points(calibration, config), seed_points(calibration, config)
    assert len(fewer.points_world) == config.max_points
    assert torch.equal(fewer.points_world, again.points_world)
    assert 1.5 < float(fewer.scale.median() / every.scale.median()) < 2.5


def test_draw_prefers_confidence():
    """Points nine times as trusted make up about nine tenths of a small draw."""
    confidence = torch.cat([torch.full((5000,), 9.0), torch.full((5000,), 1.0)])
    chosen, growth = draw(confidence, 1000, seed=0)
    assert 0.86 < float((chosen < 5000).float().mean()) < 0.94
    assert growth == pytest.approx(10.0**0.5)


def test_unregistered_views_and_empty_depth_are_left_out(calibration):
    """An unregistered view gives no seeds; with none left the error says what to do."""
    scene = replace(calibration.scene, registered=(False, True, True, True))
    fewer = seed_points(replace(calibration, scene=scene), SeedConfig(covisibility_tolerance=0.0, keep=1.0))
    assert fewer.candidates == 3 * 64 * 48
    with pytest.raises(InputError, match="no pixel"):
        seed_points(replace(calibration, scene=replace(scene, registered=(False,) * 4)), SeedConfig())


def test_sky_is_left_out(calibration):
    """Pixels fifty median depths away are no seeds; with a farther horizon they are."""
    sky = [depth.clone() for depth in calibration.scene.depth]
    for depth in sky:
        depth[:5] = 50.0 * float(depth.median())
    changed = replace(calibration, scene=replace(calibration.scene, depth=tuple(sky)))
    near = seed_points(changed, SeedConfig(keep=1.0, covisibility_tolerance=0))
    every = seed_points(changed, SeedConfig(keep=1.0, covisibility_tolerance=0, far=1000.0))
    assert len(every.points_world) - len(near.points_world) == 4 * 5 * sky[0].shape[1]
    assert near.points_world.abs().max() < 5.0


@pytest.mark.parametrize("settings", [{"keep": 0.0}, {"covisibility_tolerance": 1.0}, {"max_points": 0}])
def test_settings_are_checked(settings):
    """Impossible settings are refused with what is accepted."""
    with pytest.raises(InputError, match="accepted"):
        SeedConfig(**settings)


def test_neighbour_distance_of_a_grid():
    """Interior points of a unit grid have three neighbours at distance 1; a single point has none."""
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0), torch.zeros(1))
    assert neighbour_distance(grid).reshape(5, 5)[1:4, 1:4].allclose(torch.ones(3, 3))
    assert neighbour_distance(torch.zeros(1, 3)).isinf().all()


def test_rotated_harmonics_show_the_same_along_rotated_directions():
    """f_turned(R d) == f(d) for random coefficients of all degrees, and degree 0 alone stays zero."""
    generator = torch.Generator().manual_seed(1)
    rest = torch.randn(4, 15, 3, generator=generator, dtype=torch.float64)
    rotation = so3_exp(torch.tensor([0.4, -1.1, 0.7], dtype=torch.float64))
    directions = torch.nn.functional.normalize(torch.randn(9, 3, generator=generator, dtype=torch.float64), dim=1)
    before = torch.einsum("mk,nkc->mnc", harmonics_basis(directions)[:, 1:], rest)
    turned = rotate_harmonics(rest, rotation)
    after = torch.einsum("mk,nkc->mnc", harmonics_basis(directions @ rotation.T)[:, 1:], turned)
    assert torch.allclose(before, after, atol=1e-9)
    assert not rotate_harmonics(torch.zeros(2, 15, 3), rotation).any()
