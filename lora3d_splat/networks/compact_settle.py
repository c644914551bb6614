"""The last step of the compact network: the decoder's shapes, put where the finest matches say.

The decoder knows the shape of what each view sees better than where the views stand; the matches know the opposite. So
the other view's points are taken into its own camera (resection), and come back in the pose that the matches and both
decoded depths give (`relative_pose`). The correction is rigid but for a little scale, and carries no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.geometry.procrustes import Similarity, weighted_similarity
from lora3d_splat.geometry.relative_pose import NEAREST, Prior, RelativePose, relative_pose
from lora3d_splat.geometry.resection import resect
from lora3d_splat.networks.compact_layers import Window, sightings

DECODED = Prior(depth=0.3, scale=0.02, turn=math.radians(4), shift=0.07)
"""of decoded depths and poses"""
DECODED_FOCAL_SIGMA = 0.1
"""log of the focal length of decoded points"""


@torch.no_grad()
def settling(
    points: tuple[Tensor, Tensor],
    depths: tuple[Tensor, Tensor],
    confidence: Tensor,
    windows: tuple[Window, Window],
    rays: tuple[Tensor, Tensor],
    focal: float,
    guess: RelativePose,
) -> Similarity:
    """The map of the other view's points to their place, both in the reference's frame.

    `points` (B, N, 3) and (B, M, 3) are the decoded ones at the cells of `windows`, `depths` (B, N) and (B, M) the
    guessed ones with which `guess` was found; `confidence` (B, M) weighs the other view's. `rays` (N, 3) and (M, 3) are
    those of the cells at z = 1 for the assumed `focal` length, half a long side being 1.
    """
    reference, other = points
    near = weighted_similarity(rays[1] * depths[1][..., None], other, confidence)
    camera = resect(other, rays[1][:, :2], confidence, (near.rotation, near.translation), DECODED_FOCAL_SIGMA)
    mine = (other - camera.translation[:, None]) @ camera.rotation
    sides = [
        sightings(seen, window, focal * length)
        for seen, window, length in zip(
            (reference, mine), windows, (camera.focal, _focal(reference, rays[0])), strict=True
        )
    ]
    unit = (sides[0].depth.log().median(1).values - depths[0].log().median(1).values).exp()
    starts = [(camera.rotation, camera.translation), (guess.rotation, unit[:, None] * guess.translation)]
    prior = DECODED._replace(rotation=camera.rotation, translation=camera.translation)
    found = relative_pose(*sides, prior, starts)
    scale, rotation = found.log_scale.exp(), found.rotation @ camera.rotation.transpose(1, 2)
    shift = found.translation - scale[:, None] * (rotation @ camera.translation[..., None])[..., 0]
    return Similarity(scale, rotation, shift)


def _focal(points: Tensor, rays: Tensor) -> Tensor:
    """(B,) focal length of points (B, N, 3) in their own camera, relative to that of the rays (N, 3)."""
    seen = points[..., :2] / points[..., 2:].clamp(min=NEAREST)
    return rays[:, :2].square().sum() / (seen * rays[:, :2]).sum((1, 2)).clamp(min=1e-6)


def at_cells(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means (B, N, C) of maps (B, h, w, C) over the cells of a grid."""
    side = points.shape[1] // grid[0]
    return F.avg_pool2d(points.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)
