"""The frame nerfstudio works in: cameras within [-1, 1], up along +z, OpenGL camera axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.geometry.transforms import opencv_to_opengl, opengl_to_opencv

LEAST_EXTENT = 0.1
"""The cameras' spread counts as at least this share of the median depth, so that photographs taken from nearly one
place do not blow the scene up."""


@dataclass(frozen=True)
class Normalisation:
    """p_normalised = scale * (rotation @ p_world + translation)."""

    rotation: Tensor
    """(3, 3) float64"""
    translation: Tensor
    """(3,) float64"""
    scale: float

    @property
    def transform(self) -> Tensor:
        """(3, 4) float32 without the scale, as nerfstudio records it."""
        return torch.cat([self.rotation, self.translation[:, None]], dim=1).float()

    def points(self, points_world: Tensor) -> Tensor:
        """(N, 3) float32"""
        return (self.scale * (points_world.double() @ self.rotation.T + self.translation)).float()

    def camera_to_worlds(self, T_world_camera: Tensor) -> Tensor:
        """(V, 3, 4) float32 OpenGL cameras in the normalised frame, from (V, 4, 4) OpenCV cameras."""
        pose = opencv_to_opengl(T_world_camera.double())
        rotation = self.rotation @ pose[:, :3, :3]
        centre = self.scale * (pose[:, :3, 3] @ self.rotation.T + self.translation)
        return torch.cat([rotation, centre[..., None]], dim=-1).float()

    def T_world_camera(self, camera_to_worlds: Tensor) -> Tensor:
        """(V, 4, 4) float64 OpenCV cameras in the world frame; the inverse of `camera_to_worlds`."""
        given = camera_to_worlds.double().cpu()
        pose = torch.eye(4, dtype=torch.float64).repeat(len(given), 1, 1)
        pose[:, :3, :3] = self.rotation.T @ given[:, :3, :3]
        pose[:, :3, 3] = (given[:, :3, 3] / self.scale - self.translation) @ self.rotation
        return opengl_to_opencv(pose)


def normalisation(T_world_camera: Tensor, median_depth: float) -> Normalisation:
    """The frame for cameras (V, 4, 4): mean up direction to +z, mean centre to the origin, farthest camera at 1."""
    centres = T_world_camera[:, :3, 3].double()
    up = -T_world_camera[:, :3, 1].double().mean(dim=0)
    rotation = _rotation_to_z(up)
    extent = float((centres - centres.mean(dim=0)).norm(dim=1).max())
    scale = 1.0 / max(extent, LEAST_EXTENT * median_depth, 1e-9)
    return Normalisation(rotation, -rotation @ centres.mean(dim=0), scale)


def _rotation_to_z(direction: Tensor) -> Tensor:
    """(3, 3) the shortest rotation of a direction (3,) onto +z; identity for no direction."""
    length = direction.norm()
    if length < 1e-6:
        return torch.eye(3, dtype=torch.float64)
    x, y, z = (direction / length).tolist()
    if z < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    # Rodrigues' formula for the axis d x z.
    return torch.tensor(
        [[1 - x * x / (1 + z), -x * y / (1 + z), -x], [-x * y / (1 + z), 1 - y * y / (1 + z), -y], [x, y, z]],
        dtype=torch.float64,
    )
