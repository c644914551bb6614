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
SAME_POSE = 8.0
"""Degrees within which two poses lead to the same map."""
PLANAR = 0.6
"""Share of the essential matrix's matches that a homography must explain for a plane to be suspected."""


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
    depth_first: np.ndarray
    """(M,) depth in the first view by its pointmap, up to a factor; NaN where unknown"""
    depth_second: np.ndarray
    """(M,) the same in the second view"""
    track: np.ndarray
    """(M,) the track that each match belongs to, -1 where it was dropped"""

    @property
    def turned(self) -> Couple:
        """The same pair, second view first."""
        return Couple(
            self.second, self.first, self.image_second, self.image_first, self.fundamental.T, self.sigma,
            self.depth_second, self.depth_first, self.track,
        )  # fmt: skip


@dataclass(frozen=True)
class RelativePose:
    """The second camera seen from the first, baseline one: x_second = rotation x_first + translation."""

    couple: Couple
    rotation: np.ndarray
    translation: np.ndarray
    score: float
    """points weighted by their triangulation angle, up to `SURE_ANGLE`"""
    matches: np.ndarray
    """(K,) matches that were triangulated before both cameras"""
    depth: np.ndarray
    """(K,) their depth in the first camera, baselines"""


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


def relative_poses(couple: Couple, focal_first: float, focal_second: float) -> list[RelativePose]:
    """Relative poses that explain the matches under known focal lengths, none to three.

    The first is the essential matrix's. Matches that one plane explains allow two poses, which only further views
    tell apart (Faugeras and Lustman 1988): these follow.
    """
    one, two = couple.image_first / focal_first, couple.image_second / focal_second
    tolerance = 6 * couple.sigma / (focal_first * focal_second) ** 0.5
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(one, two, np.eye(3), cv2.USAC_MAGSAC, 0.9999, tolerance)
    if essential is None or essential.shape != (3, 3) or inliers is None or int(inliers.sum()) < 8:
        return []
    kept = np.flatnonzero(inliers)
    _, rotation, translation, _ = cv2.recoverPose(essential, one[kept], two[kept], np.eye(3))
    found = [_posed(couple, one, two, kept, rotation, translation.ravel())]
    plane, flat = cv2.findHomography(one, two, cv2.USAC_MAGSAC, 1.5 * tolerance, maxIters=3000, confidence=0.9999)
    if plane is not None and flat.sum() > PLANAR * len(kept):
        _, rotations, translations, _ = cv2.decomposeHomographyMat(plane, np.eye(3))
        flat_ones = np.flatnonzero(flat)
        for turn, shift in zip(rotations, translations, strict=True):
            length = float(np.linalg.norm(shift))
            if length > 1e-6:
                found.append(_posed(couple, one, two, flat_ones, turn, shift.ravel() / length))
    poses: list[RelativePose] = []
    for pose in found:
        if pose is not None and all(_differ(pose, other) for other in poses):
            poses.append(pose)
    return poses


def _differ(one: RelativePose, two: RelativePose) -> bool:
    """Whether rotations or directions are more than `SAME_POSE` apart."""
    turn = np.degrees(np.arccos(np.clip((np.trace(one.rotation.T @ two.rotation) - 1) / 2, -1, 1)))
    way = np.degrees(np.arccos(np.clip(one.translation @ two.translation, -1, 1)))
    return max(turn, way) > SAME_POSE


def _posed(
    couple: Couple, one: np.ndarray, two: np.ndarray, kept: np.ndarray, rotation: np.ndarray, translation: np.ndarray
) -> RelativePose | None:
    """The pose with the points that lie before both cameras; None where those are few."""
    projection = np.c_[rotation, translation]
    points = cv2.triangulatePoints(np.eye(3, 4), projection, one[kept].T, two[kept].T)
    points = (points[:3] / np.where(np.abs(points[3]) < 1e-12, 1e-12, points[3])).T
    front = (points[:, 2] > 0) & ((points @ rotation.T + translation)[:, 2] > 0) & (points[:, 2] < 1e3)
    if front.sum() < max(8, len(kept) / 2):
        return None
    points = points[front]
    ray = points + rotation.T @ translation
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(points, ray), axis=1), (points * ray).sum(1)))
    score = float(np.minimum(angle / SURE_ANGLE, 1.0).sum())
    return RelativePose(couple, rotation, translation, score, kept[front], points[:, 2])
