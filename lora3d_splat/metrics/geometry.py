"""Errors of predicted and reconstructed points against ground truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from torch import Tensor

from ..confidence import ReliabilityCurve, reliability_curve


class ConfidenceQuality(NamedTuple):
    """How well a confidence tells where errors are; see each function for its definition."""

    spearman: float
    """rank correlation of the confidence with minus the error; 1 is perfect, 0 says nothing"""
    ause: float
    """area under the sparsification error, over the mean error; 0 is perfect"""
    reliability: ReliabilityCurve
    """mean error over bins of rising confidence"""


class CloudError(NamedTuple):
    """Distances between two clouds, in the unit of the true cloud."""

    accuracy: float
    """mean distance from an estimated point to the nearest true point"""
    completeness: float
    """mean distance from a true point to the nearest estimated point"""
    accuracy_median: float
    completeness_median: float


def scale_aligned_pointmap_error(estimated: Tensor, true: Tensor, valid: Tensor) -> float:
    """Mean distance between pointmaps (..., 3) of one camera frame after the best scale; unit of `true`.

    The scale minimises sum |s estimated - true| over the `valid` (...) points (re-weighted least squares), so that a
    few wild points do not shrink the rest. Divide by the mean distance of `true` for a relative error. NaN where no
    point is valid.
    """
    source, target = estimated[valid].double(), true[valid].double()
    if len(source) == 0:
        return float("nan")
    votes = torch.ones_like(source[:, 0])
    for _ in range(20):
        scale = (votes * (source * target).sum(-1)).sum() / (votes * (source * source).sum(-1)).sum()
        gap = (scale * source - target).norm(dim=-1)
        votes = 1 / gap.clamp_min(1e-6 * target.norm(dim=-1).mean())
    return float(gap.mean())


def cloud_error(estimated: Tensor, true: Tensor) -> CloudError:
    """Accuracy and completeness of an estimated cloud (N, 3) against a true one (M, 3), in one frame and scale."""
    first, second = estimated.double().cpu().numpy(), true.double().cpu().numpy()
    accuracy = torch.from_numpy(cKDTree(second).query(first)[0])
    completeness = torch.from_numpy(cKDTree(first).query(second)[0])
    return CloudError(
        float(accuracy.mean()), float(completeness.mean()), float(accuracy.median()), float(completeness.median())
    )


def confidence_quality(confidence: Tensor, error: Tensor, bins: int = 10) -> ConfidenceQuality:
    """Judge confidences against the true errors of the same predictions, any shape; non-finite entries are ignored.

    Call it with raw and with calibrated confidence to see what the calibration brought.
    """
    valid = torch.isfinite(confidence) & torch.isfinite(error)
    sure, wrong = confidence[valid].double(), error[valid].double()
    return ConfidenceQuality(spearman(sure, -wrong), ause(sure, wrong), reliability_curve(sure, wrong, bins))


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two tensors (N,), ties sharing their mean rank (Spearman 1904); NaN where one is constant."""
    return float(spearmanr(first.double().cpu().numpy(), second.double().cpu().numpy()).statistic)


def ause(confidence: Tensor, error: Tensor, steps: int = 100) -> float:
    """Area under the sparsification error curve (Ilg et al. 2018) of confidences and errors (N,).

    The mean error of what is left when a growing share of the least confident is removed, minus the same when the worst
    are removed, averaged over the shares and divided by the mean error of all. 0 is perfect, larger is worse.
    """
    error = error.double()
    kept = (torch.linspace(1, 1 / steps, steps, dtype=torch.float64) * len(error)).round().long().clamp_min(1)

    def remaining(order: Tensor) -> Tensor:
        return error[order].cumsum(0)[kept - 1] / kept

    gap = remaining(confidence.argsort(descending=True, stable=True)) - remaining(error.argsort(stable=True))
    return float(gap.mean() / error.mean().clamp_min(torch.finfo(error.dtype).tiny))
