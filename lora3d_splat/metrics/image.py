"""How close a rendered picture is to its photograph. A metric's name says its definition.

All take pictures (H, W, 3) with values in [0, 1]. PSNR: peak 1, mean over pixels and channels. SSIM: Gaussian window of
11 pixels and 1.5 standard deviation, data range 1. LPIPS: `lpips_alex` and `lpips_vgg`, inputs scaled to [-1, 1].

With a mask (H, W, 1), true where pixels count: PSNR over these pixels, SSIM over the windows centred on them, and for
windows and LPIPS the photograph stands in for the rendering elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.metrics.lpips import Lpips

NAMES = ("psnr", "ssim", "lpips_alex", "lpips_vgg")
"""Every metric of a rendered view, in the order of tables and files."""


WINDOW = 11
"""Pixels of SSIM's window."""


@dataclass(frozen=True)
class Value:
    """A number, or None with the reason why it could not be computed."""

    number: float | None
    reason: str | None = None


def psnr(rendered: Tensor, photo: Tensor, counted: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in decibels; 100 where the pictures are equal, or nothing counts."""
    return float(decibels(rendered.double(), photo.double(), counted))


def decibels(rendered: Tensor, photo: Tensor, counted: Tensor | None = None) -> Tensor:
    """PSNR as a scalar tensor, without waiting for the device."""
    error = (rendered - photo).square()
    if counted is None:
        return -10.0 * torch.log10(error.mean().clamp_min(1e-10))
    mean = (error * counted).sum() / (error.shape[-1] * counted.sum()).clamp_min(1)
    return -10.0 * torch.log10(mean.clamp_min(1e-10))


def ssim(rendered: Tensor, photo: Tensor, counted: Tensor | None = None) -> Value:
    """Structural similarity (Wang et al. 2004)."""
    if min(rendered.shape[:2]) < WINDOW:
        return Value(None, "the picture is smaller than the window of 11 pixels")
    planes = tuple(picture.float().permute(2, 0, 1)[None] for picture in (rendered, photo))
    if counted is None:
        from pytorch_msssim import ssim as structural_similarity

        return Value(float(structural_similarity(*planes, data_range=1.0, size_average=True)))
    margin = WINDOW // 2
    centres = counted[margin:-margin, margin:-margin, 0]
    if not bool(centres.any()):
        return Value(None, "the mask leaves no whole window of 11 pixels")
    return Value(float(_similarity(*planes)[0].mean(0)[margin:-margin, margin:-margin][centres].mean()))


def _similarity(rendered: Tensor, photo: Tensor) -> Tensor:
    """SSIM of each pixel's window, (1, 3, H, W); meaningful where the window is whole."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        rendered, photo, gaussian_kernel=True, sigma=1.5, data_range=1.0, return_full_image=True
    )
    assert isinstance(found, tuple)
    return found[1]


@torch.no_grad()
def image_metrics(rendered: Tensor, photo: Tensor, lpips: Lpips, counted: Tensor | None = None) -> dict[str, Value]:
    """Every metric of `NAMES`; what cannot be computed carries its reason."""
    if counted is not None:
        if not bool(counted.any()):
            return dict.fromkeys(NAMES, Value(None, "the mask leaves no pixel"))
        rendered = torch.where(counted, rendered, photo)
    return {
        "psnr": Value(psnr(rendered, photo, counted)),
        "ssim": ssim(rendered, photo, counted),
        "lpips_alex": _lpips(lpips, "alex", rendered, photo),
        "lpips_vgg": _lpips(lpips, "vgg", rendered, photo),
    }


def _lpips(lpips: Lpips, backbone: str, rendered: Tensor, photo: Tensor) -> Value:
    distance = lpips.distance(backbone, rendered, photo)
    return Value(None, distance) if isinstance(distance, str) else Value(distance)
