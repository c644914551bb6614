"""Co-visibility: which pixels of a view are shown already by a better view (InstantSplat, section 3.2 of its paper).

InstantSplat compares the depth in the better view's own camera after a min-max normalisation. Here the better view's
points are projected, and the depth they have in the view at hand is compared relatively; points behind it never match.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.geometry.projection import project
from lora3d_splat.geometry.transforms import invert_rigid, transform_points


@dataclass(frozen=True)
class SeedView:
    """One registered view at network resolution."""

    points_world: Tensor
    """(H, W, 3) float32"""
    depth: Tensor
    """(H, W) z-depth, scene units"""
    mask: Tensor
    """(H, W) bool: pixels that may become points"""
    T_world_camera: Tensor
    """(4, 4) float32"""
    focal: float
    """network pixels"""
    principal_point: Tensor
    """(2,) network pixels"""
    rgb: Tensor
    """(H, W, 3) uint8"""
    confidence: Tensor
    """(H, W) calibrated log-confidence"""
    footprint: Tensor
    """(H, W) side of a pixel at its depth, scene units"""


def novel_pixels(views: tuple[SeedView, ...], tolerance: float) -> tuple[Tensor, ...]:
    """Per view, best first, the (H, W) mask of pixels that no earlier view's kept points explain.

    The first view keeps all it has. A tolerance of 0 keeps everything.
    """
    if tolerance == 0:
        return tuple(view.mask for view in views)
    kept: list[Tensor] = []
    earlier = torch.empty(0, 3)
    for view in views:
        novel = view.mask & ~explained(view, earlier, tolerance)
        kept.append(novel)
        earlier = torch.cat([earlier, view.points_world[novel]])
    return tuple(kept)


def explained(view: SeedView, points_world: Tensor, tolerance: float) -> Tensor:
    """(H, W) bool: pixels onto which one of the points (N, 3) projects at the pixel's own depth."""
    height, width = view.depth.shape
    shown = torch.zeros(height, width, dtype=torch.bool)
    if len(points_world) == 0:
        return shown
    points_camera = transform_points(invert_rigid(view.T_world_camera), points_world)
    pixels, depth = project(points_camera, view.focal, view.principal_point)
    column, row = pixels.nan_to_num(nan=-1.0).floor().clamp(-1, 1e6).long().unbind(-1)
    inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row, depth = column[inside], row[inside], depth[inside]
    own = view.depth[row, column]
    same = (own > 0) & ((depth - own).abs() < tolerance * own)
    shown[row[same], column[same]] = True
    return shown
