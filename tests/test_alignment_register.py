"""Held-out views are placed in a finished scene, which stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from analytic_scene import AnalyticScene, make_scene, predict

from lora3d_splat.alignment import AlignmentConfig, align, register_views
from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.geometry.transforms import rotation_angle_deg
from lora3d_splat.records import AlignedScene, ImagePair

SMALL = AlignmentConfig(samples_per_view=150)
TRAIN = (0, 1, 3, 4)
HELDOUT = 2


@pytest.fixture(scope="module")
def trained() -> tuple[AnalyticScene, AlignedScene]:
    """Five views, of which view 2 is held out; it comes last after reordering."""
    whole = make_scene(5)
    order = [*TRAIN, HELDOUT]
    scene = AnalyticScene(
        tuple(whole.views[k] for k in order),
        whole.T_world_camera[order],
        whole.focal[order],
        tuple(whole.depth[k] for k in order),
    )
    pairs = [ImagePair(i, j) for i in range(4) for j in range(4) if i != j]
    return scene, align(predict(scene, pairs), SMALL, views=scene.views[:4])[0]


def pose_error(scene: AnalyticScene, aligned: AlignedScene, pose: torch.Tensor) -> tuple[float, float]:
    """Held-out centre error over the camera extent and rotation in degrees, after the train views' Sim(3)."""
    fit = align_trajectories(aligned.T_world_camera[:, :3, 3], scene.T_world_camera[:4, :3, 3])
    true = scene.T_world_camera[4]
    gap = (fit.apply(pose[None, :3, 3])[0] - true[:3, 3]).norm() / scene.T_world_camera[:4, :3, 3].std()
    return float(gap), float(rotation_angle_deg(fit.rotation @ pose[:3, :3], true[:3, :3]))


@pytest.mark.parametrize(
    ("pairs", "outliers"),
    [("both", 0.0), ("both", 0.2), ("led by the held-out view", 0.2)],
)
def test_the_true_pose_is_found_and_the_scene_stays(trained, pairs: str, outliers: float):
    scene, aligned = trained
    before = (aligned.T_world_camera.clone(), aligned.depth[0].clone(), aligned.focal.clone())
    wanted = [ImagePair(4, k) for k in range(4)] + ([ImagePair(k, 4) for k in range(4)] if pairs == "both" else [])
    registered, reasons, poses, focal, centre = register_views(
        scene.views[4:], aligned, scene.views[:4], predict(scene, wanted, outliers=outliers), SMALL
    )
    gap, angle = pose_error(scene, aligned, poses[0])
    assert registered == (True,)
    assert reasons == (None,)
    assert gap < 5e-3
    assert angle < 0.1
    assert focal[0].item() == pytest.approx(scene.focal[4].item(), rel=1e-3)
    assert centre.tolist() == [[32.0, 24.0]]
    for then, now in zip(before, (aligned.T_world_camera, aligned.depth[0], aligned.focal), strict=True):
        assert torch.equal(then, now)


def test_a_view_without_pairs_is_reported(trained):
    scene, aligned = trained
    registered, reasons, poses, _, _ = register_views(scene.views[4:], aligned, scene.views[:4], [], SMALL)
    assert registered == (False,)
    assert "no confident pair" in reasons[0]
    assert torch.equal(poses[0], torch.eye(4).double())


def test_a_view_of_something_else_is_reported(trained):
    scene, aligned = trained
    generator = torch.Generator().manual_seed(0)
    nonsense = [
        replace(
            item,
            points_reference=torch.randn(item.points_reference.shape, generator=generator),
            points_other=torch.randn(item.points_other.shape, generator=generator),
        )
        for item in predict(scene, [ImagePair(4, k) for k in range(4)])
    ]
    strict = replace(SMALL, residual_limit=0.1)
    registered, reasons, *_ = register_views(scene.views[4:], aligned, scene.views[:4], nonsense, strict)
    assert registered == (False,)
    assert "does not fit" in reasons[0]


def test_one_wrong_pair_among_good_ones_does_no_harm(trained):
    scene, aligned = trained
    predictions = list(predict(scene, [ImagePair(4, k) for k in range(4)] + [ImagePair(k, 4) for k in range(4)]))
    predictions[0] = replace(predictions[0], points_other=predictions[0].points_other.flip(0) * 2)
    _, _, poses, _, _ = register_views(scene.views[4:], aligned, scene.views[:4], predictions, SMALL)
    gap, angle = pose_error(scene, aligned, poses[0])
    assert gap < 5e-3
    assert angle < 0.1
