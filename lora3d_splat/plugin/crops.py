"""Rectangles of pictures and the cameras that see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def of(self, picture: Tensor) -> Tensor:
        """The part (height, width, ...) of a picture (H, W, ...)."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


def crop_camera(camera: Cameras, crop: Crop) -> Cameras:
    """The camera that sees the crop alone."""
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx,
        fy=camera.fy,
        cx=camera.cx - crop.left,
        cy=camera.cy - crop.top,
        width=torch.full_like(camera.width, crop.width),
        height=torch.full_like(camera.height, crop.height),
        camera_type=camera.camera_type,
        metadata=camera.metadata,
    )
