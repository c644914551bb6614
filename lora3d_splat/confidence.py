"""Calibrated confidence: which predictions the aligned scene bears out, and how well that can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .records import AlignedScene, CalibratedConfidence, PairPrediction


class ReliabilityCurve(NamedTuple):
    """Mean error over bins of rising confidence; a useful confidence falls from left to right."""

    confidence: Tensor
    """(bins,) mean confidence of each bin"""
    error: Tensor
    """(bins,) mean error of each bin, unit of the errors given"""


def calibrated_confidence(
    scene: AlignedScene, predictions: Sequence[PairPrediction], weights: Sequence[tuple[Tensor, Tensor]]
) -> CalibratedConfidence:
    """Collect converged weights into per-view means; `weights` and `predictions` follow `scene.pairs`.

    `align` returns the same record; this is for weights from elsewhere.
    """
    count = len(scene.registered)
    calibrated: list[list[Tensor]] = [[] for _ in range(count)]
    raw: list[list[Tensor]] = [[] for _ in range(count)]
    for prediction, sides in zip(predictions, weights, strict=True):
        confidences = (prediction.confidence_reference, prediction.confidence_other)
        owners = (prediction.pair.reference, prediction.pair.other)
        for view, side, confidence in zip(owners, sides, confidences, strict=True):
            calibrated[view].append(side)
            raw[view].append(confidence.clamp_min(1.0).log())
    return CalibratedConfidence(
        tuple(weights),
        tuple(_mean(maps, depth) for maps, depth in zip(calibrated, scene.depth, strict=True)),
        tuple(_mean(maps, depth) for maps, depth in zip(raw, scene.depth, strict=True)),
    )


def trusted_threshold(confidence: CalibratedConfidence, cutoff: float | None, keep: float = 0.7) -> float:
    """The calibrated confidence above which a prediction is trusted.

    `cutoff` is absolute (LoRA3D: 1.5 for DUSt3R's log-confidence). None judges by rank: the share `keep` of the best
    pair predictions passes, for networks whose confidence has no meaningful scale.
    """
    if cutoff is not None:
        return cutoff
    pairs = [side.flatten() for sides in confidence.pair_weights for side in sides]
    # A calibration read from its folder has no weights of single pairs; its views' means then stand in.
    values = torch.cat(pairs or [values.flatten() for values in confidence.view_confidence])
    if values.numel() == 0:
        return 0.0
    # Views far larger than needed for a quantile are thinned evenly; the sort would dominate otherwise.
    values = values[:: values.numel() // 2_000_000 + 1]
    return float(values.float().kthvalue(max(1, round((1 - keep) * values.numel()))).values)


def trusted_masks(confidence: CalibratedConfidence, threshold: float) -> tuple[Tensor, ...]:
    """Per view (H, W) bool: mean calibrated confidence above the threshold."""
    return tuple(values > threshold for values in confidence.view_confidence)


def trusted_fraction(confidence: CalibratedConfidence, threshold: float) -> float:
    """Share of pair predictions above the threshold, over all pixels of all pairs."""
    sides = [side for pair in confidence.pair_weights for side in pair]
    total = sum(side.numel() for side in sides)
    return sum(int((side > threshold).sum()) for side in sides) / max(total, 1)


def reliability_curve(confidence: Tensor, error: Tensor, bins: int = 10) -> ReliabilityCurve:
    """Errors over `bins` equally filled bins of confidence; both tensors of one shape, non-finite entries ignored."""
    valid = torch.isfinite(confidence) & torch.isfinite(error)
    order = confidence[valid].argsort(stable=True)
    chunks = [chunk for chunk in torch.tensor_split(order, bins) if len(chunk)]
    values, errors = confidence[valid], error[valid]
    return ReliabilityCurve(
        torch.stack([values[chunk].mean() for chunk in chunks]), torch.stack([errors[chunk].mean() for chunk in chunks])
    )


def _mean(maps: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(maps).mean(0).float() if maps else torch.zeros_like(like)
