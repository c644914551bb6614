"""Joint optimisation of the training cameras, found by the view's index and not by its place in some dataset.

Moving all cameras and Gaussians together changes no picture. Left alone, this gauge freedom drifts, and held-out
cameras, which were registered before, no longer fit. It is taken away by projection: the twists of all cameras together
have no component along a common rotation, translation or scaling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Type  # noqa: UP035

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from lora3d_splat.geometry.transforms import se3_exp, skew

BAKED = -2
"""`metadata["train_view"]` of a camera whose stored pose and focal length are the optimised ones already."""

Gauge = Literal["common", "first", "free"]


@dataclass
class CameraPosesConfig(CameraOptimizerConfig):
    """Pose corrections of the training cameras, without penalties (InstantSplat)."""

    _target: Type = field(default_factory=lambda: CameraPoses)  # noqa: UP006
    """target class to instantiate"""
    mode: Literal["off", "SO3xR3", "SE3"] = "SE3"
    """off: cameras stay as calibrated; SE3: each is moved by a twist in its own frame (SO3xR3 means the same here)."""
    gauge: Gauge = "common"
    """What keeps the scene in place: common takes rotation, translation and scaling of all cameras together out, first
    holds the first camera, free lets the scene drift."""
    tracked_rate: float = 0.02
    """Share of the learning rate with which cameras move that feature tracks placed: these are sharper than what a few
    photographs make of them."""
    focal: bool = False
    """Optimise one focal length, shared by all photographs, along with the poses."""
    trans_l2_penalty: float = 0.0
    """L2 penalty on translation parameters."""
    rot_l2_penalty: float = 0.0
    """L2 penalty on rotation parameters."""


class CameraPoses(CameraOptimizer):
    """Corrects every camera that carries `metadata["train_view"] >= 0`, in training and afterwards.

    nerfstudio's corrects only cameras that its training loop numbered, so that renders and exports of training views
    ignore what was optimised.
    """

    config: CameraPosesConfig
    drift: Tensor | None
    """(6 V, 7 or fewer) orthonormal twists that are taken out"""
    rate: Tensor
    """(V, 1) share of the learning rate of each camera"""

    def __init__(
        self, config: CameraPosesConfig, num_cameras: int, device: torch.device | str, **kwargs: object
    ) -> None:
        super().__init__(config, num_cameras, device, **kwargs)  # type: ignore[arg-type]
        self.register_buffer("drift", None, persistent=False)
        self.register_buffer("rate", torch.ones(num_cameras, 1, device=device), persistent=False)
        if config.mode != "off" and config.focal:
            self.log_focal = torch.nn.Parameter(torch.zeros(1, device=device))

    def fix_gauge(self, camera_to_worlds: Tensor | None) -> None:
        """Say where the cameras (V, 3, 4), OpenGL, are; without them the gauge `common` holds the first camera."""
        if self.config.mode == "off" or self.config.gauge == "free":
            return
        if self.config.gauge == "common" and camera_to_worlds is not None:
            self.drift = common_twists(camera_to_worlds)
        else:
            self.drift = torch.eye(6 * self.num_cameras, 6)

    def hold_tracked(self, tracked: Tensor) -> None:
        """Say which cameras (V,) bool feature tracks placed."""
        self.rate = torch.where(tracked.to(self.rate.device), self.config.tracked_rate, 1.0)[:, None]

    def twists(self) -> Tensor:
        """(V, 6) translation and rotation of each camera in its own frame, without what moves all of them."""
        moved = self.rate * self.pose_adjustment  # Adam's steps do not depend on the size of gradients
        if self.drift is None:
            return moved
        flat = moved.flatten()
        return (flat - self.drift @ (self.drift.T @ flat)).view_as(self.pose_adjustment)

    def forward(self, indices: Tensor) -> Tensor:
        """(N, 3, 4) motions of cameras, each in the camera's frame."""
        if self.config.mode == "off":
            return torch.eye(4, device=self.device)[None, :3].repeat(len(indices), 1, 1)
        return se3_exp(self.twists()[indices])[:, :3]

    def apply_to_camera(self, camera: Cameras) -> Tensor:
        """(1, 3, 4) corrected camera_to_world, OpenGL."""
        view = train_view(camera)
        if self.config.mode == "off" or view is None or view < 0:
            return camera.camera_to_worlds
        motion = self(torch.tensor([view], device=self.pose_adjustment.device)).to(camera.device)
        rotation, centre = camera.camera_to_worlds[..., :3], camera.camera_to_worlds[..., 3:]
        return torch.cat([rotation @ motion[..., :3], centre + rotation @ motion[..., 3:]], dim=-1)

    def focal_factor(self, camera: Cameras) -> Tensor | None:
        """What the camera's focal length is to be multiplied by: for the photographs' cameras only, None elsewhere."""
        if not hasattr(self, "log_focal") or train_view(camera) in (None, BAKED):
            return None
        return self.log_focal.exp()

    def get_param_groups(self, param_groups: dict) -> None:
        """Poses and focal length as one group."""
        if self.config.mode != "off":
            param_groups["camera_opt"] = list(self.parameters())

    def get_loss_dict(self, loss_dict: dict[str, Tensor]) -> None:
        if self.config.trans_l2_penalty or self.config.rot_l2_penalty:
            super().get_loss_dict(loss_dict)

    def get_metrics_dict(self, metrics_dict: dict[str, Tensor]) -> None:
        """How far the cameras have moved; nothing where they are fixed."""
        if self.config.mode == "off":
            return
        moved = self.twists().detach()
        metrics_dict["camera_translation_max"] = moved[:, :3].norm(dim=-1).max()
        metrics_dict["camera_rotation_max_deg"] = torch.rad2deg(moved[:, 3:].norm(dim=-1).max())


def train_view(camera: Cameras) -> int | None:
    """The training view that a single camera stands for, -1 for another photograph, None for no photograph."""
    index = (camera.metadata or {}).get("train_view")
    return int(index.reshape(-1)[0]) if isinstance(index, Tensor) else None


def common_twists(camera_to_worlds: Tensor) -> Tensor:
    """(6 V, r) orthonormal twists, in the cameras' own frames, of rotating, shifting and scaling all cameras (V, 3, 4).

    r is 7, or less for one camera.
    """
    inverse = camera_to_worlds[:, :, :3].double().transpose(1, 2)
    centres = camera_to_worlds[:, :, 3].double()
    rotated = torch.cat([-inverse @ skew(centres), inverse], dim=1)
    shifted = torch.cat([inverse, torch.zeros_like(inverse)], dim=1)
    scaled = torch.cat([inverse @ centres[..., None], torch.zeros_like(centres)[..., None]], dim=1)
    basis, strength, _ = torch.linalg.svd(
        torch.cat([rotated, shifted, scaled], dim=2).flatten(0, 1), full_matrices=False
    )
    return basis[:, strength > 1e-6 * strength[0]].to(camera_to_worlds)


@torch.no_grad()
def optimised_camera_to_worlds(poses: CameraOptimizer, cameras: Cameras) -> Tensor:
    """(V, 3, 4) of all cameras, corrected where they are training views."""
    corrected = [
        poses.apply_to_camera(cameras[index : index + 1].to(poses_device(poses))) for index in range(len(cameras))
    ]
    return torch.cat(corrected).to(cameras.device)


def optimised_focal_factor(poses: CameraOptimizer) -> float:
    """What the shared focal length was multiplied by; 1 where it was not optimised."""
    log_focal = getattr(poses, "log_focal", None)
    return float(log_focal.detach().exp()) if isinstance(log_focal, Tensor) else 1.0


def poses_device(poses: CameraOptimizer) -> torch.device:
    """Where the corrections lie; the optimiser's own `device` is that of its construction."""
    return next((parameter.device for parameter in poses.parameters()), torch.device("cpu"))


@torch.no_grad()
def bake(poses: CameraOptimizer, cameras: Cameras) -> None:
    """Write optimised poses and focal length into the cameras, which then count as corrected."""
    cameras.camera_to_worlds = optimised_camera_to_worlds(poses, cameras)
    factor = optimised_focal_factor(poses)
    cameras.fx, cameras.fy = cameras.fx * factor, cameras.fy * factor
    if cameras.metadata and "train_view" in cameras.metadata:
        cameras.metadata["train_view"] = torch.full_like(cameras.metadata["train_view"], BAKED)
