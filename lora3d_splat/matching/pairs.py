"""Matches of two views: nearest descriptors that agree both ways, kept where one epipolar geometry explains them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from .features import Features

RATIO = 0.8
"""The nearest descriptor must be closer than this share of the second nearest's distance (Lowe 2004)."""
FEWEST = 16
"""Verified matches below which a pair counts as unmatched: that many agree by accident."""

CHUNK = 512
"""Queries compared at once; their table of similarities then stays in the processor's cache."""


@dataclass(frozen=True)
class PairMatches:
    """M verified matches of an unordered pair of views."""

    first: int
    second: int
    matches: np.ndarray
    """(M, 2) keypoint indices in the first and in the second view"""
    fundamental: np.ndarray
    """(3, 3) F with x_second^T F x_first = 0 in photograph pixels"""


def nearest_both_ways(first: Features, second: Features, ratio: float = RATIO) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours (M, 2) that pass the ratio test, and their ratios (M,)."""
    if min(len(first.pixels), len(second.pixels)) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    one, two = torch.from_numpy(first.descriptors), torch.from_numpy(second.descriptors)
    forward, ratios = [], []
    best_back, backward = torch.full((len(two),), -2.0), torch.zeros(len(two), dtype=torch.long)
    for start in range(0, len(one), CHUNK):
        similarity = one[start : start + CHUNK] @ two.T
        best, index = similarity.max(dim=0)
        backward = torch.where(best > best_back, index + start, backward)
        best_back = torch.maximum(best, best_back)
        best, index = similarity.max(dim=1)
        similarity.scatter_(1, index[:, None], -1.0)
        distance, next_distance = ((2 - 2 * part).clamp_min(0).sqrt() for part in (best, similarity.amax(dim=1)))
        forward.append(index)
        ratios.append(torch.where(next_distance > 0, distance / next_distance, 1.0))  # twins: none is nearest
    matched, found = torch.cat(forward), torch.cat(ratios)
    index = torch.arange(len(one))
    kept = (found < ratio) & (backward[matched] == index)
    return torch.stack([index[kept], matched[kept]], dim=1).numpy(), found[kept].numpy()


def verify(pixels_first: np.ndarray, pixels_second: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Inlier mask (M,) and F (3, 3) of matched pixels (M, 2) each; `tolerance` is in the same pixels."""
    none = np.zeros(len(pixels_first), bool), np.zeros((3, 3))
    if len(pixels_first) < FEWEST:
        return none
    cv2.setRNGSeed(0)
    fundamental, inliers = cv2.findFundamentalMat(
        pixels_first, pixels_second, cv2.USAC_MAGSAC, tolerance, 0.99999, 10000
    )
    if fundamental is None or fundamental.shape != (3, 3):
        return none
    return inliers.ravel().astype(bool), fundamental
