"""SSIM as a training loss: one separable filter over everything that is needed."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


class SsimLoss(torch.nn.Module):
    """Mean structural similarity (Wang et al. 2004) of two pictures (H, W, 3) in [0, 1], valid windows only.

    All five filtered planes go through one separable convolution. No buffers: the window must not enter checkpoints.
    """

    def forward(self, rendered: Tensor, photo: Tensor) -> Tensor:
        """Scalar similarity in [-1, 1]; gradients reach `rendered`. Pictures smaller than the window score 1 - L1."""
        if min(rendered.shape[:2]) < WINDOW:
            return 1 - (rendered - photo).abs().mean()
        x, y = (picture.permute(2, 0, 1) for picture in (rendered, photo))
        mean_x, mean_y, xx, yy, xy = _filter(torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)).unflatten(
            0, (5, 3)
        )
        variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        return (luminance * (2 * covariance + C2) / (variance_x + variance_y + C2)).mean()


def _filter(planes: Tensor) -> Tensor:
    """Gaussian filter of (P, H, W), valid part only, as two one-dimensional convolutions."""
    offset = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SIGMA**2))
    window = window / window.sum()
    rows = functional.conv2d(planes[:, None], window.reshape(1, 1, 1, -1))
    return functional.conv2d(rows, window.reshape(1, 1, -1, 1))[:, 0]
