"""Robust kernels as pure functions of residual norms, and the weights that calibrate confidence.

LoRA3D Eq. 7 minimises  sum w |e| + mu (sqrt w - sqrt C)^2  over w as well. For fixed residuals the minimiser is Eq. 8,
w = C / (1 + |e| / mu)^2, and what is left is  sum C mu |e| / (mu + |e|): Geman-McClure in sqrt|e|, whose derivative
with respect to |e| is w again (envelope theorem). Huber bends the plain unsquared norm near zero instead: its slope
grows to C at |e| = mu and stays there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["geman-mcclure", "huber", "none"]
SMOOTHING = 0.05
"""Residuals below this fraction of mu count quadratically, so that exact fits have finite curvature."""


def kernel_loss(kernel: Kernel, residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """Loss per pixel; with mu -> infinity geman-mcclure becomes the plain one."""
    if kernel == "geman-mcclure":
        return robust_loss(residual, confidence, mu)
    if kernel == "huber":
        inside = residual.clamp(max=mu)
        return confidence * (inside * inside / (2 * mu) + residual - inside)
    return confidence * residual


def kernel_slope(kernel: Kernel, residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """Derivative of the loss with respect to the residual; slope / residual is the weight in least squares."""
    if kernel == "geman-mcclure":
        return robust_weights(residual, confidence, mu)
    return confidence * (residual / mu).clamp(max=1.0) if kernel == "huber" else confidence


def calibrated_weights(kernel: Kernel, residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """What is left of the confidence: Eq. 8; under huber C min(1, mu / |e|); under the plain alignment C itself."""
    if kernel == "huber":
        return confidence * (mu / residual).clamp(max=1.0)
    return kernel_slope(kernel, residual, confidence, mu)


def robust_weights(residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """Calibrated weights w (Eq. 8) of residual norms; `mu` may be infinite (plain alignment, w = C)."""
    return confidence / (1 + residual / mu) ** 2


def joint_objective(weights: Tensor, residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """Eq. 7 before eliminating the weights, per pixel."""
    return weights * residual + mu * (weights.sqrt() - confidence.sqrt()) ** 2


def robust_loss(residual: Tensor, confidence: Tensor, mu: Tensor | float) -> Tensor:
    """Eq. 7 at the best weights, per pixel: C |e| / (1 + |e| / mu); plain C |e| for infinite mu."""
    return confidence * residual / (1 + residual / mu)


def smooth_norm(error: Tensor, smoothing: Tensor | float) -> Tensor:
    """Norm over the last axis, rounded off below `smoothing` (same unit)."""
    return ((error * error).sum(-1) + smoothing**2).sqrt()


def masked_log_confidence(confidence: Tensor, floor: float) -> Tensor:
    """C = log of the raw confidence, zero (no vote, for good) where it is below the floor."""
    logarithm = confidence.clamp_min(1.0).log()
    return torch.where(logarithm >= floor, logarithm, torch.zeros_like(logarithm))


def mean_over(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all entries, zero where nothing has weight."""
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def masked_median(values: Tensor, votes: Tensor) -> Tensor:
    """Median over the last axis of the entries with votes; NaN where there are none."""
    return masked_quantile(values, votes, 0.5)


def masked_quantile(values: Tensor, votes: Tensor, share: float) -> Tensor:
    """The lower `share` quantile over the last axis of the entries with votes; NaN where there are none."""
    sorted_values = values.masked_fill(votes <= 0, torch.inf).sort(dim=-1).values
    count = (votes > 0).sum(-1, keepdim=True)
    place = (share * (count - 1)).long().clamp_min(0)
    found = sorted_values.gather(-1, place)
    return torch.where(count > 0, found, torch.full_like(found, torch.nan))[..., 0]


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Median over all entries of positive weight, each counted by its weight; zero if there is none."""
    keep = weights > 0
    values, weights = values[keep], weights[keep]
    if values.numel() == 0:
        return values.new_zeros(())
    values, order = values.sort()
    mass = weights[order].cumsum(0)
    return values[torch.searchsorted(mass, mass[-1:] / 2)[0].clamp_max(len(values) - 1)]
