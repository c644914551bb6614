"""From the solved poses to full resolution: the best depth of every pixel, the weight of every prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.transforms import transform_points
from ..records import PairPrediction, View
from .observations import Voting, centred_pixels, sides_of, view_mask
from .robust import SMOOTHING, Kernel, calibrated_weights, kernel_slope
from .variables import Variables

PLAIN_ROUNDS, ROBUST_ROUNDS = 5, 6
"""Re-weightings per pixel: first under the unsquared norm alone, which starts the robust ones safely."""
HOPELESS = 1e12
"""Stands for the residual of a pair that has run away."""
CHUNK = 1 << 14
"""Pixels fitted at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class DenseView:
    """One view at full resolution, float32; K is the number of pairs that see it."""

    depth: Tensor
    """(H, W), zero where masked"""
    weights: Tensor
    """(K, H, W) calibrated weights w"""
    blocks: tuple[int, ...]
    """the K blocks (2 * pair + side) in order"""
    votes: float
    """sum of the log-confidences C"""
    cost: float
    """sum of C times the residual norm, scene units"""


def dense_view(
    index: int,
    view: View,
    principal_point: Tensor,
    predictions: Sequence[PairPrediction],
    voting: Voting,
    variables: Variables,
    mu: float,
    kernel: Kernel,
) -> DenseView:
    """Minimise the objective over each pixel's depth with everything else fixed, in closed-form re-weightings."""
    blocks = [
        2 * number + side
        for number, prediction in enumerate(predictions)
        for side, owner in enumerate((prediction.pair.reference, prediction.pair.other))
        if owner == index
    ]
    mask = view_mask(view)
    rays = _rays(view, principal_point, variables, index)
    depth, weights = rays.new_zeros(len(rays)), rays.new_zeros(len(blocks), len(rays))
    votes = cost = 0.0
    for start in range(0, len(rays), CHUNK):
        part = slice(start, start + CHUNK)
        reach, vote = _gather(blocks, predictions, voting, variables, index, part, None if mask is None else mask[part])
        depth[part], residual = _fit_depth(reach, rays[part], vote, mu, kernel)
        residual = residual.nan_to_num(HOPELESS, HOPELESS).clamp_max(HOPELESS)
        weights[:, part] = calibrated_weights(kernel, residual, vote, mu)
        votes, cost = votes + float(vote.double().sum()), cost + float((vote * residual).double().sum())
    if mask is not None:
        depth = depth * mask
    return DenseView(depth.view(view.size), weights.view(len(blocks), *view.size), tuple(blocks), votes, cost)


def _gather(
    blocks: Sequence[int],
    predictions: Sequence[PairPrediction],
    voting: Voting,
    variables: Variables,
    view: int,
    part: slice,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Points (K, N, 3) relative to the view's camera centre, world axes, and votes (K, N) of a stretch of pixels."""
    reaches, votes = [], []
    for block in blocks:
        _, points, confidence = sides_of(predictions[block // 2])[block % 2]
        cloud = points.reshape(-1, 3)[part].float()
        frame = variables.T_world_pair[block // 2].clone()
        frame[:3, :3] *= variables.log_scale[block // 2].exp()
        frame[:3, 3] -= variables.T_world_view[view, :3, 3]
        votes.append(voting.votes(confidence.reshape(-1)[part].float(), cloud, mask))
        reaches.append(transform_points(frame.float(), cloud.nan_to_num(0.0, 0.0, 0.0)))
    return torch.stack(reaches), torch.stack(votes)


def _fit_depth(reach: Tensor, rays: Tensor, confidence: Tensor, mu: float, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Depth (N,) and residual norms (K, N) of points (K, N, 3) relative to the camera and rays (N, 3), world axes."""
    # A pixel that nobody is sure of still needs a depth: there all pairs count alike.
    votes = torch.where(confidence.sum(0) > 0, confidence, torch.ones_like(confidence))
    length = (rays * rays).sum(-1)
    along = (reach * rays).sum(-1) / length
    across = ((reach - along[..., None] * rays) ** 2).sum(-1)
    depth = (votes * along).sum(0) / votes.sum(0)
    residual = _norm(depth, along, across, length)
    for step in range(PLAIN_ROUNDS + ROBUST_ROUNDS):
        shape = kernel if step >= PLAIN_ROUNDS else "none"
        irls = kernel_slope(shape, residual, votes, mu) / (residual + SMOOTHING * mu)
        depth = (irls * along).sum(0) / irls.sum(0).clamp_min(1e-30)
        residual = _norm(depth, along, across, length)
    return depth.clamp_min(0.0), residual


def _norm(depth: Tensor, along: Tensor, across: Tensor, length: Tensor) -> Tensor:
    return ((along - depth) ** 2 * length + across).sqrt()


def _rays(view: View, principal_point: Tensor, variables: Variables, index: int) -> Tensor:
    slopes = centred_pixels(view.size, principal_point) / variables.log_focal[index].exp()
    rays = torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=-1)
    return (rays @ variables.T_world_view[index, :3, :3].T).float()
