"""Radial distortion of a photograph, about its centre: between the pixels as taken and those of a pinhole camera.

p_taken = c + (p - c) (1 + r |p - c|^2 / d^2), with c the centre and d the diagonal of the photograph. COLMAP's and
OpenCV's k1 is that of slopes, r = k1 d^2 / f^2; r alone does not change with the size of the picture.
"""

from __future__ import annotations

from torch import Tensor

from ..records import View

STEPS = 12
"""Fixed-point steps of the inverse; each gains about one digit for the lenses of cameras and phones."""


def radial_of_slopes(k1: float, focal: float, view: View) -> float:
    """r of a lens whose distortion of slopes is `k1`, `focal` in photograph pixels."""
    return k1 * (view.width**2 + view.height**2) / focal**2


def slopes_of_radial(radial: float, focal: float, view: View) -> float:
    """Inverse of `radial_of_slopes`."""
    return radial * focal**2 / (view.width**2 + view.height**2)


def taken_pixels(pixels: Tensor, view: View, radial: float) -> Tensor:
    """Photograph pixels (..., 2) as taken, of those of the pinhole picture."""
    offset = pixels - _centre(pixels, view)
    return _centre(pixels, view) + offset * _stretch(offset, view, radial)


def straight_pixels(pixels: Tensor, view: View, radial: float) -> Tensor:
    """Inverse of `taken_pixels`."""
    taken = pixels - _centre(pixels, view)
    offset = taken
    for _ in range(STEPS if radial else 0):
        offset = taken / _stretch(offset, view, radial).clamp(0.2, 5.0)
    return _centre(pixels, view) + offset


def network_pixels(view: View, pixels: Tensor) -> Tensor:
    """(K, 2) network pixels of photograph pixels (K, 2) as taken."""
    affine = view.affine
    scale = pixels.new_tensor([affine.scale_x, affine.scale_y])
    return straight_pixels(pixels, view, view.radial) * scale + pixels.new_tensor([affine.offset_x, affine.offset_y])


def _centre(pixels: Tensor, view: View) -> Tensor:
    return pixels.new_tensor([view.width / 2, view.height / 2])


def _stretch(offset: Tensor, view: View, radial: float) -> Tensor:
    return 1 + radial * offset.square().sum(-1, keepdim=True) / (view.width**2 + view.height**2)
