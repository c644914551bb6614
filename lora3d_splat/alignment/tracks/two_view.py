"""What pairs of views tell before anything is placed: the focal length, relative poses, which pair to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

FOCALS = np.geomspace(0.4, 4.0, 93)
"""Candidates over the photograph's diagonal: diagonal fields of view from 103 to 14 degrees."""
SURE_ANGLE = 8.0
"""Degrees of triangulation beyond which a point counts fully for a starting pair."""


@dataclass(frozen=True)
class Couple:
    """Verified matches of an unordered pair in image coordinates."""

    first: int
    second: int
    image_first: np.ndarray
    """(M, 2)"""
    image_second: np.ndarray
    """(M, 2)"""
    fundamental: np.ndarray
    """(3, 3) y_second^T F y_first = 0"""
    sigma: float
    """standard deviation of a mark, image units"""


@dataclass(frozen=True)
class RelativePose:
    """The second camera seen from the first, baseline one: x_second = rotation x_first + translation."""

    couple: Couple
    rotation: np.ndarray
    translation: np.ndarray
    score: float
    """points weighted by their triangulation angle, up to `SURE_ANGLE`"""


def focal_by_essentials(couples: Sequence[Couple]) -> tuple[float, float]:
    """The focal length at which the fundamental matrices are nearest to essential ones, and how clear that is.

    K F K has two equal singular values for the true focal (Mendonca and Cipolla 1999). The second number compares the
    mismatch there with its median over all candidates: 0 is perfectly clear, 1 says nothing.
    """
    if not couples:
        return float("nan"), 1.0
    mismatch = np.array([_mismatch(couple.fundamental) for couple in couples])
    votes = np.array([len(couple.image_first) for couple in couples], float)
    # Bounded per pair, so that a few degenerate ones do not decide.
    cost = (votes[:, None] * mismatch / (mismatch + 0.05)).sum(0) / votes.sum()
    best = int(cost.argmin())
    return float(FOCALS[best]), float(cost[best] / max(np.median(cost), 1e-12))


def _mismatch(fundamental: np.ndarray) -> np.ndarray:
    """(candidates,) one minus the ratio of the two singular values of K F K."""
    lens = np.ones((len(FOCALS), 3))
    lens[:, :2] = FOCALS[:, None]
    values = np.linalg.svd(lens[:, :, None] * fundamental * lens[:, None, :], compute_uv=False)
    return 1 - values[:, 1] / values[:, 0].clip(1e-30)


def relative_pose(couple: Couple, focal_first: float, focal_second: float) -> RelativePose | None:
    """The relative pose under known focal lengths; None where the matches allow none."""
    one, two = couple.image_first / focal_first, couple.image_second / focal_second
    tolerance = 6 * couple.sigma / (focal_first * focal_second) ** 0.5
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(one, two, np.eye(3), cv2.USAC_MAGSAC, 0.9999, tolerance)
    if essential is None or essential.shape != (3, 3) or inliers is None or int(inliers.sum()) < 8:
        return None
    kept = inliers.ravel().astype(bool)
    _, rotation, translation, good, points = cv2.recoverPose(
        essential, one[kept], two[kept], np.eye(3), distanceThresh=1e3
    )
    front = good.ravel() > 0
    points = (points[:3] / np.where(np.abs(points[3]) < 1e-12, 1e-12, points[3])).T[front]
    if len(points) < 8:
        return None
    baseline = -rotation.T @ translation.ravel()
    ray = points - baseline
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(points, ray), axis=1), (points * ray).sum(1)))
    return RelativePose(couple, rotation, translation.ravel(), float(np.minimum(angle / SURE_ANGLE, 1.0).sum()))
