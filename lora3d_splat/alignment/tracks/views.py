"""Photographs in the units of a bundle adjustment: relative to their centre, over their diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...matching import LONG_SIDE
from ...records import View


def reduction(view: View) -> float:
    """Photograph pixels per pixel of the picture in which features were sought."""
    return max(1.0, max(view.width, view.height) / LONG_SIDE)


def diagonals(views: Sequence[View]) -> np.ndarray:
    """(V,) photograph pixels."""
    return np.array([np.hypot(view.width, view.height) for view in views])


def to_image(views: Sequence[View], pixels: np.ndarray, view: np.ndarray) -> np.ndarray:
    """(M, 2) image coordinates of photograph pixels (M, 2) of the views (M,)."""
    centre = np.array([[item.width / 2, item.height / 2] for item in views])
    return (pixels - centre[view]) / diagonals(views)[view, None]


def mark_sigma(views: Sequence[View]) -> np.ndarray:
    """(V,) standard deviation of a keypoint in image units: half a pixel of the picture that was searched."""
    return 0.5 * np.array([reduction(view) for view in views]) / diagonals(views)
