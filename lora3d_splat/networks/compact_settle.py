"""The last step of the compact network: the decoder's shapes, put where the finest matches say.

The decoder knows the shape of what each view sees better than where the views stand; the matches know the opposite, and
where there is parallax they know how deep every place is. So both orders of a pair are decoded, every view's depths are
taken into its own camera (resection), averaged and laid on the rays of its pixels, both pictures through one lens. Pose
and smooth bends of the depths are found together (`two_view_bending`); then each place moves to where its matches meet
(`local_depth`). Both orders are given the same scene. No gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.geometry.local_depth import local_change
from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.geometry.relative_pose import NEAREST, Prior, RelativePose, Sightings, relative_pose
from lora3d_splat.geometry.resection import resect
from lora3d_splat.geometry.transforms import so3_exp, so3_log
from lora3d_splat.geometry.two_view_bending import bending, terms
from lora3d_splat.networks.compact_layers import Window, cell_centres

DECODED = Prior(depth=0.3, scale=0.02, turn=math.radians(4), shift=0.07)
"""of decoded depths and poses"""
DECODED_FOCAL_SIGMA = 0.1
"""log of the focal length of decoded points"""

Grid = tuple[int, int]
Each = TypeVar("Each")


def exchanged(pair: tuple[Each, Each]) -> tuple[Each, Each]:
    """The second one first."""
    return pair[1], pair[0]


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

    def swapped(self) -> Matched:
        """With the views exchanged."""
        grids, depths, windows = exchanged(self.grids), exchanged(self.depths), exchanged(self.windows)
        return Matched(grids, depths, windows, self.focal, self.pose.inverted())


class Decoded(NamedTuple):
    """Points and confidence of a pair, reference frame."""

    reference: Tensor
    """(B, h, w, 3)"""
    other: Tensor
    """(B, k, l, 3)"""
    confidence_reference: Tensor
    """(B, h, w)"""
    confidence_other: Tensor
    """(B, k, l)"""


class Apart(NamedTuple):
    """What either view of a pair sees in its own camera, and where the second one stands."""

    log_depths: tuple[Tensor, Tensor]
    """(B, h, w) and (B, k, l) of the z-depth"""
    log_confidence: tuple[Tensor, Tensor]
    rotation: Tensor
    """(B, 3, 3) that, with the translation, carries the second view's points to the first"""
    translation: Tensor
    """(B, 3)"""
    focal: Tensor
    """(B,) half a long side being 1"""

    def swapped(self) -> Apart:
        """With the views exchanged."""
        back = self.rotation.transpose(1, 2)
        shift = -(back @ self.translation[..., None])[..., 0]
        return Apart(exchanged(self.log_depths), exchanged(self.log_confidence), back, shift, self.focal)

    def in_unit_of(self, other: Apart) -> Apart:
        """With the depths of another look at the same views, up to their differences."""
        gaps = [(a - b).flatten(1) for a, b in zip(other.log_depths, self.log_depths, strict=True)]
        unit = torch.cat(gaps, dim=1).median(1).values
        first, second = (log + unit[:, None, None] for log in self.log_depths)
        return self._replace(log_depths=(first, second), translation=self.translation * unit.exp()[:, None])

    def averaged(self, other: Apart) -> Apart:
        """With another look at the same views, in the same unit; depths by their confidence."""
        shares = [torch.sigmoid(2 * (b - a)) for a, b in zip(self.log_confidence, other.log_confidence, strict=True)]
        first, second = map(torch.lerp, self.log_depths, other.log_depths, shares)
        turn = so3_exp(so3_log(other.rotation @ self.rotation.transpose(1, 2)) / 2)
        shift, focal = (self.translation + other.translation) / 2, (self.focal * other.focal).sqrt()
        return Apart((first, second), self.log_confidence, turn @ self.rotation, shift, focal)


@torch.no_grad()
def settled(there: Decoded, back: Decoded, matched: Matched) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Points (B, h, w, 3) of the reference and (B, k, l, 3) of the other view, from both orders of a pair: in the frame
    of the first view (`there`), and of the second (`back`, whose reference is the second view)."""
    one = _apart(there, matched)
    two = _apart(back, matched.swapped()).swapped().in_unit_of(one)
    known = one.averaged(two)
    maps = [log.exp() for log in known.log_depths]
    first, second = (
        _sightings(depth, grid, window, known.focal)
        for depth, grid, window in zip(maps, matched.grids, matched.windows, strict=True)
    )
    length = (first.depth.log().median(1).values - matched.depths[0].log().median(1).values).exp()
    guessed = matched.pose.rotation, length[:, None] * matched.pose.translation
    starts = [(one.rotation, one.translation), (two.rotation, two.translation), guessed]
    prior = DECODED._replace(rotation=known.rotation, translation=known.translation)
    found = bending(relative_pose(first, second, prior, starts), first, second, matched.grids, prior)
    sides = zip(maps, found.fields, (first, second), matched.grids, (True, False), strict=True)
    own, theirs = (_points(_bent(*side[:4], found.pose, side[4]), known.focal) for side in sides)
    theirs = theirs * found.pose.log_scale.exp()[:, None, None, None]
    R, t = found.pose.rotation[:, None], found.pose.translation[:, None, None]
    return (own, theirs @ R.transpose(2, 3) + t), (theirs, (own - t) @ R)


def _apart(decoded: Decoded, matched: Matched) -> Apart:
    """One order of a pair: both views' depths, each in its own camera."""
    rays = [pixel_rays(*grid, decoded.reference, matched.focal) for grid in matched.grids]
    cells = [at_cells(each, grid) for each, grid in zip(decoded[:2], matched.grids, strict=True)]
    weight = at_cells(decoded.confidence_other[..., None], matched.grids[1])[..., 0]
    near = weighted_similarity(rays[1] * matched.depths[1][..., None], cells[1], weight)
    camera = resect(cells[1], rays[1][:, :2], weight, (near.rotation, near.translation), DECODED_FOCAL_SIGMA)
    mine = (decoded.other - camera.translation[:, None, None]) @ camera.rotation[:, None]
    depths = [points[..., 2].clamp(min=NEAREST).log() for points in (decoded.reference, mine)]
    confidence = decoded.confidence_reference.log(), decoded.confidence_other.log()
    focal = matched.focal * _focal(cells[0], rays[0])
    return Apart((depths[0], depths[1]), confidence, camera.rotation, camera.translation, focal)


def _sightings(depth: Tensor, grid: Grid, window: Window, focal: Tensor) -> Sightings:
    """Of decoded z-depth (B, h, w) at the cells of a grid, through one lens of focal length (B,)."""
    z = at_cells(depth[..., None], grid)[..., 0].clamp(min=NEAREST)
    place, spread = window.place / focal[:, None, None], window.spread / focal[:, None]
    return Sightings(_seen_through(focal, pixel_rays(*grid, depth)), z, place, spread, window.trust)


def _bent(depth: Tensor, field: Tensor, side: Sightings, grid: Grid, pose: RelativePose, inverse: bool) -> Tensor:
    """z-depth (B, h, w) of one view, bent by its field (B, TERMS) and then place by place."""
    moved = replace(side, depth=side.depth * (field @ terms(*grid, depth.device).T).exp())
    local = local_change(pose, moved, inverse, grid).unflatten(1, grid)[:, None]
    local = F.interpolate(local, size=depth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    rows, columns = depth.shape[1:]
    return depth * ((field @ terms(rows, columns, depth.device).T).view_as(depth) + local).exp()


def _points(depth: Tensor, focal: Tensor) -> Tensor:
    """(B, h, w, 3), own camera, of z-depth (B, h, w) through lenses of focal length (B,)."""
    rows, columns = depth.shape[1:]
    return _seen_through(focal, pixel_rays(rows, columns, depth)).unflatten(1, (rows, columns)) * depth[..., None]


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
