"""Photographs freed of their lens's radial distortion: what a pinhole camera of the same focal length shows."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from lora3d_splat.geometry.cameras import pixel_grid
from lora3d_splat.geometry.lens import taken_pixels
from lora3d_splat.records import PixelAffine, View

LEAST = 0.5
"""Photograph pixels by which the corners must be off for a distortion to count."""


def notable(view: View, radial: float) -> bool:
    """Whether a distortion moves anything by a visible amount."""
    return abs(radial) / 8 * float(np.hypot(view.width, view.height)) > LEAST


def straight_view(view: View, radial: float) -> View:
    """A view as it was loaded, with `image` and `mask` freed of the distortion.

    Where the pinhole camera sees more than the photograph shows (radial > 0), the rest is masked.
    """
    places = source_pixels(view, view.affine, view.size, radial)
    counts = np.full(view.size, 255, np.uint8) if view.mask is None else view.mask.astype(np.uint8) * 255
    mask = resampled(counts, places, cv2.INTER_NEAREST) > 0
    kept = None if view.mask is None and radial <= 0 else mask
    return replace(view, image=resampled(view.image, places, cv2.INTER_CUBIC), mask=kept, radial=radial)


def source_pixels(view: View, affine: PixelAffine, size: tuple[int, int], radial: float) -> Tensor:
    """(H, W, 2) where the pixels of the pinhole picture lie in the picture as taken; `affine` leads to both from the
    photograph."""
    scale = torch.tensor([affine.scale_x, affine.scale_y], dtype=torch.float64)
    shift = torch.tensor([affine.offset_x, affine.offset_y], dtype=torch.float64)
    straight = (pixel_grid(*size, dtype=torch.float64) - shift) / scale
    return taken_pixels(straight, view, radial) * scale + shift


def resampled(picture: np.ndarray, places: Tensor, how: int) -> np.ndarray:
    """A picture (H, W) or (H, W, 3) at pixels (h, w, 2): masks are black outside, pictures continue their edge."""
    border = cv2.BORDER_CONSTANT if picture.ndim == 2 else cv2.BORDER_REPLICATE
    columns, rows = (places - 0.5).float().numpy().transpose(2, 0, 1)  # OpenCV puts the first pixel's centre at zero
    return cv2.remap(np.ascontiguousarray(picture), columns, rows, how, borderMode=border)
