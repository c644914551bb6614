"""How close a rendered picture is to its photograph. A metric's name says its definition.

All take pictures (H, W, 3) with values in [0, 1]. PSNR: peak 1, mean over pixels and channels. SSIM: Gaussian window of
11 pixels and 1.5 standard deviation, data range 1. LPIPS: `lpips_alex` and `lpips_vgg`, inputs scaled to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.metrics.lpips import Lpips

NAMES = ("psnr", "ssim", "lpips_alex", "lpips_vgg")
"""Every metric of a rendered view, in the order of tables and files."""


@dataclass(frozen=True)
class Value:
    """A number, or None with the reason why it could not be computed."""

    number: float | None
    reason: str | None = None


def psnr(rendered: Tensor, photo: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels; 100 where the pictures are equal."""
    error = (rendered.double() - photo.double()).square().mean().clamp_min(1e-10)
    return float(-10.0 * torch.log10(error))


def ssim(rendered: Tensor, photo: Tensor) -> Value:
    """Structural similarity (Wang et al. 2004)."""
    from pytorch_msssim import ssim as structural_similarity

    if min(rendered.shape[:2]) < 11:
        return Value(None, "the picture is smaller than the window of 11 pixels")
    planes = (picture.float().permute(2, 0, 1)[None] for picture in (rendered, photo))
    return Value(float(structural_similarity(*planes, data_range=1.0, size_average=True)))


@torch.no_grad()
def image_metrics(rendered: Tensor, photo: Tensor, lpips: Lpips) -> dict[str, Value]:
    """Every metric of `NAMES`; what cannot be computed carries its reason."""
    return {
        "psnr": Value(psnr(rendered, photo)),
        "ssim": ssim(rendered, photo),
        "lpips_alex": _lpips(lpips, "alex", rendered, photo),
        "lpips_vgg": _lpips(lpips, "vgg", rendered, photo),
    }


def _lpips(lpips: Lpips, backbone: str, rendered: Tensor, photo: Tensor) -> Value:
    distance = lpips.distance(backbone, rendered, photo)
    return Value(None, distance) if isinstance(distance, str) else Value(distance)
