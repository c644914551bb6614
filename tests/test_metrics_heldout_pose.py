"""Photometric alignment of a held-out camera, with an analytic scene as renderer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plugin_scene import camera_pose

from lora3d_splat.errors import InputError
from lora3d_splat.geometry.cameras import pixel_grid
from lora3d_splat.geometry.transforms import rotation_angle_deg, se3_exp
from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig, align_pose

WIDTH, HEIGHT, FOCAL = 96, 64, 80.0
CPU = PoseAlignmentConfig(steps=180).resolved("cpu")


def render(T_world_camera: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth corner of a room, differentiable in the pose."""
    width, height, focal = WIDTH // level, HEIGHT // level, FOCAL / level
    centre = torch.tensor([WIDTH / level / 2, HEIGHT / level / 2])
    slopes = torch.cat([(pixel_grid(height, width) - centre) / focal, torch.ones(height, width, 1)], dim=-1)
    rays = slopes @ T_world_camera[:3, :3].T
    depth = torch.where(rays < -1e-6, -T_world_camera[:3, 3] / rays, torch.inf).amin(dim=-1)
    points = T_world_camera[:3, 3] + depth[..., None] * rays
    return 0.5 + 0.4 * torch.sin(2.5 * points), torch.ones(height, width, 1)


def true_pose() -> torch.Tensor:
    return camera_pose(3).float()


def test_recovers_a_perturbed_camera():
    """A camera off by 1.5 degrees and 0.05 units comes back to a tenth of that, and the loss falls by ten."""
    pose = true_pose()
    photo, _ = render(pose, 1)
    twist = torch.tensor([0.03, -0.03, 0.03, 0.015, -0.015, 0.015])
    found = align_pose(render, photo, pose @ se3_exp(twist), CPU)
    assert rotation_angle_deg(pose[:3, :3].double(), found.T_world_camera[:3, :3].double()) < 0.15
    assert (found.T_world_camera[:3, 3] - pose[:3, 3]).norm() < 0.006
    assert found.loss_after < 0.1 * found.loss_before
    assert found.rotation_deg == pytest.approx(1.5, abs=0.2)


def test_never_makes_it_worse():
    """The true camera stays where it is, whatever the rates do."""
    pose = true_pose()
    photo, _ = render(pose, 1)
    wild = PoseAlignmentConfig(steps=12, levels=(1,), translation_rate=0.5, rotation_rate=0.5)
    found = align_pose(render, photo, pose, wild)
    assert found.loss_after <= found.loss_before
    assert torch.equal(found.T_world_camera, pose)


def test_nothing_rendered_is_no_crash():
    """A camera that sees nothing cannot be moved, and says so by staying."""
    pose = true_pose()

    def dark(_: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(HEIGHT // level, WIDTH // level, 3), torch.zeros(HEIGHT // level, WIDTH // level, 1)

    found = align_pose(dark, torch.ones(HEIGHT, WIDTH, 3), pose, replace(CPU, ssim_weight=0.0))
    assert torch.equal(found.T_world_camera, pose)
    assert found.loss_after == found.loss_before == 1.0


def test_no_steps_is_no_move():
    """0 steps switch the alignment off."""
    photo, _ = render(true_pose(), 1)
    found = align_pose(render, photo, camera_pose(4).float(), PoseAlignmentConfig(steps=0).resolved("cpu"))
    assert found.steps == 0
    assert found.translation == 0.0


def test_defaults_follow_the_device_and_are_checked():
    """InstantSplat's 500 steps at full size on CUDA; fewer, coarse to fine, elsewhere."""
    cuda, cpu = PoseAlignmentConfig().resolved("cuda"), PoseAlignmentConfig().resolved("cpu")
    assert (cuda.steps, cuda.levels) == (500, (1,))
    assert (cpu.steps, cpu.levels) == (100, (4, 2, 1))
    with pytest.raises(InputError, match="steps"):
        PoseAlignmentConfig(steps=-1)
