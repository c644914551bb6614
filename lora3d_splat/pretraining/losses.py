"""Training losses: confidence-weighted regression of points up to scale (DUSt3R) and match cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from lora3d_splat.networks.compact import CompactOutput
from lora3d_splat.pretraining.data import PairBatch

NEAREST = 0.1
"""share of the mean distance below which points count as being that far away"""
WORST = 2.0
"""relative error of settled points that counts at most: their confidence is at its floor long before"""
NOTHING_WEIGHT = 0.5
"""pull of log-confidence to zero where there is no surface (sky)"""


def mean_distance(first: Tensor, second: Tensor, valid_first: Tensor, valid_second: Tensor) -> Tensor:
    """(B, 1, 1) average distance to the origin over the valid points (B, h, w, 3) of both maps."""
    lengths = torch.cat([first.norm(dim=-1).flatten(1), second.norm(dim=-1).flatten(1)], dim=1)
    weights = torch.cat([valid_first.flatten(1), valid_second.flatten(1)], dim=1).to(lengths.dtype)
    return ((lengths * weights).sum(1) / weights.sum(1).clamp(min=1)).clamp(min=1e-6)[:, None, None]


def confident_regression(error: Tensor, judged: Tensor, confidence: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """Mean of C * error - alpha log C over valid pixels, plus a pull of log C to zero elsewhere (DUSt3R, eq. 4).

    Points learn from `error`, confidence from `judged`: that of the points which it is handed out with.
    """
    log_confidence = confidence.log()
    learnt = confidence * judged.detach() - alpha * log_confidence + confidence.detach() * (error - error.detach())
    return torch.where(valid, learnt, NOTHING_WEIGHT * log_confidence).mean()


def point_loss(output: CompactOutput, batch: PairBatch, alpha: float) -> Tensor:
    """Point regression of all 2B ordered pairs, row k having view k as reference. Invariant to the scale of either.

    Errors count relative to the true distance, as alignment counts them and as the tables do, so that a horizon does
    not outweigh what stands in front of it and confidence follows the relative error: where points have settled on the
    matches, as all have that anybody is given, that of the settled ones.
    """
    decoded = relative_errors(output.points_reference, output.points_other, batch)
    settled = relative_errors(output.settled_reference, output.settled_other, batch)
    judged = (error.nan_to_num(WORST).clamp(max=WORST) for error in settled)
    valid = batch.valid, batch.partner(batch.valid)
    confidence = output.confidence_reference, output.confidence_other
    sides = zip(decoded, judged, confidence, valid, strict=True)
    return torch.stack([confident_regression(*side, alpha) for side in sides]).sum()


def relative_errors(points_reference: Tensor, points_other: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """(2B, h, w) of either view: distance to the true point, of points at the pair's best scale, by its distance."""
    own, other = batch.points_own, batch.partner(batch.points_partner)
    valid_own, valid_other = batch.valid, batch.partner(batch.valid)
    nearest = NEAREST * mean_distance(own, other, valid_own, valid_other)
    distance = torch.cat([each.norm(dim=-1).flatten(1) for each in (own, other)], dim=1).clamp(min=nearest[..., 0])
    truth = torch.cat([own.flatten(1, 2), other.flatten(1, 2)], dim=1) / distance[..., None]
    points = torch.cat([points_reference.flatten(1, 2), points_other.flatten(1, 2)], dim=1) / distance[..., None]
    valid = torch.cat([valid_own.flatten(1), valid_other.flatten(1)], dim=1)
    error = (best_scale(points, truth, valid) * points - truth).square().sum(-1).add(1e-12).sqrt()
    first, second = error.split([own[0, ..., 0].numel(), other[0, ..., 0].numel()], dim=1)
    return first.view_as(valid_own), second.view_as(valid_other)


def best_scale(points: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, 1, 1) factor that brings points (B, N, 3) nearest to the truth in least squares over the valid ones."""
    weight = valid.to(points.dtype)
    agreement = ((points * truth).sum(-1) * weight).sum(1)
    return (agreement / (points.square().sum(-1) * weight).sum(1).clamp(min=1e-9)).clamp(min=1e-6)[:, None, None]


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
