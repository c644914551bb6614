"""SIFT features of a photograph with root-SIFT descriptors (Lowe 2004, Arandjelovic and Zisserman 2012)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from ..geometry.lens import network_pixels
from ..images.load import open_upright
from ..records import View

LONG_SIDE = 1600
"""Photographs are reduced to this before features are sought; more brings noise and time, not accuracy."""
MAXIMUM = 5000
"""Features per view, strongest first."""
CONTRAST = 0.014
"""A third of OpenCV's default: weak texture counts too, verification removes what is noise."""


@dataclass(frozen=True)
class Features:
    """N keypoints of one view."""

    pixels: np.ndarray
    """(N, 2) float64 photograph pixels, corner-based"""
    size: np.ndarray
    """(N,) float64 diameter of the region in photograph pixels: its noise grows with it"""
    descriptors: np.ndarray
    """(N, 128) float32, unit length"""


def detect(view: View) -> Features:
    """Keypoints of a view's photograph; their order depends on the photograph alone."""
    photo = open_upright(view.path).convert("L")
    ratio = min(1.0, LONG_SIDE / max(photo.size))
    if ratio < 1.0:
        photo = photo.resize([max(1, round(side * ratio)) for side in photo.size], Image.Resampling.LANCZOS)
    finder = cv2.SIFT.create(nfeatures=MAXIMUM, contrastThreshold=CONTRAST, enable_precise_upscale=True)
    keypoints, descriptors = finder.detectAndCompute(np.asarray(photo), np.full(photo.size[::-1], 255, np.uint8))
    if descriptors is None or not keypoints:
        return Features(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 128), np.float32))
    scale = np.array([view.width / photo.width, view.height / photo.height])
    # OpenCV puts the first pixel's centre at zero.
    pixels = (np.array([keypoint.pt for keypoint in keypoints]) + 0.5) * scale
    size = np.array([keypoint.size for keypoint in keypoints]) * scale.mean()
    taking_part = _taking_part(view, pixels)
    pixels, size, descriptors = pixels[taking_part], size[taking_part], descriptors[taking_part]
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
    return Features(pixels, size, root.astype(np.float32))


def _taking_part(view: View, pixels: np.ndarray) -> np.ndarray:
    """(N,) whether the view's mask lets keypoints at photograph pixels (N, 2) take part; outside the crop all do."""
    if view.mask is None:
        return np.ones(len(pixels), bool)
    column, row = network_pixels(view, torch.from_numpy(pixels)).floor().long().numpy().T
    height, width = view.mask.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return ~inside | view.mask[row.clip(0, height - 1), column.clip(0, width - 1)]
