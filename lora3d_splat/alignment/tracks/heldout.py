"""Held-out views placed by features: matches with the training views, their points, one pose each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...matching import Features, detect, nearest_both_ways, verify
from ...records import AlignedScene, SparseScene, View
from .bundle import BundleConfig, adjust
from .mapper import FEWEST_MARKS, LOOSE, STRICT, resect
from .problem import Marks, errors, unplaced
from .settle import as_settled
from .solve import VERIFY_PIXELS
from .views import diagonals, mark_sigma, reduction, to_image


def place_by_tracks(
    heldout: Sequence[View], train: Sequence[View], scene: AlignedScene, sparse: SparseScene
) -> dict[int, torch.Tensor]:
    """T_world_camera (4, 4) of those held-out views (by position) that see enough points of the settled scene.

    `scene` is one that was settled on `sparse`; its lens holds for the held-out views, as they share the camera.
    """
    sparse = as_settled(scene, sparse)
    features = {k: detect(view) for k, view in enumerate(train) if sparse.placed[k]}
    poses = {}
    for position, view in enumerate(heldout):
        marks, points = _sightings(view, detect(view), train, features, sparse)
        pose = _pose(view, marks, points, train, sparse) if len(points) >= FEWEST_MARKS else None
        if pose is not None:
            poses[position] = pose
    return poses


def _sightings(
    view: View, mine: Features, train: Sequence[View], features: dict[int, Features], sparse: SparseScene
) -> tuple[np.ndarray, np.ndarray]:
    """Photograph pixels (K, 2) of the view and the world points (K, 3) that they show; a keypoint counts once."""
    votes: dict[int, list[int]] = {}
    for index, others in features.items():
        matches, _ = nearest_both_ways(mine, others)
        tolerance = VERIFY_PIXELS * (reduction(view) * reduction(train[index])) ** 0.5
        inliers, _ = verify(mine.pixels[matches[:, 0]], others.pixels[matches[:, 1]], tolerance)
        here = (sparse.mark_view == index).numpy()
        places, shown = sparse.mark_pixels.numpy()[here].tolist(), sparse.mark_point.numpy()[here].tolist()
        point_of = {tuple(place): point for place, point in zip(places, shown, strict=True)}
        for keypoint, other in matches[inliers]:
            point = point_of.get(tuple(others.pixels[other]))
            if point is not None:
                votes.setdefault(int(keypoint), []).append(point)
    chosen = {keypoint: max(set(points), key=points.count) for keypoint, points in votes.items()}
    keypoints, points = np.array(list(chosen), int), np.array(list(chosen.values()), int)
    return mine.pixels[keypoints], sparse.points_world.numpy()[points]


def _pose(
    view: View, pixels: np.ndarray, points: np.ndarray, train: Sequence[View], sparse: SparseScene
) -> torch.Tensor | None:
    count = len(points)
    placed = torch.tensor(sparse.placed)
    focal = float(np.median((sparse.focal.numpy() / diagonals(train))[placed.numpy()]))
    radial = float(sparse.radial[placed].median())
    rig = unplaced(np.zeros(1, int), np.array([focal]), np.array([radial]))
    owner = np.zeros(count, int)
    marks = Marks(
        np.arange(count),
        owner,
        to_image([view], pixels, owner),
        np.full(count, mark_sigma([view])[0]),
        np.full(count, np.nan),
    )
    pose = resect(rig, points, marks)
    if pose is None:
        return None
    rig = rig.place(0, *pose)
    for tolerance in (LOOSE, STRICT):
        kept = errors(rig, points, marks) < tolerance
        if kept.sum() < FEWEST_MARKS:
            return None
        rig = adjust(rig, points, marks.where(kept), BundleConfig(free_focal=False, free_points=False))[0]
    pose_world = np.eye(4)
    pose_world[:3, :3], pose_world[:3, 3] = rig.rotation[0].T, rig.centre[0]
    return torch.from_numpy(pose_world)
