"""Registration of corresponding points in closed form: weighted, robust, and of camera trajectories."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .transforms import similarity, transform_points


class Similarity(NamedTuple):
    """p -> scale * rotation @ p + translation, batched over leading axes."""

    scale: Tensor
    """(...)"""
    rotation: Tensor
    """(..., 3, 3)"""
    translation: Tensor
    """(..., 3)"""

    @property
    def matrix(self) -> Tensor:
        """(..., 4, 4)"""
        return similarity(self.scale, self.rotation, self.translation)

    def apply(self, points: Tensor) -> Tensor:
        """Transformed points (..., N, 3)."""
        return transform_points(self.matrix, points)


def weighted_similarity(source: Tensor, target: Tensor, weights: Tensor, with_scale: bool = True) -> Similarity:
    """The similarity minimising sum w |s R source + t - target|^2 (Umeyama 1991), scale 1 if not `with_scale`.

    `source`, `target` (..., N, 3), `weights` (..., N) >= 0. Batches whose weights are all zero count every point.
    """
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(
        total > 0, weights / total.clamp_min(torch.finfo(weights.dtype).tiny), 1.0 / weights.shape[-1]
    )
    centre_source, centre_target = ((weights[..., None] * points).sum(-2) for points in (source, target))
    arms_source, arms_target = source - centre_source[..., None, :], target - centre_target[..., None, :]
    covariance = (weights[..., None] * arms_target).transpose(-1, -2) @ arms_source
    rotation, spread = _nearest_rotation(covariance)
    scale = torch.ones_like(spread)
    if with_scale:
        variance = (weights * arms_source.square().sum(-1)).sum(-1)
        # A collapsed source has no scale; a tiny positive one stays finite and harmless.
        scale = (spread / variance.clamp_min(torch.finfo(variance.dtype).tiny)).clamp_min(1e-9)
    translation = centre_target - scale[..., None] * (rotation @ centre_source[..., None])[..., 0]
    return Similarity(scale, rotation, translation)


def _nearest_rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation R (..., 3, 3) that maximises trace(R^T covariance), and that trace (...)."""
    left, singular, right = torch.linalg.svd(covariance)
    # Turning the weakest axis around keeps the result a rotation where the best orthogonal map is a reflection.
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.where(torch.linalg.det(left @ right) < 0, -1.0, 1.0)
    return (left * sign[..., None, :]) @ right, (singular * sign).sum(-1)


def robust_similarity(
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    tolerance: Tensor | float,
    with_scale: bool = True,
    rounds: int = 15,
    start: Similarity | None = None,
) -> tuple[Similarity, Tensor]:
    """Similarity under the Geman-McClure-like loss c tol r / (tol + r) of LoRA3D, by re-weighted Procrustes.

    `tolerance` (...) is the residual, in target units, at which a point keeps a quarter of its weight. It is lowered
    from the residual of the start (least squares where none is given), so that outliers do not trap the fit.
    Returns the similarity and the residual norms (..., N), target units.
    """
    tolerance = torch.as_tensor(tolerance, dtype=target.dtype, device=target.device)
    fit = weighted_similarity(source, target, weights, with_scale) if start is None else start
    residual = (fit.apply(source) - target).norm(dim=-1)
    for step in range(rounds):
        width = torch.maximum(tolerance, weighted_mean(residual, weights) * 0.5 ** min(step, 8))[..., None]
        # w / r turns the unsquared norm into least squares; the floor keeps exact fits finite.
        irls = weights / (1 + residual / width) ** 2 / (residual + 1e-3 * width + 1e-12)
        fit = weighted_similarity(source, target, irls, with_scale)
        residual = (fit.apply(source) - target).norm(dim=-1)
    return fit, residual


def sampled_similarity(
    source: Tensor, target: Tensor, weights: Tensor, tolerance: Tensor | float, draws: int = 32, judges: int = 128
) -> tuple[Similarity, Tensor]:
    """`robust_similarity` of batches (B, N, 3) from the best of many small samples, which half of outliers cannot trap.

    Each draw fits four points with a vote; the least robust loss on `judges` points wins. The draws are the same at
    every call, so equal inputs give equal results. `tolerance` is () or (B,).
    """
    tolerance = torch.as_tensor(tolerance, dtype=target.dtype, device=target.device).expand(len(source))
    uniform = torch.rand(draws, 4, generator=torch.Generator().manual_seed(0)).to(source)
    places = _voting_places(weights, uniform.flatten())
    fits = weighted_similarity(
        *(_taken(points, places).unflatten(1, (draws, 4)) for points in (source, target)),
        torch.ones_like(places, dtype=source.dtype).unflatten(1, (draws, 4)),
    )
    places = _voting_places(weights, torch.arange(judges).to(source) / judges)
    gap = fits.apply(_taken(source, places)[:, None]) - _taken(target, places)[:, None]
    loss = 1 / (1 + 3 * tolerance[:, None, None] / gap.norm(dim=-1).clamp_min(1e-12))
    best = (loss.mean(-1)).argmin(dim=1)
    row = torch.arange(len(source), device=source.device)
    start = Similarity(fits.scale[row, best], fits.rotation[row, best], fits.translation[row, best])
    first = (start.apply(source) - target).norm(dim=-1)
    # What the sample calls outliers sits out the first rounds, whatever confidence it carries.
    near = weights / (1 + first / (5 * tolerance[:, None])) ** 2
    warm, _ = robust_similarity(source, target, near, tolerance, rounds=5, start=start)
    gap = (warm.apply(source) - target).norm(dim=-1)
    return robust_similarity(
        source, target, weights / (1 + gap / (5 * tolerance[:, None])) ** 2, tolerance, rounds=5, start=warm
    )


def _voting_places(weights: Tensor, fractions: Tensor) -> Tensor:
    """(B, M) indices of points with a vote, at the given fractions (M,) of the way through them."""
    order = torch.argsort((weights <= 0).to(torch.int8), dim=1, stable=True)
    filled = (weights > 0).sum(1, keepdim=True).clamp_min(1)
    return order.gather(1, (fractions * filled).long().clamp_max(weights.shape[1] - 1))


def _taken(points: Tensor, places: Tensor) -> Tensor:
    """(B, M, 3) the points (B, N, 3) at the places (B, M)."""
    return points.gather(1, places[..., None].expand(-1, -1, 3))


def align_trajectories(estimated: Tensor, true: Tensor) -> Similarity:
    """Sim(3) from estimated to true camera centres (N, 3), equal weights (Umeyama 1991), computed in float64."""
    estimated, true = estimated.double(), true.double()
    return weighted_similarity(estimated, true, torch.ones_like(estimated[..., 0]))


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the last axis; zero where no weight is left."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
