"""Training losses: confidence-weighted scale-normalised regression (DUSt3R) and match cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from lora3d_splat.networks.compact import CompactOutput
from lora3d_splat.pretraining.data import PairBatch

NOTHING_WEIGHT = 0.5
"""pull of log-confidence to zero where there is no surface (sky)"""


def mean_distance(first: Tensor, second: Tensor, valid_first: Tensor, valid_second: Tensor) -> Tensor:
    """(B, 1, 1) average distance to the origin over the valid points (B, h, w, 3) of both maps."""
    lengths = torch.cat([first.norm(dim=-1).flatten(1), second.norm(dim=-1).flatten(1)], dim=1)
    weights = torch.cat([valid_first.flatten(1), valid_second.flatten(1)], dim=1).to(lengths.dtype)
    return ((lengths * weights).sum(1) / weights.sum(1).clamp(min=1)).clamp(min=1e-6)[:, None, None]


def confident_regression(error: Tensor, confidence: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """Mean of C * error - alpha log C over valid pixels, plus a pull of log C to zero elsewhere (DUSt3R, eq. 4)."""
    log_confidence = confidence.log()
    kept = torch.where(valid, confidence * error - alpha * log_confidence, NOTHING_WEIGHT * log_confidence)
    return kept.mean()


def point_loss(output: CompactOutput, batch: PairBatch, alpha: float) -> Tensor:
    """Point regression of all 2B ordered pairs, row k having view k as reference. Invariant to the scale of either."""
    own, other = batch.points_own, batch.partner(batch.points_partner)
    valid_own, valid_other = batch.valid, batch.partner(batch.valid)
    truth = mean_distance(own, other, valid_own, valid_other)[..., None]
    guess = mean_distance(output.points_reference, output.points_other, valid_own, valid_other)[..., None]
    first = (output.points_reference / guess - own / truth).square().sum(-1).add(1e-12).sqrt()
    second = (output.points_other / guess - other / truth).square().sum(-1).add(1e-12).sqrt()
    return confident_regression(first, output.confidence_reference, valid_own, alpha) + confident_regression(
        second, output.confidence_other, valid_other, alpha
    )


def depth_loss(log_depth: Tensor, batch: PairBatch) -> Tensor:
    """Mean deviation of the first-guess log-depths (2B, N) from the truth, up to each view's own scale."""
    valid = batch.cell_depth > 0
    error = log_depth - batch.cell_depth.clamp(min=1e-6).log()
    weight = valid.to(error.dtype)
    error = error - ((error * weight).sum(1) / weight.sum(1).clamp(min=1)).detach()[:, None]
    return (error.abs() * weight).sum() / weight.sum().clamp(min=1)


def match_loss(logits: Tensor, batch: PairBatch) -> Tensor:
    """Cross-entropy of the partner's cell, over the cells with a visible match; bilinear targets."""
    found = (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, batch.match_index)
    return -(found * batch.match_weight).sum() / batch.match_weight.sum().clamp(min=1)


def match_accuracy(logits: Tensor, batch: PairBatch) -> float:
    """Share of visible matches whose most likely cell is one of the four around the true place."""
    best = logits.argmax(-1, keepdim=True)
    hit = ((best == batch.match_index) & (batch.match_weight > 0)).any(-1)
    known = batch.match_weight.sum(-1) > 0
    return float(hit[known].float().mean()) if known.any() else float("nan")
