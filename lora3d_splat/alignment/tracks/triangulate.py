"""Points of tracks from placed cameras: the place nearest to all rays, marks that miss it dropped one by one."""

from __future__ import annotations

import numpy as np

from .problem import Marks, Rig, camera_points, project, slopes_of

DROPS = 4
"""Marks that a track may lose before it is given up."""


def triangulate(
    rig: Rig, marks: Marks, count: int, tolerance: float, least_angle: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (T, 3), which of them hold (T,) and which marks hold them (M,).

    A point holds where at least two placed cameras see it in front of them within `tolerance` standard deviations,
    under an angle between two rays of at least `least_angle` degrees.
    """
    usable = rig.placed[marks.view]
    slopes = slopes_of(rig, marks.image, marks.view)
    rays = np.einsum("mji,mj->mi", rig.rotation[marks.view], np.c_[slopes, np.ones(len(slopes))])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    centres = rig.centre[marks.view]
    points = np.zeros((count, 3))
    for drop in range(DROPS + 1):
        points = _nearest(rays, centres, marks.track, usable, count)
        error = _error(rig, points, marks)
        bad = usable & (error > tolerance)
        if drop == DROPS or not bad.any():
            break
        worst = np.full(count, -1.0)
        np.maximum.at(worst, marks.track[bad], error[bad])
        usable &= ~(bad & (error >= worst[marks.track]))
    inliers = usable & (error <= tolerance)
    whole = np.bincount(marks.track[usable], minlength=count) == np.bincount(marks.track[inliers], minlength=count)
    seen = np.bincount(marks.track[inliers], minlength=count) >= 2
    held = whole & seen & (widest_angle(rig, points, marks.where(inliers), count) >= least_angle)
    return points, held, inliers & held[marks.track]


def widest_angle(rig: Rig, points: np.ndarray, marks: Marks, count: int) -> np.ndarray:
    """(T,) an angle in degrees close to the widest between two rays of each point."""
    if len(marks.track) == 0:
        return np.zeros(count)
    toward = points[marks.track] - rig.centre[marks.view]
    toward /= np.linalg.norm(toward, axis=1, keepdims=True).clip(1e-12)
    order = np.argsort(marks.track, kind="stable")
    first = order[np.searchsorted(marks.track[order], np.arange(count)).clip(max=len(order) - 1)]
    base = toward[first][marks.track]
    angle = np.arctan2(np.linalg.norm(np.cross(base, toward), axis=1), (base * toward).sum(1))
    # From the ray farthest from the first one, the widest angle is exact for points seen along an arc.
    far = np.zeros(count)
    np.maximum.at(far, marks.track, angle)
    extreme = angle >= far[marks.track]
    second = np.zeros((count, 3))
    second[marks.track[extreme]] = toward[extreme]
    other = second[marks.track]
    angle = np.arctan2(np.linalg.norm(np.cross(other, toward), axis=1), (other * toward).sum(1))
    widest = np.zeros(count)
    np.maximum.at(widest, marks.track, angle)
    return np.degrees(widest)


def _nearest(rays: np.ndarray, centres: np.ndarray, track: np.ndarray, usable: np.ndarray, count: int) -> np.ndarray:
    """(T, 3) least squares of distances to the rays; where they are parallel, the point is at the first centre."""
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    weight = usable.astype(float)
    normal, right = np.zeros((count, 3, 3)), np.zeros((count, 3))
    np.add.at(normal, track, across * weight[:, None, None])
    np.add.at(right, track, np.einsum("mij,mj->mi", across, centres) * weight[:, None])
    normal += 1e-12 * np.eye(3)
    return np.linalg.solve(normal, right[:, :, None])[:, :, 0]


def _error(rig: Rig, points: np.ndarray, marks: Marks) -> np.ndarray:
    inside = camera_points(rig, points, marks)
    gap = np.sqrt(((project(rig, inside, marks.view) - marks.image) ** 2).sum(1)) / marks.sigma
    return np.where(inside[:, 2] > 1e-9, gap, np.inf)
