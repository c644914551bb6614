"""Placing held-out views in a finished scene; the scene does not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import focal_from_pointmap, photograph_to_network_focal, principal_point_of
from ..geometry.procrustes import robust_similarity, weighted_similarity
from ..geometry.transforms import rigid, transform_points
from ..records import AlignedScene, PairPrediction, View
from .config import AlignmentConfig
from .judge import scene_median_depth, world_points
from .observations import centred_pixels, pair_votes, sample_grid
from .robust import masked_median
from .variables import diagonal

TRIAL_ROUNDS, POOL_ROUNDS = 4, 40
"""Alternations between the common pose and the scales of the pairs: for every proposal, and for the best one."""


@dataclass(frozen=True)
class Sighting:
    """Points in the held-out camera's frame (network units) with the world points they should meet; N samples."""

    points_camera: Tensor
    """(N, 3)"""
    points_world: Tensor
    """(N, 3)"""
    votes: Tensor
    """(N,) log-confidence"""


def register_views(
    heldout_views: Sequence[View],
    scene: AlignedScene,
    train_views: Sequence[View],
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig | None = None,
    confidence_floor: float = 0.5,
) -> tuple[tuple[bool, ...], tuple[str | None, ...], Tensor, Tensor, Tensor]:
    """Pose of each held-out view from its pairs with the trained views, by robust registration of pointmaps.

    Indices in `predictions`: trained views 0 to V - 1, held-out views V to V + H - 1. Pairs led by the held-out view
    give trained points in its camera's frame, which meet the scene directly; pairs led by a trained view give the
    held-out view's points in the scene, which meet its own pointmap.
    Returns registered (H,), reasons (H,), T_world_camera (H, 4, 4) float64, focal (H,) and principal point (H, 2) in
    network pixels.
    """
    config = config or AlignmentConfig()
    masked = pair_votes([*train_views, *heldout_views], predictions, confidence_floor)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(heldout_views), 1, 1)
    reasons: list[str | None] = []
    worlds = {index: world_points(scene, index) for index, placed in enumerate(scene.registered) if placed}
    unit = scene_median_depth(scene)
    for position in range(len(heldout_views)):
        mine = [
            (item, sides)
            for item, sides in zip(predictions, masked, strict=True)
            if len(train_views) + position in (item.pair.reference, item.pair.other)
        ]
        sightings = _sightings(len(train_views) + position, mine, worlds, config, unit)
        poses[position], reason = _place(sightings, config, unit)
        reasons.append(reason)
    focal = [
        _focal(view, len(train_views) + position, scene, train_views, predictions, masked, config)
        for position, view in enumerate(heldout_views)
    ]
    centre = torch.tensor([principal_point_of(view) for view in heldout_views], dtype=torch.float64).reshape(-1, 2)
    registered = tuple(reason is None for reason in reasons)
    return registered, tuple(reasons), poses, torch.tensor(focal, dtype=torch.float64), centre


def _sightings(
    heldout: int,
    mine: Sequence[tuple[PairPrediction, tuple[Tensor, Tensor]]],
    worlds: dict[int, Tensor],
    config: AlignmentConfig,
    unit: float,
) -> list[Sighting]:
    direct, own = [], []
    for item, sides in mine:
        train = item.pair.other if item.pair.reference == heldout else item.pair.reference
        if train not in worlds:
            continue
        if item.pair.reference == heldout:
            direct.append(_sighting(item.points_other, worlds[train], sides[1], config))
            own.append((item.points_reference, sides[0]))
    for item, sides in mine:
        if item.pair.other != heldout or item.pair.reference not in worlds or not own:
            continue
        anchor = _sighting(item.points_reference, worlds[item.pair.reference], sides[0], config)
        fit, _ = robust_similarity(anchor.points_camera, anchor.points_world, anchor.votes, config.mu_relative * unit)
        cloud = transform_points(fit.matrix, item.points_other.reshape(-1, 3).double()).view_as(item.points_other)
        camera, sureness = max(own, key=lambda entry: float(entry[1].sum()))
        direct.append(_sighting(camera, cloud, sides[1] * sureness, config))
    return [sighting for sighting in direct if bool((sighting.votes > 0).sum() >= 3)]


def _sighting(cloud: Tensor, world: Tensor, votes: Tensor, config: AlignmentConfig) -> Sighting:
    grid = sample_grid((cloud.shape[0], cloud.shape[1]), config.samples_per_view)
    points, targets = (field.reshape(-1, 3)[grid].double() for field in (cloud, world))
    return Sighting(points, targets, votes.flatten()[grid].double())


def _place(sightings: list[Sighting], config: AlignmentConfig, unit: float) -> tuple[Tensor, str | None]:
    """Pose (4, 4) and, where it is not to be trusted, the reason."""
    if not sightings:
        return torch.eye(4, dtype=torch.float64), "no confident pair with a registered view was predicted"
    length = max(len(sighting.votes) for sighting in sightings)
    points, targets, votes = (
        torch.stack([_pad(getattr(sighting, name), length) for sighting in sightings])
        for name in ("points_camera", "points_world", "votes")
    )
    mu = config.mu_relative * unit
    fits, residual = robust_similarity(points, targets, votes, mu)
    mu = max(mu, config.mu_spread * float(masked_median(residual, votes).nanmedian()))
    proposals = [
        _pooled(points, targets, votes, mu, proposal, TRIAL_ROUNDS)
        for proposal in rigid(fits.rotation, fits.translation)
    ]
    best, _, _ = min(proposals, key=lambda proposal: proposal[1])
    pose, _, gap = _pooled(points, targets, votes, mu, best, POOL_ROUNDS)
    if gap > config.residual_limit * unit:
        return torch.eye(4, dtype=torch.float64), (
            f"it does not fit the scene: its best pose leaves a median residual of {gap / unit:.0%} of the depth "
            f"(limit {config.residual_limit:.0%})"
        )
    return pose, None


def _pooled(
    points: Tensor, targets: Tensor, votes: Tensor, mu: float, pose: Tensor, rounds: int
) -> tuple[Tensor, float, float]:
    """Refine one pose over all sightings (K, N), each with its own scale; pose, robust loss, median residual."""
    for _ in range(rounds):
        scale, residual, weights = _fit_scales(points, targets, votes, mu, pose)
        source = (scale[:, None, None] * points).flatten(0, 1)
        # A common scale in the fit, absorbed by the pairs' own in the next round, spares the alternation many rounds.
        fit = weighted_similarity(source, targets.flatten(0, 1), weights.flatten())
        pose = rigid(fit.rotation, fit.translation)
    _, residual, _ = _fit_scales(points, targets, votes, mu, pose)
    loss = (votes * residual / (1 + residual / mu)).sum() / votes.sum()
    return pose, float(loss), float(masked_median(residual.flatten(), votes.flatten()))


def _fit_scales(
    points: Tensor, targets: Tensor, votes: Tensor, mu: float, pose: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sighting's best scale (K,) under a pose, with the residuals and least-squares weights (K, N) it leaves."""
    turned, arm, weights = points @ pose[:3, :3].T, targets - pose[:3, 3], votes
    for _ in range(3):
        scale = (weights * (turned * arm).sum(-1)).sum(-1) / (weights * turned.square().sum(-1)).sum(-1)
        scale = scale.clamp_min(1e-6)
        residual = (scale[:, None, None] * turned - arm).norm(dim=-1)
        weights = votes / (1 + residual / mu) ** 2 / (residual + 0.05 * mu)
    return scale, residual, weights


def _focal(
    view: View,
    index: int,
    scene: AlignedScene,
    train_views: Sequence[View],
    predictions: Sequence[PairPrediction],
    masked: Sequence[tuple[Tensor, Tensor]],
    config: AlignmentConfig,
) -> float:
    """Focal in network pixels: the setting's own, the scene's shared one, or the view's own estimate."""
    fixed = view.focal_hint if config.focal == "exif" else config.fixed_focal
    if fixed is not None:
        return photograph_to_network_focal(fixed, view.affine)
    led = [k for k, item in enumerate(predictions) if item.pair.reference == index]
    if config.focal == "per-view" and led:
        pixels = centred_pixels(view.size, torch.tensor(principal_point_of(view), dtype=torch.float64))
        estimates = [
            focal_from_pointmap(predictions[k].points_reference.reshape(-1, 3).double(), pixels, masked[k][0].flatten())
            for k in led
        ]
        return float(torch.stack(estimates).nanmedian())
    relative = [
        float(scene.focal[k]) / photograph_to_network_focal(diagonal(train), train.affine)
        for k, train in enumerate(train_views)
        if scene.registered[k]
    ]
    return float(torch.tensor(relative).median()) * photograph_to_network_focal(diagonal(view), view.affine)


def _pad(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
