"""Pinhole intrinsics: between network and photograph pixels, and from a pointmap.

Pixels are corner-based: the centre of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..records import PixelAffine, View


def intrinsics_matrix(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """K (..., 3, 3) from four (...) tensors, pixels."""
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def network_to_photograph_intrinsics(
    fx: float, cx: float, cy: float, affine: PixelAffine
) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in photograph pixels of a camera with square network pixels.

    fx and fy differ slightly where the resize rounded the two sides differently.
    """
    return (
        fx / affine.scale_x,
        fx / affine.scale_y,
        (cx - affine.offset_x) / affine.scale_x,
        (cy - affine.offset_y) / affine.scale_y,
    )


def photograph_to_network_intrinsics(
    fx: float, fy: float, cx: float, cy: float, affine: PixelAffine
) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in network pixels of a camera given in photograph pixels."""
    return (
        fx * affine.scale_x,
        fy * affine.scale_y,
        cx * affine.scale_x + affine.offset_x,
        cy * affine.scale_y + affine.offset_y,
    )


def photograph_to_network_focal(focal: float, affine: PixelAffine) -> float:
    """One focal in network pixels for a photograph with square pixels: the mean over the two axes."""
    return focal * math.sqrt(affine.scale_x * affine.scale_y)


def network_to_photograph_focal(focal: float, affine: PixelAffine) -> float:
    """Inverse of `photograph_to_network_focal`."""
    return focal / math.sqrt(affine.scale_x * affine.scale_y)


def principal_point_of(view: View) -> tuple[float, float]:
    """The photograph's centre in network pixels (u, v); a crop moves it off the network image's centre."""
    affine = view.affine
    return affine.scale_x * view.width / 2 + affine.offset_x, affine.scale_y * view.height / 2 + affine.offset_y


def pixel_grid(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(H, W, 2) pixel centres (u, v)."""
    v, u = torch.meshgrid(
        torch.arange(height, dtype=dtype) + 0.5, torch.arange(width, dtype=dtype) + 0.5, indexing="ij"
    )
    return torch.stack([u, v], dim=-1)


def focal_from_pointmap(points_camera: Tensor, centred_pixels: Tensor, weights: Tensor) -> Tensor:
    """Focal (...) minimising sum w | |(u, v)| / f - (u, v) . (X, Y) / (Z |(u, v)|) |: a median of inverse focals.

    DUSt3R and LoRA3D measure the miss in pixels, where a point that wrongly lies close to the camera has all the
    leverage it wants; measured as a slope, no point counts for more than its distance from the principal point.
    `points_camera` (..., N, 3) camera frame, `centred_pixels` (..., N, 2) relative to the principal point,
    `weights` (..., N) >= 0; points with Z <= 0 have no vote. The focal has the unit of the pixels.
    NaN where no point votes.
    """
    depth = points_camera[..., 2]
    radius = centred_pixels.norm(dim=-1)
    valid = (depth > torch.finfo(depth.dtype).eps) & (radius > 0)
    slopes = points_camera[..., :2] / torch.where(valid, depth, torch.ones_like(depth))[..., None]
    inverse = (centred_pixels * slopes).sum(-1) / radius.square().clamp_min(1e-12)
    votes = torch.where(valid, weights * radius, torch.zeros_like(radius))
    inverse, order = inverse.sort(dim=-1)
    mass = votes.gather(-1, order).cumsum(-1)
    middle = torch.searchsorted(mass, mass[..., -1:] / 2).clamp_max(mass.shape[-1] - 1)
    found = inverse.gather(-1, middle)[..., 0]
    return torch.where((mass[..., -1] > 0) & (found > 0), 1 / found, torch.full_like(found, torch.nan))
