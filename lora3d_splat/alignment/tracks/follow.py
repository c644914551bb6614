"""A depth map that follows the sparse depths nearest in place and colour, across outlines as well."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .ruler import sample_depth

NEIGHBOURS = 7
"""Marks whose median correction a pixel takes."""
REACH = 0.04
"""Distance in the picture, as a share of its long side, that counts as much as COLOUR."""
COLOUR = 0.1
"""Difference of colours in [0, 1] that counts as much as REACH."""
FADE = 3.0
"""Distance to the nearest mark, in units of the two, at which half of the correction is left; little changes nearer."""


def follow_marks(depth: Tensor, image: Tensor, pixels: Tensor, wanted: Tensor) -> Tensor:
    """(H, W) depth multiplied by what the nearest marks ask for; far from all marks it stays as it is.

    `image` (H, W, 3) uint8; marks: pixels (K, 2) of the map, wanted depths (K,). "Near" joins place and colour, so that
    marks on a house do not move the wall in front of it (a bilateral filter, Tomasi and Manduchi 1998, with a median).
    """
    height, width = depth.shape
    own = sample_depth(depth, pixels)
    usable = (own > 0) & (wanted > 0)
    if int(usable.sum()) < NEIGHBOURS:
        return depth
    column, row = pixels[usable].floor().long().unbind(-1)
    gap = (wanted[usable].double() / own[usable]).log().numpy()
    place = _places(image)
    tree = cKDTree(place[row, column])
    distance, nearest = tree.query(place.reshape(-1, place.shape[-1]), k=NEIGHBOURS)
    correction = np.median(gap[nearest], axis=1) / (1 + (distance[:, 0] / FADE) ** 4)
    return depth * torch.from_numpy(np.exp(correction)).view(height, width).to(depth.dtype)


def _places(image: Tensor) -> np.ndarray:
    """(H, W, 5) place and colour of every pixel, in units of REACH and COLOUR."""
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], dim=-1) / (REACH * max(height, width))
    return torch.cat([place, image.float() / (255 * COLOUR)], dim=-1).numpy()
