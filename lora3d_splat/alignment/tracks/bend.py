"""A depth map bent to meet sparse points: scaled, and multiplied by a smooth field."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from .ruler import sample_depth

GRID = (16, 20)
"""Control values of the field, rows and columns, between which it is bilinear."""
STIFFNESS = 0.1
"""Weight of the field's second differences against a mark each."""
SLACK = 0.05
"""Log depth by which a mark may miss the field before it loses its say: it may lie beside an outline."""
ROUNDS = 8


def bend_depth(depth: Tensor, pixels: Tensor, wanted: Tensor) -> Tensor:
    """(H, W) depth times exp(field) with log(wanted / depth) met at the marks: pixels (K, 2), wanted depths (K,).

    Without marks the depth is returned as it is.
    """
    height, width = depth.shape
    own = sample_depth(depth, pixels)
    usable = own > 0
    if not bool(usable.any()):
        return depth
    gap = (wanted[usable] / own[usable]).log()
    place = pixels[usable] / torch.tensor([width, height], dtype=torch.float64) * 2 - 1
    field = _fit(place, gap)
    full = functional.interpolate(field[None, None], size=(height, width), mode="bilinear", align_corners=True)[0, 0]
    return (depth.double() * full.exp()).to(depth.dtype)


def _fit(place: Tensor, gap: Tensor) -> Tensor:
    """(rows, columns) control values that meet gaps (K,) at places (K, 2) in [-1, 1], robustly and smoothly."""
    design = _bilinear(place)
    smooth = STIFFNESS * _second_differences()
    # Marks crowd on texture; each cell of the grid counts for at most a few of them.
    crowd = design.sum(0)
    share = 1.0 / (design @ crowd).clamp_min(1.0).sqrt()
    weight = share
    values = torch.zeros(design.shape[1], dtype=torch.float64)
    centre = gap.median()
    for _ in range(ROUNDS):
        normal = design.T @ (weight[:, None] * design) + smooth.T @ smooth
        normal += 1e-6 * torch.eye(len(normal), dtype=torch.float64)
        values = torch.linalg.solve(normal, design.T @ (weight * (gap - centre)))
        miss = (gap - centre - design @ values).abs()
        weight = share / (1 + (miss / SLACK) ** 2)
    return (values + centre).view(GRID)


def _bilinear(place: Tensor) -> Tensor:
    """(K, rows * columns) weights of the control values at places in [-1, 1]."""
    rows, columns = GRID
    eye = torch.eye(rows * columns, dtype=torch.float64).view(rows * columns, 1, rows, columns)
    grid = place.clamp(-1, 1)[None, :, None].expand(rows * columns, -1, -1, -1)
    return functional.grid_sample(eye, grid, mode="bilinear", align_corners=True)[:, 0, :, 0].T


def _second_differences() -> Tensor:
    """(D, rows * columns): second differences along both axes and the mixed one."""
    rows, columns = GRID
    eye = torch.eye(rows * columns, dtype=torch.float64).view(rows, columns, -1)
    down = eye[2:] - 2 * eye[1:-1] + eye[:-2]
    along = eye[:, 2:] - 2 * eye[:, 1:-1] + eye[:, :-2]
    mixed = eye[1:, 1:] - eye[:-1, 1:] - eye[1:, :-1] + eye[:-1, :-1]
    return torch.cat([part.reshape(-1, rows * columns) for part in (down, along, mixed)])
