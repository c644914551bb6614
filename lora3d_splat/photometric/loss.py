"""(1 - weight) L1 + weight (1 - SSIM), 3D Gaussian Splatting's loss: compiled kernels on a CPU, torch elsewhere."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TAPS, SIGMA = 11, 1.5
ROWS_AT_ONCE = 16
"""Rows per range; part of the arithmetic, because per-range sums are added up in order."""


def photo_loss(rendered: Tensor, photo: Tensor, ssim_weight: float) -> Tensor:
    """The scalar loss of pictures (H, W, 3) in [0, 1]; differentiable in `rendered`.

    SSIM has a Gaussian window of 11 pixels and 1.5 standard deviation, data range 1, and looks at whole windows only.
    Pictures smaller than the window have no SSIM: their loss is L1 alone.
    """
    if ssim_weight == 0 or min(rendered.shape[:2]) < TAPS:
        return (rendered - photo).abs().mean()
    if rendered.is_cuda:
        return _torch_loss(rendered, photo, ssim_weight)
    return _PhotoLoss.apply(rendered, photo, ssim_weight)


@functools.cache
def gaussian_window() -> np.ndarray:
    """(11,) float64, sums to 1."""
    offsets = np.arange(TAPS) - TAPS // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


class _PhotoLoss(torch.autograd.Function):
    """Value and gradient come from the same two passes; backward only scales."""

    @staticmethod
    def forward(ctx, rendered: Tensor, photo: Tensor, ssim_weight: float) -> Tensor:
        from lora3d_splat.photometric.kernels import gradient_rows, ssim_rows
        from lora3d_splat.rasterize.threads import run_ranges

        height, width, channels = rendered.shape
        x, y = (t.detach().to(rendered.dtype).contiguous().numpy().reshape(height, -1) for t in (rendered, photo))
        window = gaussian_window().astype(x.dtype)
        rows, inner = height - TAPS + 1, (width - TAPS + 1) * channels
        slopes = np.empty((3, rows, inner), x.dtype)
        similarity, distance = np.zeros(_ranges(rows)), np.zeros(_ranges(height))
        run_ranges(ssim_rows, rows, ROWS_AT_ONCE, x, y, window, channels, slopes, similarity, ROWS_AT_ONCE)
        gradient = torch.empty_like(rendered, memory_format=torch.contiguous_format)
        scales = -ssim_weight / (rows * inner), (1.0 - ssim_weight) / x.size
        run_ranges(
            gradient_rows, height, ROWS_AT_ONCE, x, y, window, channels, slopes, *scales,
            gradient.numpy().reshape(height, -1), distance, ROWS_AT_ONCE,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        l1, ssim = distance.sum() / x.size, similarity.sum() / (rows * inner)
        return rendered.new_tensor((1.0 - ssim_weight) * l1 + ssim_weight * (1.0 - ssim))

    @staticmethod
    @once_differentiable
    def backward(ctx, v_loss):
        (gradient,) = ctx.saved_tensors
        return gradient * v_loss, None, None


def _torch_loss(rendered: Tensor, photo: Tensor, ssim_weight: float) -> Tensor:
    from pytorch_msssim import ssim

    planes = (picture.permute(2, 0, 1)[None] for picture in (rendered, photo))
    similarity = ssim(*planes, data_range=1.0, size_average=True)
    return (1.0 - ssim_weight) * (rendered - photo).abs().mean() + ssim_weight * (1.0 - similarity)


def _ranges(count: int) -> int:
    return -(-count // ROWS_AT_ONCE)
