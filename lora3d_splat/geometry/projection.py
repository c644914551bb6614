"""Pinhole projection and its inverse, corner-based pixels, OpenCV axes."""

from __future__ import annotations

import torch
from torch import Tensor

from .cameras import pixel_grid


def unproject(depth: Tensor, focal: Tensor | float, principal_point: Tensor) -> Tensor:
    """Points (H, W, 3) in the camera's frame from z-depth (H, W); focal and principal point (2,) in the same pixels."""
    grid = pixel_grid(depth.shape[-2], depth.shape[-1], depth.dtype).to(depth.device)
    slopes = (grid - principal_point.to(grid)) / torch.as_tensor(focal).to(grid)
    return torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1) * depth[..., None]


def project(
    points_camera: Tensor, focal: Tensor | float, principal_point: Tensor, near: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Pixels (..., 2) and z-depth (...) of points (..., 3); pixels of points at or behind `near` are NaN."""
    depth = points_camera[..., 2]
    front = depth > near
    slopes = points_camera[..., :2] / torch.where(front, depth, torch.full_like(depth, torch.nan))[..., None]
    return slopes * torch.as_tensor(focal).to(depth) + principal_point.to(depth), depth
