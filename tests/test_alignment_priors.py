"""What is known helps: intrinsics, poses fixed or soft, masks, anchors, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import errors, make_scene, predict

from lora3d_splat.alignment import AlignmentConfig, CameraPriors, PoseSigma, align
from lora3d_splat.alignment.anchors import view_named, with_distance, with_positions
from lora3d_splat.alignment.priors import no_priors
from lora3d_splat.errors import InputError

SMALL = AlignmentConfig(samples_per_view=150)


def known_poses(scene, members: list[int], sigma: PoseSigma | None = None) -> CameraPriors:
    poses = torch.full((len(scene.views), 4, 4), torch.nan, dtype=torch.float64)
    poses[members] = scene.T_world_camera[members]
    return replace(no_priors(scene.views), T_world_camera=poses, pose_sigma=sigma)


def test_known_poses_stay_and_set_frame_and_unit():
    """With two of four poses given, the others come out right in the given frame itself, without any fit."""
    scene = make_scene(4)
    aligned, _ = align(predict(scene), SMALL, views=scene.views, priors=known_poses(scene, [0, 2]))
    torch.testing.assert_close(aligned.T_world_camera[[0, 2]], scene.T_world_camera[[0, 2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(aligned.T_world_camera, scene.T_world_camera, rtol=0, atol=1e-3)
    assert errors(scene, aligned)["focal"] < 1e-3


def test_known_poses_improve_the_others_under_noise():
    """Median over three scenes of the others' distance to the truth, after the best similarity in either case."""
    ratios = []
    for seed in range(3):
        scene = make_scene(5, seed=seed)
        predictions = predict(scene, noise=0.03, outliers=0.1, seed=seed)
        free, _ = align(predictions, SMALL, views=scene.views)
        tied, _ = align(predictions, SMALL, views=scene.views, priors=known_poses(scene, [0, 2, 4]))
        ratios.append(errors(scene, tied)["centre"] / errors(scene, free)["centre"])
    assert sorted(ratios)[1] < 1.0


def test_a_soft_pose_lies_between_the_prior_and_the_data():
    """A prior that is wrong by 0.3: followed under a tiny sigma, ignored under a huge one."""
    scene = make_scene(4)
    gaps = []
    for sigma in (1e-4, 1e3):
        priors = known_poses(scene, [0, 1, 2, 3], PoseSigma(sigma, 0.01 if sigma < 1 else 90.0))
        wrong = priors.T_world_camera.clone()
        wrong[3, 0, 3] += 0.3
        aligned, _ = align(predict(scene), SMALL, views=scene.views, priors=replace(priors, T_world_camera=wrong))
        gaps.append(errors(scene, aligned)["centre"])
    assert gaps[0] > 20 * gaps[1]
    assert gaps[1] < 1e-3


def test_known_focals_are_kept_and_others_found():
    scene = make_scene(4)
    focal = torch.tensor([float(scene.focal[0]), torch.nan, torch.nan, 1.2 * float(scene.focal[3])]).double()
    priors = replace(no_priors(scene.views), focal=focal)
    aligned, _ = align(predict(scene), SMALL, views=scene.views, priors=priors)
    assert aligned.focal[0].item() == pytest.approx(focal[0].item(), rel=1e-12)
    assert aligned.focal[3].item() == pytest.approx(focal[3].item(), rel=1e-12)
    assert aligned.focal[1].item() == pytest.approx(scene.focal[1].item(), rel=0.05)


def test_photographs_of_two_cameras_have_two_focals():
    scene = make_scene(4)
    views = tuple(replace(view, camera="a" if k < 2 else "b") for k, view in enumerate(scene.views))
    config = replace(SMALL, focal="per-camera")
    other = replace(scene, focal=torch.cat([scene.focal[:2], 1.3 * scene.focal[2:]]), views=views)
    aligned, _ = align(predict(other), config, views=views)
    assert errors(other, aligned)["focal"] < 1e-3
    assert aligned.focal[0] == aligned.focal[1]
    assert aligned.focal[2] == aligned.focal[3]


def test_a_known_principal_point_is_used():
    """Cameras whose principal point lies 3 pixels off the middle come out exactly when it is known."""
    scene = make_scene(3)
    shifted = [replace(view, affine=replace(view.affine, offset_x=3.0, offset_y=3.0)) for view in scene.views]
    predictions = predict(replace(scene, views=tuple(shifted)))
    nothing = no_priors(scene.views)
    known = replace(nothing, principal_point=nothing.principal_point + 3.0)
    right, wrong = (align(predictions, SMALL, views=scene.views, priors=priors)[0] for priors in (known, nothing))
    assert torch.equal(right.principal_point, known.principal_point)
    assert errors(scene, right)["rotation"] < 1e-3 < errors(scene, wrong)["rotation"]


def test_masked_pixels_take_no_part():
    """Half of every picture is confident nonsense; masked, it changes nothing and gets neither depth nor trust."""
    scene = make_scene(4)
    mask = np.ones((48, 64), bool)
    mask[:, :32] = False
    views = tuple(replace(view, mask=mask) for view in scene.views)
    hidden = torch.from_numpy(~mask)[..., None]

    def spoilt(points: torch.Tensor, seed: int) -> torch.Tensor:
        noise = 3 * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))
        return torch.where(hidden, noise, points)

    predictions = [
        replace(
            item,
            points_reference=spoilt(item.points_reference, 2 * k),
            points_other=spoilt(item.points_other, 2 * k + 1),
        )
        for k, item in enumerate(predict(scene))
    ]
    aligned, confidence = align(predictions, SMALL, views=views)
    true = replace(scene, depth=tuple(depth[:, 32:] for depth in scene.depth))
    assert errors(true, _right_half(aligned))["centre"] < 1e-3
    assert float(aligned.depth[0][:, :32].abs().max()) == 0.0
    assert float(confidence.view_confidence[0][:, :32].max()) == 0.0
    assert float(confidence.view_confidence[0][:, 32:].min()) > 1.0


def _right_half(aligned):
    return replace(aligned, depth=tuple(depth[:, 32:] for depth in aligned.depth))


def test_a_known_distance_sets_the_unit_of_everything():
    scene = make_scene(4)
    aligned, _ = align(predict(scene), SMALL, views=scene.views)
    metric = with_distance(aligned, 0, 3, 7.0)
    assert float((metric.T_world_camera[0, :3, 3] - metric.T_world_camera[3, :3, 3]).norm()) == pytest.approx(7.0)
    factor = metric.mu / aligned.mu
    torch.testing.assert_close(metric.depth[1], aligned.depth[1] * factor)
    torch.testing.assert_close(metric.pair_scale, aligned.pair_scale * factor)
    assert errors(scene, metric) == pytest.approx(errors(scene, aligned), abs=1e-6)
    with pytest.raises(InputError, match="positive distance"):
        with_distance(aligned, 0, 0, 1.0)


def test_known_positions_bring_the_scene_into_their_frame():
    scene = make_scene(5)
    aligned, _ = align(predict(scene), SMALL, views=scene.views)
    positions = scene.T_world_camera[:, :3, 3].clone()
    positions[1] = torch.nan
    moved = with_positions(aligned, positions)
    torch.testing.assert_close(moved.T_world_camera[:, :3, 3], scene.T_world_camera[:, :3, 3], rtol=0, atol=1e-3)
    with pytest.raises(InputError, match="2 registered views"):
        with_positions(aligned, torch.where(torch.arange(5)[:, None] < 2, positions.nan_to_num(0.0), torch.nan))


def test_a_view_is_named_by_its_file():
    files = ["a/1.jpg", "a/2.jpg", "b/2.jpg"]
    assert view_named(files, "1.jpg") == 0
    assert view_named(files, "b/2.jpg") == 2
    with pytest.raises(InputError, match="names 2"):
        view_named(files, "2.jpg")
