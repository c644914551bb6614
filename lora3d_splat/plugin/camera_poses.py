"""Joint optimisation of the training cameras, found by the view's index and not by its place in some dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Type  # noqa: UP035

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


@dataclass
class CameraPosesConfig(CameraOptimizerConfig):
    """Pose corrections of the training cameras, without penalties (InstantSplat)."""

    _target: Type = field(default_factory=lambda: CameraPoses)  # noqa: UP006
    """target class to instantiate"""
    mode: Literal["off", "SO3xR3", "SE3"] = "SO3xR3"
    """Pose optimization strategy to use."""
    trans_l2_penalty: float = 0.0
    """L2 penalty on translation parameters."""
    rot_l2_penalty: float = 0.0
    """L2 penalty on rotation parameters."""


class CameraPoses(CameraOptimizer):
    """Corrects every camera that carries `metadata["train_view"] >= 0`, in training and afterwards.

    nerfstudio's corrects only cameras that its training loop numbered, so that renders and exports of training views
    ignore what was optimised.
    """

    def apply_to_camera(self, camera: Cameras) -> Tensor:
        """(1, 3, 4) corrected camera_to_world, OpenGL: turned and shifted in the world frame."""
        view = train_view(camera)
        if self.config.mode == "off" or view < 0:
            return camera.camera_to_worlds
        correction = self(torch.tensor([view], device=self.pose_adjustment.device)).to(camera.device)
        pose = camera.camera_to_worlds
        return torch.cat([correction[..., :3] @ pose[..., :3], pose[..., 3:] + correction[..., 3:]], dim=-1)

    def get_loss_dict(self, loss_dict: dict[str, Tensor]) -> None:
        if self.config.trans_l2_penalty or self.config.rot_l2_penalty:
            super().get_loss_dict(loss_dict)

    def get_metrics_dict(self, metrics_dict: dict[str, Tensor]) -> None:
        """How far the cameras have moved; nothing where they are fixed."""
        if self.config.mode == "off":
            return
        moved = self.pose_adjustment.detach()
        metrics_dict["camera_translation_max"] = moved[:, :3].norm(dim=-1).max()
        metrics_dict["camera_rotation_max_deg"] = torch.rad2deg(moved[:, 3:].norm(dim=-1).max())


def train_view(camera: Cameras) -> int:
    """The training view that a single camera stands for, -1 for none."""
    index = (camera.metadata or {}).get("train_view")
    return int(index.reshape(-1)[0]) if isinstance(index, Tensor) else -1


@torch.no_grad()
def optimised_camera_to_worlds(poses: CameraOptimizer, cameras: Cameras) -> Tensor:
    """(V, 3, 4) of all cameras, corrected where they are training views."""
    corrected = [
        poses.apply_to_camera(cameras[index : index + 1].to(poses_device(poses))) for index in range(len(cameras))
    ]
    return torch.cat(corrected).to(cameras.device)


def poses_device(poses: CameraOptimizer) -> torch.device:
    """Where the corrections lie; the optimiser's own `device` is that of its construction."""
    return next((parameter.device for parameter in poses.parameters()), torch.device("cpu"))


@torch.no_grad()
def bake(poses: CameraOptimizer, cameras: Cameras) -> None:
    """Write the optimised poses into the cameras, which then count as corrected."""
    cameras.camera_to_worlds = optimised_camera_to_worlds(poses, cameras)
    if cameras.metadata and "train_view" in cameras.metadata:
        cameras.metadata["train_view"] = torch.full_like(cameras.metadata["train_view"], -1)
