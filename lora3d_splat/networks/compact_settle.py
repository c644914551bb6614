"""The last step of the compact network: the decoder's shapes, put where the finest matches say.

The decoder knows the shape of what each view sees better than where the views stand; the matches know the opposite, and
where there is parallax they know whether a shape leans. So the other view's points are taken into its own camera
(resection), both views' depths are laid on the rays of their pixels, and pose and smooth bends of the depths are found
together (`two_view_bending`). Both pictures are taken to be of one lens. No gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.geometry.relative_pose import NEAREST, Prior, RelativePose, Sightings, relative_pose
from lora3d_splat.geometry.resection import resect
from lora3d_splat.geometry.two_view_bending import bending, terms
from lora3d_splat.networks.compact_layers import Window, cell_centres

DECODED = Prior(depth=0.3, scale=0.02, turn=math.radians(4), shift=0.07)
"""of decoded depths and poses"""
DECODED_FOCAL_SIGMA = 0.1
"""log of the focal length of decoded points"""

Grid = tuple[int, int]


class Matched(NamedTuple):
    """What is known of a pair before anything is decoded: matches at the cells of `grids`, rows and columns."""

    grids: tuple[Grid, Grid]
    depths: tuple[Tensor, Tensor]
    """(B, N) and (B, M) guessed z-depth"""
    windows: tuple[Window, Window]
    focal: float
    """assumed, half a long side being 1"""
    pose: RelativePose
    """found with guessed depths and assumed focal length"""


@torch.no_grad()
def settled(reference: Tensor, other: Tensor, confidence: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
    """Both views' points (B, h, w, 3) and (B, k, l, 3), reference frame, from decoded ones.

    `confidence` (B, k, l) weighs the other view's.
    """
    grids, guess, like = matched.grids, matched.pose, confidence
    rays = [pixel_rays(*grid, like, matched.focal) for grid in grids]
    cells = [at_cells(each, grid) for each, grid in zip((reference, other), grids, strict=True)]
    weight = at_cells(confidence[..., None], grids[1])[..., 0]
    near = weighted_similarity(rays[1] * matched.depths[1][..., None], cells[1], weight)
    camera = resect(cells[1], rays[1][:, :2], weight, (near.rotation, near.translation), DECODED_FOCAL_SIGMA)
    mine = (other - camera.translation[:, None, None]) @ camera.rotation[:, None]
    focal = matched.focal * _focal(cells[0], rays[0])
    maps = [reference[..., 2], mine[..., 2]]
    first, second = (
        _sightings(depth, grid, window, focal) for depth, grid, window in zip(maps, grids, matched.windows, strict=True)
    )
    unit = (first.depth.log().median(1).values - matched.depths[0].log().median(1).values).exp()
    starts = [(camera.rotation, camera.translation), (guess.rotation, unit[:, None] * guess.translation)]
    prior = DECODED._replace(rotation=camera.rotation, translation=camera.translation)
    found = bending(relative_pose(first, second, prior, starts), first, second, grids, prior)
    own = [_bent(depth, field, focal) for depth, field in zip(maps, found.fields, strict=True)]
    there = own[1].flatten(1, 2) * found.pose.log_scale.exp()[:, None, None]
    there = there @ found.pose.rotation.transpose(1, 2) + found.pose.translation[:, None]
    return own[0], there.view_as(own[1])


def _sightings(depth: Tensor, grid: Grid, window: Window, focal: Tensor) -> Sightings:
    """Of decoded z-depth (B, h, w) at the cells of a grid, through one lens of focal length (B,)."""
    z = at_cells(depth[..., None], grid)[..., 0].clamp(min=NEAREST)
    place, spread = window.place / focal[:, None, None], window.spread / focal[:, None]
    return Sightings(_seen_through(focal, pixel_rays(*grid, depth)), z, place, spread, window.trust)


def _bent(depth: Tensor, field: Tensor, focal: Tensor) -> Tensor:
    """Points (B, h, w, 3), own camera, of z-depth (B, h, w) that a field (B, TERMS) bends."""
    rows, columns = depth.shape[1:]
    change = (field @ terms(rows, columns, depth.device).T).exp()
    points = _seen_through(focal, pixel_rays(rows, columns, depth)) * (depth.flatten(1) * change)[..., None]
    return points.unflatten(1, (rows, columns))


def _seen_through(focal: Tensor, rays: Tensor) -> Tensor:
    """Rays (B, N, 3) of focal length (B,), z = 1, of those (N, 3) of focal length 1."""
    flat = rays[:, :2] / focal[:, None, None]
    return torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1)


def _focal(points: Tensor, rays: Tensor) -> Tensor:
    """(B,) focal length of points (B, N, 3) in their own camera, relative to that of the rays (N, 3)."""
    seen = points[..., :2] / points[..., 2:].clamp(min=NEAREST)
    return rays[:, :2].square().sum() / (seen * rays[:, :2]).sum((1, 2)).clamp(min=1e-6)


def pixel_rays(rows: int, columns: int, like: Tensor, focal: float = 1.0) -> Tensor:
    """(rows * columns, 3) points at z = 1 on the rays of grid centres; `focal` length with half a long side as 1."""
    centres = cell_centres(rows, columns, like.device) / focal
    return torch.cat([centres, torch.ones_like(centres[:, :1])], dim=-1)


def at_cells(points: Tensor, grid: Grid) -> Tensor:
    """Means (B, N, C) of maps (B, h, w, C) over the cells of a grid."""
    side = points.shape[1] // grid[0]
    return F.avg_pool2d(points.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)
