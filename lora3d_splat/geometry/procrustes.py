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
) -> tuple[Similarity, Tensor]:
    """Similarity under the Geman-McClure-like loss c tol r / (tol + r) of LoRA3D, by re-weighted Procrustes.

    `tolerance` (...) is the residual, in target units, at which a point keeps a quarter of its weight. It is lowered
    from the residual of the start, so that a third of gross outliers does not trap the fit.
    Returns the similarity and the residual norms (..., N), target units.
    """
    tolerance = torch.as_tensor(tolerance, dtype=target.dtype, device=target.device)
    fit = weighted_similarity(source, target, weights, with_scale)
    residual = (fit.apply(source) - target).norm(dim=-1)
    for step in range(rounds):
        width = torch.maximum(tolerance, weighted_mean(residual, weights) * 0.5 ** min(step, 8))[..., None]
        # w / r turns the unsquared norm into least squares; the floor keeps exact fits finite.
        irls = weights / (1 + residual / width) ** 2 / (residual + 1e-3 * width + 1e-12)
        fit = weighted_similarity(source, target, irls, with_scale)
        residual = (fit.apply(source) - target).norm(dim=-1)
    return fit, residual


def align_trajectories(estimated: Tensor, true: Tensor) -> Similarity:
    """Sim(3) from estimated to true camera centres (N, 3), equal weights (Umeyama 1991), computed in float64."""
    estimated, true = estimated.double(), true.double()
    return weighted_similarity(estimated, true, torch.ones_like(estimated[..., 0]))


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the last axis; zero where no weight is left."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
