"""Placing views one after another from their tracks, with bundle adjustments in between (Snavely et al. 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .bundle import BundleConfig, adjust
from .problem import Marks, Rig, camera_points, errors, slopes_of
from .triangulate import triangulate
from .two_view import Couple, RelativePose, relative_poses

LEAST_ANGLE = 1.5
"""Degrees between two rays below which a point's depth is not told."""
LOOSE, STRICT = 20.0, 8.0
"""Reprojection errors, in standard deviations, that a mark may have while the scene grows and when it is done."""
PLAIN = 4 * STRICT
"""Where the last adjustment would turn robust, in standard deviations: beyond all marks that it has."""
FEWEST_MARKS = 15
"""Points that must support the pose of a view."""
ENOUGH_MARKS = 40
"""From here on a small share of outliers no longer matters."""
LEAST_SHARE = 0.25
"""Share of a view's visible points that must support its pose, where there are fewer than `ENOUGH_MARKS`."""
BRIDGE_MATCHES = 20
"""Matches that a view needs to be placed from one other view alone."""
KNOWN_POINTS = 5
"""Known points among them that tell the baseline's length better than a pointmap."""
PINHOLE = np.eye(3)
"""Camera matrix for slopes."""
STARTS = 3
"""Starting pairs that are tried with each focal length."""
YOUNG = 4
"""Views of a young map: wrong focal lengths and planes seen wrongly have shown by then."""
RAISED = 3
"""Young maps that grow up."""
EXPLAINED = 0.97
"""A map of all views that explains this share of the marks needs no rival."""


@dataclass(frozen=True)
class Map:
    """Cameras and points so far."""

    rig: Rig
    points: np.ndarray
    """(T, 3)"""
    held: np.ndarray
    """(M,) bool: marks that belong to points that hold"""

    def score(self, marks: Marks) -> float:
        """Constraints explained, each by how well; compares maps of the same marks.

        A point seen k times is bound by 2 k - 3 numbers: two views only say that it lies on a line, three their scale.
        """
        kept = marks.where(self.held)
        times = np.bincount(kept.track, minlength=len(self.points))[kept.track]
        share = (1 - (errors(self.rig, self.points, kept) / STRICT) ** 2).clip(0.0)
        return float((share * (2 * times - 3) / np.maximum(times, 1)).sum())

    @property
    def explained(self) -> float:
        """Share of the marks that belong to points that hold."""
        return float(self.held.mean()) if len(self.held) else 0.0


def begin(rig: Rig, marks: Marks, couples: Sequence[Couple], count: int, fixed: np.ndarray) -> list[Map]:
    """Young maps of up to `YOUNG` views over a few starting pairs; empty where no pair allows a start.

    `rig` says the lenses to start from, none of its views is placed; `count` is the number of tracks; the lenses
    `fixed` (G,) bool keep their focal length.
    """
    lens = rig.focal[rig.group]
    found = [relative_poses(couple, lens[couple.first], lens[couple.second]) for couple in couples]
    best = sorted((poses for poses in found if poses), key=lambda poses: -poses[0].score)[:STARTS]
    starts = [pose for poses in best for pose in poses]
    return [_grow(_begin(rig, start, marks, count), marks, (), count, fixed, YOUNG) for start in starts]


def raise_best(young: Sequence[Map], marks: Marks, count: int, fixed: np.ndarray) -> Map | None:
    """The best map that the most promising young ones grow into; None without any."""
    promising = sorted(young, key=lambda item: -item.score(marks))[:RAISED]
    grown = []
    for item in promising:
        grown.append(_grow(item, marks, (), count, fixed))
        if grown[-1].rig.placed.all() and grown[-1].explained > EXPLAINED:
            break
    return max(grown, key=lambda item: item.score(marks), default=None)


def complete(
    state: Map, marks: Marks, couples: Sequence[Couple], count: int, config: BundleConfig, fixed: np.ndarray
) -> Map:
    """Refine with all marks, place what these allow, bridge to what is left, and refine again."""
    state = refined(state, marks, count, config, fixed)
    if not state.rig.placed.all():
        grown = _grow(state, marks, couples, count, fixed)
        if (grown.rig.placed != state.rig.placed).any():
            state = refined(grown, marks, count, config, fixed)
    return _polished(state, marks, config, fixed)


def refined(state: Map, marks: Marks, count: int, config: BundleConfig, fixed: np.ndarray, rounds: int = 4) -> Map:
    """Triangulate everything again under the present cameras and adjust, from loose to strict."""
    for step in range(rounds):
        tolerance = LOOSE if step == 0 else max(STRICT, LOOSE / 2**step)
        points, held = _extend(state, marks, count, tolerance)
        rig = _with_rulers(replace(state, points=points, held=held), marks)
        rig, points = adjust(rig, points, marks.where(held), config, fixed)
        state = Map(rig, points, held)
    return _filtered(state, marks, STRICT)


def _with_rulers(state: Map, marks: Marks) -> Rig:
    """The cameras, with the unit of each view's pointmap as its points tell it."""
    found = np.array([_ruler_factor(state, marks, view) for view in range(len(state.rig.placed))])
    return replace(state.rig, ruler=np.where(np.isfinite(found), np.log(found.clip(min=1e-30)), 0.0))


def _polished(state: Map, marks: Marks, config: BundleConfig, fixed: np.ndarray) -> Map:
    """Least squares over the marks that are left: what lies within `STRICT` is noise, and all of it counts."""
    for _ in range(2):
        rig, points = adjust(state.rig, state.points, marks.where(state.held), replace(config, cauchy=PLAIN), fixed)
        state = _filtered(Map(rig, points, state.held), marks, STRICT)
    return state


def _begin(rig: Rig, start: RelativePose, marks: Marks, count: int) -> Map:
    rig = rig.place(start.couple.first, np.eye(3), np.zeros(3))
    rig = rig.place(start.couple.second, start.rotation, start.translation)
    points, _, held = triangulate(rig, marks, count, LOOSE, LEAST_ANGLE)
    if held.any():
        rig, points = adjust(rig, points, marks.where(held), BundleConfig(steps=10, free_focal=False))
    return Map(rig, points, held)


def _grow(
    state: Map, marks: Marks, couples: Sequence[Couple], count: int, fixed: np.ndarray, most: int | None = None
) -> Map:
    """Place the view that sees most points, as long as one can be placed; then bridge to views that share none.

    With `most`, growth ends when that many views are placed.
    """
    refused: set[int] = set()
    bridges: set[tuple[int, int]] = set()
    while most is None or state.rig.placed.sum() < most:
        view = _next_view(state, marks, refused)
        if view is not None:
            pose = _resect(state, marks, view)
            if pose is None:
                refused.add(view)
                continue
        else:
            bridge = _bridge(state, marks, couples, bridges)
            if bridge is None:
                return state
            view, pose = bridge
        grown = _settled(replace(state, rig=state.rig.place(view, *pose)), marks, count, fixed)
        if np.bincount(marks.view[grown.held], minlength=view + 1)[view] < FEWEST_MARKS:
            refused.add(view)
            continue
        state, refused = grown, set()
    return state


def _bridge(
    state: Map, marks: Marks, couples: Sequence[Couple], tried: set[tuple[int, int]]
) -> tuple[int, tuple[np.ndarray, np.ndarray]] | None:
    """An unplaced view with its pose from one placed view alone, matched best of those not `tried` yet.

    The baseline's length comes from the few known points that the two share, or else from the placed view's pointmap,
    as a ruler that its known points have calibrated.
    """
    placed = state.rig.placed
    open_ones = [c for c in couples if placed[c.first] != placed[c.second] and (c.first, c.second) not in tried]
    for couple in sorted(open_ones, key=lambda item: -len(item.image_first)):
        tried.add((couple.first, couple.second))
        ordered = couple if placed[couple.first] else couple.turned
        lens = state.rig.focal[state.rig.group]
        poses = relative_poses(ordered, lens[ordered.first], lens[ordered.second])
        if not poses or len(poses[0].matches) < BRIDGE_MATCHES:
            continue
        ruled = _known_depths(state, marks, ordered)[poses[0].matches] / poses[0].depth
        if np.isfinite(ruled).sum() < KNOWN_POINTS:
            factor = _ruler_factor(state, marks, ordered.first)
            ruled = factor * ordered.depth_first[poses[0].matches] / poses[0].depth
        if not np.isfinite(ruled).any():
            continue
        rotation, translation = state.rig.rotation[ordered.first], state.rig.translation[ordered.first]
        length = float(np.nanmedian(ruled))
        turn = poses[0].rotation
        return ordered.second, (turn @ rotation, turn @ translation + length * poses[0].translation)
    return None


def _known_depths(state: Map, marks: Marks, couple: Couple) -> np.ndarray:
    """(M,) depth of the matches' known points in the first view, NaN where a match shows none."""
    known = np.zeros(len(state.points) + 1, bool)  # the last entry stands for matches without a track
    known[marks.track[state.held]] = True
    points = state.points[couple.track.clip(min=0)]
    depth = points @ state.rig.rotation[couple.first, 2] + state.rig.translation[couple.first, 2]
    return np.where(known[couple.track] & (depth > 0), depth, np.nan)


def _ruler_factor(state: Map, marks: Marks, view: int) -> float:
    """What a view's pointmap depths are to be multiplied by to meet the points of the map."""
    seen = marks.where(state.held & (marks.view == view))
    depth = camera_points(state.rig, state.points, seen)[:, 2]
    ratio = depth / seen.depth
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan")


def _settled(state: Map, marks: Marks, count: int, fixed: np.ndarray) -> Map:
    free = int(state.rig.placed.sum()) > 2
    for steps in (4, 6):
        points, held = _extend(state, marks, count, LOOSE)
        if not held.any():
            return state
        config = BundleConfig(steps=steps, tolerance=1e-4, free_focal=free)
        rig, points = adjust(state.rig, points, marks.where(held), config, fixed)
        state = _filtered(Map(rig, points, held), marks, LOOSE)
    return state


def _extend(state: Map, marks: Marks, count: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and held marks, all triangulated anew from the placed cameras; adjusted points stay where they hold."""
    points, held_points, _held = triangulate(state.rig, marks, count, tolerance, LEAST_ANGLE)
    known = np.zeros(count, bool)
    known[marks.track[state.held]] = True
    points = np.where((known & held_points)[:, None], state.points, points)
    within = state.rig.placed[marks.view] & (errors(state.rig, points, marks) < tolerance)
    enough = np.bincount(marks.track[within & held_points[marks.track]], minlength=count) >= 2
    return points, within & held_points[marks.track] & enough[marks.track]


def _filtered(state: Map, marks: Marks, tolerance: float) -> Map:
    """Without marks that miss by more, and without points that lose all but one of them."""
    held = state.held & (errors(state.rig, state.points, marks) < tolerance)
    held &= (np.bincount(marks.track[held], minlength=len(state.points)) >= 2)[marks.track]
    return replace(state, held=held)


def _next_view(state: Map, marks: Marks, refused: set[int]) -> int | None:
    counts = np.bincount(marks.view[_visible(state, marks)], minlength=len(state.rig.placed))
    counts[state.rig.placed] = 0
    counts[list(refused)] = 0
    return int(counts.argmax()) if counts.max() >= FEWEST_MARKS else None


def _visible(state: Map, marks: Marks) -> np.ndarray:
    """(M,) marks of points that hold."""
    known = np.zeros(len(state.points), bool)
    known[marks.track[state.held]] = True
    return known[marks.track]


def _resect(state: Map, marks: Marks, view: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Pose of a view from the points that it sees, None where too few agree."""
    seen = marks.where(_visible(state, marks) & (marks.view == view))
    return resect(state.rig, state.points[seen.track], seen)


def resect(rig: Rig, points: np.ndarray, marks: Marks) -> tuple[np.ndarray, np.ndarray] | None:
    """World-to-camera rotation and translation of the one camera of `marks` (M,) that see `points` (M, 3).

    Points that lie nearly in one plane leave two poses, between which the marks decide.
    """
    view = int(marks.view[0])
    slopes = slopes_of(rig, marks.image, marks.view)
    tolerance = LOOSE * float(np.median(marks.sigma)) / float(rig.focal[rig.group[view]])
    cv2.setRNGSeed(0)
    done, turn, shift, inliers = cv2.solvePnPRansac(
        points, slopes, PINHOLE, None, iterationsCount=3000, reprojectionError=tolerance, confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    kept = np.zeros(0, np.int64) if inliers is None else np.asarray(inliers, dtype=np.int64).ravel()
    few = len(kept) < ENOUGH_MARKS and len(kept) < LEAST_SHARE * len(points)
    if not done or len(kept) < FEWEST_MARKS or few:
        return None

    def agreement(pose: tuple[np.ndarray, np.ndarray]) -> float:
        miss = errors(rig.place(view, *pose), points, replace(marks, track=np.arange(len(points))))
        return float((1 - (miss / LOOSE) ** 2).clip(0).sum())

    starts = [(turn, shift), *_plane_poses(points[kept], slopes[kept])]
    poses = [cv2.solvePnPRefineLM(points[kept], slopes[kept], PINHOLE, None, *start) for start in starts]
    return max(((cv2.Rodrigues(turn)[0], shift.ravel()) for turn, shift in poses), key=agreement)


def _plane_poses(points: np.ndarray, slopes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both poses (rotation vector, translation) under which the points, moved into their plane, are seen so."""
    centre = points.mean(0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    flat = (points - centre) @ axes.T * [1, 1, 0]
    found = cv2.solvePnPGeneric(flat, slopes, PINHOLE, None, flags=cv2.SOLVEPNP_IPPE)
    turns = [cv2.Rodrigues(turn)[0] @ axes for turn in found[1]]
    return [
        (cv2.Rodrigues(turn)[0], shift - (turn @ centre)[:, None]) for turn, shift in zip(turns, found[2], strict=True)
    ]
