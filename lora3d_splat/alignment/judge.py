"""Judging predictions against a finished scene, without moving it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.procrustes import robust_similarity
from ..geometry.projection import unproject
from ..geometry.transforms import transform_points
from ..records import AlignedScene, PairPrediction
from .observations import sample_grid
from .robust import robust_loss

JUDGE_MU = 0.05
"""Residual (fraction of the median depth) at which the judging loss reaches half its ceiling."""


def world_points(scene: AlignedScene, view: int) -> Tensor:
    """(H, W, 3) world points of a registered view, float32."""
    points = unproject(scene.depth[view].double(), scene.focal[view], scene.principal_point[view])
    return transform_points(scene.T_world_camera[view], points.flatten(0, 1)).view_as(points).float()


def scene_median_depth(scene: AlignedScene) -> float:
    """Median z-depth over all pixels of all registered views, scene units."""
    depths = [depth[depth > 0] for depth, placed in zip(scene.depth, scene.registered, strict=True) if placed]
    return float(torch.cat(depths).median())


def pair_residual(
    scene: AlignedScene,
    predictions: Sequence[PairPrediction],
    mu_relative: float = JUDGE_MU,
    samples_per_view: int = 800,
) -> float:
    """Robust disagreement of predictions with a fixed scene, as a fraction of its median depth; 0 is perfect.

    Each prediction gets its own best similarity in closed form; what remains per pixel is mu e / (mu + e), averaged.
    This compares two networks fairly because nothing in it is theirs to choose: the scene does not see the judged pairs
    (give it predictions that took no part in its alignment or fine-tuning), scale and pose of a pair are gauge, every
    pixel counts once whatever confidence the network claims, the loss is bounded so a few gross errors decide nothing,
    and both mu and the result are relative to the scene's depth, so that a smaller scene does not look better.
    Judge each network against the scene aligned from its own other predictions: that asks whether it agrees with itself
    across pairs, without favouring the network that made a common scene.
    Pairs of unregistered views are skipped; raises InputError if none is left.
    """
    usable = [
        item for item in predictions if scene.registered[item.pair.reference] and scene.registered[item.pair.other]
    ]
    if not usable:
        raise InputError("no pair of registered views to judge", "at least one", "judge pairs of registered views")
    median_depth = scene_median_depth(scene)
    worlds = {index: world_points(scene, index) for item in usable for index in (item.pair.reference, item.pair.other)}
    losses = [_pair_loss(scene, item, worlds, mu_relative * median_depth, samples_per_view) for item in usable]
    return float(torch.cat(losses).mean()) / median_depth


def _pair_loss(scene: AlignedScene, item: PairPrediction, worlds: dict[int, Tensor], mu: float, samples: int) -> Tensor:
    """(N,) bounded residuals of the sampled pixels of both sides, scene units."""
    source, target, votes = [], [], []
    sides = ((item.pair.reference, item.points_reference), (item.pair.other, item.points_other))
    for view, cloud in sides:
        grid = sample_grid(tuple(cloud.shape[:2]), samples)
        source.append(cloud.reshape(-1, 3)[grid].double())
        target.append(worlds[view].reshape(-1, 3)[grid].double())
        votes.append((scene.depth[view].flatten()[grid] > 0).double())
    weight = torch.cat(votes)
    _, residual = robust_similarity(torch.cat(source), torch.cat(target), weight, tolerance=mu)
    return robust_loss(residual[weight > 0], torch.ones(()), mu)
