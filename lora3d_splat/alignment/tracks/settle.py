"""The dense scene brought onto the cameras that tracks found: depths bent to the points, weights found anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...confidence import calibrated_confidence
from ...geometry.cameras import photograph_to_network_focal
from ...geometry.lens import network_pixels
from ...geometry.procrustes import Similarity, robust_similarity, weighted_similarity
from ...geometry.projection import project
from ...geometry.transforms import invert_rigid, rigid, split_similarity, transform_points
from ...records import AlignedScene, CalibratedConfidence, ImagePair, PairPrediction, SparseScene, View
from ..config import AlignmentConfig
from ..judge import scene_median_depth, world_points
from ..observations import pair_votes, sample_grid
from ..register import register_views
from ..robust import calibrated_weights
from .bend import bend_depth
from .follow import follow_marks
from .ruler import own_depth, sample_depth
from .sharpen import sharpen

LEAST_POINTS = 5
"""Points that a view must see for the ratio of its depths."""


def settle(
    views: Sequence[View],
    scene: AlignedScene,
    predictions: Sequence[PairPrediction],
    sparse: SparseScene,
    config: AlignmentConfig,
    confidence_floor: float,
    sharp: bool = False,
) -> tuple[AlignedScene, CalibratedConfidence]:
    """`scene` with the cameras of `sparse`; views that tracks do not place are registered anew by their pointmaps.

    With `sharp`, depth is then searched by photo-consistency, and pixels that it settles are trusted most. The world
    frame and the unit stay about those of `scene`. `predictions` are those that `scene` was aligned from.
    """
    sparse = _near(views, scene, sparse)
    placed = _placed_views(views, scene, predictions, sparse)
    sureness = [torch.zeros(view.size) for view in views]
    if sharp:
        placed, sureness = _sharpened(views, placed, sparse)
    whole = _with_other_views(views, placed, scene, predictions, config, confidence_floor)
    whole, confidence = recalibrated(views, whole, predictions, config, confidence_floor)
    return whole, trusting(whole, confidence, sureness) if sharp else confidence


def _sharpened(
    views: Sequence[View], scene: AlignedScene, sparse: SparseScene
) -> tuple[AlignedScene, Sequence[Tensor]]:
    """Depths searched by photo-consistency; the others are bent once more, to meet those as well.

    The search looks around the bent depth and around what the nearest marks say. What it does not settle follows the
    marks and the settled pixels nearest in place and colour.
    """
    images = [torch.from_numpy(view.image.copy()) for view in views]
    marks = [view_marks(view, k, sparse) if scene.registered[k] else None for k, view in enumerate(views)]
    guesses = [
        depth if each is None else follow_marks(depth, image, each.pixels, each.depth)
        for depth, image, each in zip(scene.depth, images, marks, strict=True)
    ]
    found, sureness = sharpen(images, scene, scene.registered, guesses=guesses)
    depths = []
    for index, each in enumerate(marks):
        sure = sureness[index] > 0
        if each is None or not bool(sure.any()):
            depths.append(guesses[index])
            continue
        row, column = torch.nonzero(sure, as_tuple=True)
        pixels = torch.cat([each.pixels, torch.stack([column, row], dim=1) + 0.5])
        wanted = torch.cat([each.depth, found[index][sure].double()])
        bent = bend_depth(scene.depth[index], pixels, wanted)
        depths.append(torch.where(sure, found[index], follow_marks(bent, images[index], pixels, wanted)))
    return replace(scene, depth=tuple(depths)), sureness


def trusting(scene: AlignedScene, confidence: CalibratedConfidence, sureness: Sequence[Tensor]) -> CalibratedConfidence:
    """The confidence with pixels that photo-consistency settles above all others, by how sure that is."""
    everything = torch.cat([values.flatten() for values in confidence.view_confidence])
    top = float(everything.max()) if len(everything) else 0.0
    return CalibratedConfidence(
        tuple(
            (first + top * sureness[pair.reference], second + top * sureness[pair.other])
            for pair, (first, second) in zip(scene.pairs, confidence.pair_weights, strict=True)
        ),
        tuple(values + top * sure for values, sure in zip(confidence.view_confidence, sureness, strict=True)),
        confidence.view_raw_confidence,
    )


@dataclass(frozen=True)
class ViewMarks:
    """The marks of one view, K of them."""

    pixels: Tensor
    """(K, 2) network pixels"""
    depth: Tensor
    """(K,) z-depth of their points, unit of the sparse scene"""


def view_marks(view: View, index: int, sparse: SparseScene) -> ViewMarks:
    """Marks of a placed view whose points lie before it."""
    mine = sparse.mark_view == index
    points = transform_points(invert_rigid(sparse.T_world_camera[index]), sparse.points_world[sparse.mark_point[mine]])
    pixels = network_pixels(view, sparse.mark_pixels[mine])
    front = points[:, 2] > 0
    return ViewMarks(pixels[front], points[front, 2])


def as_settled(scene: AlignedScene, sparse: SparseScene) -> SparseScene:
    """The sparse scene in the very frame of a scene that was settled on it; it places two views or more."""
    placed = [k for k, flag in enumerate(sparse.placed) if flag and scene.registered[k]]
    spans = [(pose[placed, :3, 3] - pose[placed, :3, 3].mean(0)).norm() for pose in _poses(scene, sparse)]
    return _moved(scene, sparse, placed, spans[0] / spans[1].clamp_min(1e-30))


def _near(views: Sequence[View], scene: AlignedScene, sparse: SparseScene) -> SparseScene:
    """The sparse scene in the unit of the dense one (by depths), turned and shifted to lie close to it."""
    logs = []
    for index in (k for k, flag in enumerate(sparse.placed) if flag):
        marks = view_marks(views[index], index, sparse)
        depth = sample_depth(scene.depth[index], marks.pixels)
        if int((depth > 0).sum()) >= LEAST_POINTS:
            logs.append((depth[depth > 0] / marks.depth[depth > 0]).log().median())
    scale = torch.stack(logs).median().exp() if logs else torch.ones((), dtype=torch.float64)
    both = [k for k, flag in enumerate(sparse.placed) if flag and scene.registered[k]]
    return _moved(scene, sparse, both, scale)


def _moved(scene: AlignedScene, sparse: SparseScene, shared: list[int], scale: Tensor) -> SparseScene:
    """Scaled, then turned and shifted so that the shared cameras meet; only scaled where there are none."""
    rotation, shift = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if shared:
        wanted, own = (pose[shared] for pose in _poses(scene, sparse))
        arms = [pose[:, :3, :3].transpose(-1, -2).reshape(-1, 3) for pose in (own, wanted)]
        # Both arms of each axis: centred, so that only the rotation is fitted.
        source, target = (torch.cat([arm, -arm]) for arm in arms)
        rotation = weighted_similarity(source, target, torch.ones_like(source[:, 0]), with_scale=False).rotation
        shift = (wanted[:, :3, 3] - scale * own[:, :3, 3] @ rotation.T).mean(0)
    similar = Similarity(scale, rotation, shift)
    poses = rigid(rotation @ sparse.T_world_camera[:, :3, :3], similar.apply(sparse.T_world_camera[:, :3, 3]))
    return replace(sparse, T_world_camera=poses, points_world=similar.apply(sparse.points_world))


def _poses(scene: AlignedScene, sparse: SparseScene) -> tuple[Tensor, Tensor]:
    return scene.T_world_camera.double(), sparse.T_world_camera


def _best_depth(scene: AlignedScene, predictions: Sequence[PairPrediction], index: int, marks: ViewMarks) -> Tensor:
    """The shape of a view's depth that its marks bear out: the aligned one, or what its own pairs say."""
    candidates = [scene.depth[index], own_depth(scene, predictions, index)]
    return min(candidates, key=lambda depth: _spread(depth, marks))


def _spread(depth: Tensor, marks: ViewMarks) -> float:
    """Median deviation of log depth from the marks after the best scale; infinite where nothing can be compared."""
    own = sample_depth(depth, marks.pixels)
    logs = (marks.depth[own > 0] / own[own > 0]).log()
    return float((logs - logs.median()).abs().median()) if len(logs) >= LEAST_POINTS else float("inf")


def _placed_views(
    views: Sequence[View], scene: AlignedScene, predictions: Sequence[PairPrediction], sparse: SparseScene
) -> AlignedScene:
    """The scene of the views that tracks place, with bent depths; all others count as left out for now."""
    focal, depths, reasons = scene.focal.clone(), [], []
    tracked = torch.tensor(sparse.placed)
    relative = [
        float(sparse.focal[k]) / float((views[k].width ** 2 + views[k].height ** 2) ** 0.5)
        for k in torch.nonzero(tracked)[:, 0].tolist()
    ]
    for index, view in enumerate(views):
        diagonal = float((view.width**2 + view.height**2) ** 0.5)
        photograph = float(sparse.focal[index]) if tracked[index] else float(torch.tensor(relative).median()) * diagonal
        focal[index] = photograph_to_network_focal(photograph, view.affine)
        marks = view_marks(view, index, sparse)
        if tracked[index]:
            base = _best_depth(scene, predictions, index, marks)
            depths.append(bend_depth(base, marks.pixels, marks.depth))
        else:
            depths.append(torch.zeros(view.size))
        reasons.append(None if tracked[index] else "features do not place it")
    return replace(
        scene,
        registered=tuple(bool(flag) for flag in tracked),
        reasons=tuple(reasons),
        T_world_camera=sparse.T_world_camera,
        focal=focal,
        depth=tuple(depths),
    )


def _with_other_views(
    views: Sequence[View],
    placed: AlignedScene,
    scene: AlignedScene,
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig,
    confidence_floor: float,
) -> AlignedScene:
    """Views that the alignment has and tracks lack, registered one after another by pointmaps."""
    missing = [k for k, flag in enumerate(placed.registered) if not flag and scene.registered[k]]
    reasons = list(placed.reasons)
    for index, reason in enumerate(scene.reasons):
        reasons[index] = reason if not placed.registered[index] else None
    poses, depths, registered = placed.T_world_camera.clone(), list(placed.depth), list(placed.registered)
    for index in missing:
        around = [_heldout_last(item, index, len(views)) for item in predictions]
        current = replace(
            placed, T_world_camera=poses, depth=tuple(depths), registered=tuple(registered), reasons=tuple(reasons)
        )
        mine = [item for item in around if item is not None]
        found, reason, pose, _, _ = register_views([views[index]], current, views, mine, config, confidence_floor)
        if found[0]:
            poses[index] = pose[0]
            depths[index] = _fitted_depth(current, pose[0], index, scene.depth[index])
            registered[index] = True
        reasons[index] = reason[0]
    return replace(
        placed, T_world_camera=poses, depth=tuple(depths), registered=tuple(registered), reasons=tuple(reasons)
    )


def _heldout_last(item: PairPrediction, index: int, count: int) -> PairPrediction | None:
    """A prediction about view `index`, numbered as `register_views` wants it; None for the others."""
    pair = item.pair
    if index not in (pair.reference, pair.other):
        return None
    renamed = [count if view == index else view for view in (pair.reference, pair.other)]
    return replace(item, pair=ImagePair(*renamed))


def _fitted_depth(scene: AlignedScene, T_world_camera: Tensor, index: int, depth: Tensor) -> Tensor:
    """A view's depth scaled to meet the points of the registered views that it sees."""
    ratios = []
    for other in (k for k, flag in enumerate(scene.registered) if flag):
        points = transform_points(invert_rigid(T_world_camera), world_points(scene, other).reshape(-1, 3).double()[::7])
        pixels, far = project(points, scene.focal[index], scene.principal_point[index])
        own = sample_depth(depth, pixels.nan_to_num(nan=-1.0))
        seen = (own > 0) & (far > 0)
        ratios.append((far[seen] / own[seen]).log())
    logs = torch.cat(ratios) if ratios else torch.zeros(0)
    return depth * float(logs.median().exp()) if len(logs) else depth


def recalibrated(
    views: Sequence[View],
    scene: AlignedScene,
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig,
    confidence_floor: float,
) -> tuple[AlignedScene, CalibratedConfidence]:
    """Each pair's frame and scale under the scene as it is, and the weights that the predictions then deserve."""
    position = {item.pair: item for item in predictions}
    usable = [item for item in predictions if all(scene.registered[k] for k in (item.pair.reference, item.pair.other))]
    pairs = tuple(item.pair for item in usable)
    votes = pair_votes(views, predictions, confidence_floor)
    confidences = dict(zip((item.pair for item in predictions), votes, strict=True))
    worlds = {k: world_points(scene, k) for k, flag in enumerate(scene.registered) if flag}
    unit = scene_median_depth(scene)
    fits, gaps = [], []
    for pair in pairs:
        fit, residuals = _fit_pair(position[pair], confidences[pair], worlds, config, unit)
        fits.append(fit)
        gaps.append(residuals)
    flat = torch.cat([gap.flatten() for sides in gaps for gap in sides])
    mu = max(config.mu_relative * unit, config.mu_spread * float(flat[:: len(flat) // 1_000_000 + 1].median()))
    weights = []
    for (gap, other_gap), pair in zip(gaps, pairs, strict=True):
        c, other_c = confidences[pair]
        weights.append(
            (calibrated_weights(config.robust, gap, c, mu), calibrated_weights(config.robust, other_gap, other_c, mu))
        )
    count = sum(float(c.sum()) for pair in pairs for c in confidences[pair])
    total = sum(
        float((c * gap).sum()) for sides, pair in zip(gaps, pairs, strict=True)
        for gap, c in zip(sides, confidences[pair], strict=True)
    )  # fmt: skip
    scale, rotation, translation = split_similarity(torch.stack(fits))
    scene = replace(
        scene,
        pairs=pairs,
        T_world_pair=rigid(rotation, translation),
        pair_scale=scale,
        mu=mu,
        residual=total / max(count, 1e-30) / unit,
    )
    return scene, calibrated_confidence(scene, usable, weights)


def _fit_pair(
    item: PairPrediction,
    confidence: tuple[Tensor, Tensor],
    worlds: dict[int, Tensor],
    config: AlignmentConfig,
    unit: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Similarity (4, 4) of a pair's frame to the world, and the residual norms of both sides, scene units."""
    source, target, votes = [], [], []
    sides = ((item.pair.reference, item.points_reference), (item.pair.other, item.points_other))
    for (view, cloud), sureness in zip(sides, confidence, strict=True):
        grid = sample_grid((cloud.shape[0], cloud.shape[1]), config.samples_per_view)
        source.append(cloud.reshape(-1, 3)[grid].double())
        target.append(worlds[view].reshape(-1, 3)[grid].double())
        votes.append(sureness.flatten()[grid].double())
    fit, _ = robust_similarity(torch.cat(source), torch.cat(target), torch.cat(votes), config.mu_relative * unit)
    matrix = fit.matrix.float()
    residuals = tuple(
        (transform_points(matrix, cloud.reshape(-1, 3)) - worlds[view].reshape(-1, 3))
        .norm(dim=-1)
        .view(cloud.shape[:2])
        for view, cloud in sides
    )
    return fit.matrix, (residuals[0], residuals[1])
