"""Errors of predicted and reconstructed points against ground truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor


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
