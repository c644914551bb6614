"""From the solved poses to full resolution: the best depth of every pixel, the weight of every prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.transforms import transform_points
from ..records import PairPrediction, View
from .observations import centred_pixels
from .robust import SMOOTHING, robust_weights
from .variables import Variables

PLAIN_ROUNDS, ROBUST_ROUNDS = 5, 6
"""Re-weightings per pixel: first under the unsquared norm alone, which starts the robust ones safely."""


@dataclass(frozen=True)
class DenseView:
    """One view at full resolution, float32; K is the number of pairs that see it."""

    depth: Tensor
    """(H, W)"""
    weights: Tensor
    """(K, H, W) calibrated weights w"""
    residual: Tensor
    """(K, H, W) residual norms, scene units"""
    confidence: Tensor
    """(K, H, W) masked log-confidence C"""
    blocks: tuple[int, ...]
    """the K blocks (2 * pair + side) in order"""


def dense_view(
    index: int,
    view: View,
    predictions: Sequence[PairPrediction],
    confidences: Sequence[tuple[Tensor, Tensor]],
    variables: Variables,
    mu: float,
    robust: bool,
) -> DenseView:
    """Minimise the objective over each pixel's depth with everything else fixed, in closed-form re-weightings."""
    blocks = [
        2 * number + side
        for number, prediction in enumerate(predictions)
        for side, owner in enumerate((prediction.pair.reference, prediction.pair.other))
        if owner == index
    ]
    reach = torch.stack([_reach(predictions, variables, block, index) for block in blocks])
    confidence = torch.stack([confidences[block // 2][block % 2].flatten() for block in blocks]).float()
    rays = _rays(view, variables, index)
    depth, residual = _fit_depth(reach, rays, confidence, mu, robust)
    weights = robust_weights(residual, confidence, mu) if robust else confidence
    shape = (len(blocks), *view.size)
    return DenseView(
        depth.view(view.size), weights.view(shape), residual.view(shape), confidence.view(shape), tuple(blocks)
    )


def _fit_depth(reach: Tensor, rays: Tensor, confidence: Tensor, mu: float, robust: bool) -> tuple[Tensor, Tensor]:
    """Depth (N,) and residual norms (K, N) of points (K, N, 3) relative to the camera and rays (N, 3), world axes."""
    # A pixel that nobody is sure of still needs a depth: there all pairs count alike.
    votes = torch.where(confidence.sum(0) > 0, confidence, torch.ones_like(confidence))
    length = (rays * rays).sum(-1)
    along = (reach * rays).sum(-1) / length
    across = ((reach - along[..., None] * rays) ** 2).sum(-1)
    depth = (votes * along).sum(0) / votes.sum(0)
    residual = _norm(depth, along, across, length)
    for step in range(PLAIN_ROUNDS + ROBUST_ROUNDS):
        scale = mu if robust and step >= PLAIN_ROUNDS else math.inf
        irls = robust_weights(residual, votes, scale) / (residual + SMOOTHING * mu)
        depth = (irls * along).sum(0) / irls.sum(0).clamp_min(1e-30)
        residual = _norm(depth, along, across, length)
    return depth.clamp_min(0.0), residual


def _norm(depth: Tensor, along: Tensor, across: Tensor, length: Tensor) -> Tensor:
    return ((along - depth) ** 2 * length + across).sqrt()


def _reach(predictions: Sequence[PairPrediction], variables: Variables, block: int, view: int) -> Tensor:
    """(H * W, 3) points of one block relative to the view's camera centre, world axes."""
    prediction = predictions[block // 2]
    cloud = prediction.points_other if block % 2 else prediction.points_reference
    frame = variables.T_world_pair[block // 2].clone()
    frame[:3, :3] *= variables.log_scale[block // 2].exp()
    frame[:3, 3] -= variables.T_world_view[view, :3, 3]
    return transform_points(frame.float(), cloud.reshape(-1, 3).float())


def _rays(view: View, variables: Variables, index: int) -> Tensor:
    slopes = centred_pixels(view) / variables.log_focal[index].exp()
    rays = torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=-1)
    return (rays @ variables.T_world_view[index, :3, :3].T).float()
