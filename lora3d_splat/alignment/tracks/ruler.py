"""Pointmaps as a ruler: how far away what a keypoint shows is, up to one factor per view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...geometry.cameras import photograph_to_network_focal, principal_point_of
from ...geometry.lens import network_pixels
from ...records import AlignedScene, PairPrediction, View
from ..variables import USUAL_FOCAL, diagonal


def own_depth(scene: AlignedScene, predictions: Sequence[PairPrediction], index: int) -> Tensor:
    """(H, W) depth of a view as its own pairs say it: their median after each was divided by its own; arbitrary unit.

    The aligned depth where no pair leads from the view. Where an alignment was far off, what other views said of this
    one has spoilt the aligned depth, but not this.
    """
    led = [item.points_reference[..., 2] for item in predictions if item.pair.reference == index]
    if not led:
        return scene.depth[index]
    return torch.stack([depth / depth.median() for depth in led]).median(dim=0).values.clamp_min(0)


def unaligned(views: Sequence[View], predictions: Sequence[PairPrediction]) -> AlignedScene:
    """Views that no alignment has placed, with their own depths: what tracks can still be settled on.

    Nothing is registered; a usual focal length stands in.
    """
    poses = torch.eye(4, dtype=torch.float64).repeat(len(views), 1, 1)
    focal = [USUAL_FOCAL * photograph_to_network_focal(diagonal(view), view.affine) for view in views]
    centre = torch.tensor([principal_point_of(view) for view in views], dtype=torch.float64)
    blank = AlignedScene(
        (False,) * len(views), ("neither pointmaps nor features place it",) * len(views), poses,
        torch.tensor(focal, dtype=torch.float64), centre, tuple(torch.zeros(view.size) for view in views),
        (), poses[:0], torch.zeros(0, dtype=torch.float64), 0.0, 0.0,
    )  # fmt: skip
    return replace(blank, depth=tuple(own_depth(blank, predictions, index) for index in range(len(views))))


def sample_depth(depth: Tensor, pixels: Tensor) -> Tensor:
    """(K,) depth of the pixel that each of (K, 2) network pixels falls into; 0 outside."""
    column, row = pixels.floor().long().unbind(-1)
    inside = (column >= 0) & (column < depth.shape[1]) & (row >= 0) & (row < depth.shape[0])
    values = depth[row.clamp(0, depth.shape[0] - 1), column.clamp(0, depth.shape[1] - 1)].double()
    return torch.where(inside, values, torch.zeros_like(values))


def ruler_depths(view: View, depth: Tensor, pixels: np.ndarray) -> np.ndarray:
    """(K,) depth at photograph pixels (K, 2) of a view whose depth map is given; NaN where it says nothing."""
    values = sample_depth(depth, network_pixels(view, torch.from_numpy(np.asarray(pixels, dtype=np.float64)))).numpy()
    return np.where(values > 0, values, np.nan)
