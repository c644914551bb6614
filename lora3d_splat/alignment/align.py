"""`align`: pair predictions -> one aligned scene with calibrated confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..confidence import calibrated_confidence
from ..errors import InputError
from ..geometry.cameras import principal_point_of
from ..records import AlignedScene, CalibratedConfidence, ImagePair, PairPrediction, View
from .config import AlignmentConfig
from .dense import DenseView, dense_view
from .diagnose import check_parallax, misfit_views, too_few_views, unconnected_views, unusable_views
from .initialise import grow_tree, initial_variables, score_edges
from .observations import observe
from .robust import masked_log_confidence
from .solve import solve
from .variables import FocalModes, Variables, focal_modes

DEAD_CONFIDENCE = 0.02
"""Where 99 % of the log-confidences lie below this, the network cannot judge itself yet: all pixels count alike."""

Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subset:
    """The views still in play, renumbered; `members[k]` is the original index of view k."""

    members: tuple[int, ...]
    positions: tuple[int, ...]
    """positions of the taking-part predictions among all"""
    views: tuple[View, ...]
    predictions: tuple[PairPrediction, ...]
    confidences: tuple[Sides, ...]


@dataclass(frozen=True)
class Solution:
    """A solved subset."""

    subset: Subset
    variables: Variables
    mu: float


def align(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig | None = None,
    confidence_floor: float = 0.5,
    advance: Callable[[int], None] | None = None,
) -> tuple[AlignedScene, CalibratedConfidence]:
    """Place every view in one world and learn which predictions to trust (LoRA3D, robust alignment).

    `confidence_floor` is a log-confidence; pixels below it never vote. `advance` is told of `config.steps` units.
    The unit of length is the scene's own. Raises AlignmentError where fewer than two views fit together or the cameras
    share one position, InputError where predictions and views do not match.
    """
    config = config or AlignmentConfig()
    _check_shapes(views, predictions)
    confidences = log_confidences(predictions, confidence_floor)
    modes = focal_modes(views, config)
    reasons: list[str | None] = [None] * len(views)
    solution = None
    while solution is None:
        subset = _subset(views, predictions, confidences, reasons)
        if len(subset.views) < 2:
            raise too_few_views(views, reasons)
        solution = _solve_subset(subset, _members_modes(modes, subset), config, reasons, advance)
    return _finish(views, predictions, solution, modes, config, reasons)


def log_confidences(predictions: Sequence[PairPrediction], floor: float) -> tuple[Sides, ...]:
    """C per prediction and side: log-confidences masked by the floor; ones where the network's confidence is dead."""
    sides = [(item.confidence_reference, item.confidence_other) for item in predictions]
    sample = torch.cat([side.flatten()[::37] for pair in sides for side in pair]).double().clamp_min(1.0).log()
    if float(torch.quantile(sample[:: len(sample) // 100_000 + 1], 0.99)) < DEAD_CONFIDENCE:
        return tuple((torch.ones_like(first), torch.ones_like(second)) for first, second in sides)
    return tuple((masked_log_confidence(a, floor), masked_log_confidence(b, floor)) for a, b in sides)


def _solve_subset(
    subset: Subset,
    modes: FocalModes,
    config: AlignmentConfig,
    reasons: list[str | None],
    advance: Callable[[int], None] | None,
) -> Solution | None:
    """Start and solve; None when views had to be left out (their reasons are then filled in)."""
    observations = observe(subset.views, subset.predictions, subset.confidences, config.samples_per_view)
    pairs = [prediction.pair for prediction in subset.predictions]
    edges = score_edges(observations, pairs)
    tree = grow_tree([edge for edge in edges if edge.disagreement <= config.disagreement_limit])
    reached = {view for _, old, new in tree for view in (old, new)}
    lost = unconnected_views(subset.views, reached) | unusable_views(subset.views, observations, edges, config)
    if lost:
        _leave_out(subset, lost, reasons)
        return None
    start, depth = initial_variables(observations, pairs, tree, modes, config.pair_scale)
    state, mu = solve(observations, start, depth, modes, config, advance)
    lost = misfit_views(observations, state, config)
    if lost:
        _leave_out(subset, lost, reasons)
        return None
    return Solution(subset, state.variables, mu)


def _leave_out(subset: Subset, lost: dict[int, str], reasons: list[str | None]) -> None:
    for index, reason in lost.items():
        reasons[subset.members[index]] = reason


def _finish(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    solution: Solution,
    modes: FocalModes,
    config: AlignmentConfig,
    reasons: Sequence[str | None],
) -> tuple[AlignedScene, CalibratedConfidence]:
    """Depths and weights at full resolution, and everything back under the original indices."""
    subset, variables = solution.subset, solution.variables
    robust = config.robust != "none"
    local = [
        dense_view(k, view, subset.predictions, subset.confidences, variables, solution.mu, robust)
        for k, view in enumerate(subset.views)
    ]
    median_depth = float(torch.cat([item.depth[item.depth > 0] for item in local]).median())
    check_parallax(variables.T_world_view, median_depth, config)
    scene = _scene(views, solution, modes, dict(zip(subset.members, local, strict=True)), median_depth, reasons)
    weights = {block: side for item in local for block, side in zip(item.blocks, item.weights, strict=True)}
    taking_part = [predictions[position] for position in subset.positions]
    sides = [(weights[2 * number], weights[2 * number + 1]) for number in range(len(taking_part))]
    return scene, calibrated_confidence(scene, taking_part, sides)


def _scene(
    views: Sequence[View],
    solution: Solution,
    modes: FocalModes,
    dense: dict[int, DenseView],
    median_depth: float,
    reasons: Sequence[str | None],
) -> AlignedScene:
    subset, variables = solution.subset, solution.variables
    members = list(subset.members)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(views), 1, 1)
    poses[members] = variables.T_world_view
    relative = variables.log_focal.exp() / modes.unit[members]
    focal = modes.unit * relative.median()
    focal[members] = variables.log_focal.exp()
    votes = sum(float(item.confidence.double().sum()) for item in dense.values())
    total = sum(float((item.confidence * item.residual).double().sum()) for item in dense.values())
    return AlignedScene(
        registered=tuple(index in dense for index in range(len(views))),
        reasons=tuple(reasons),
        T_world_camera=poses,
        focal=focal,
        principal_point=torch.tensor([principal_point_of(view) for view in views], dtype=torch.float64),
        depth=tuple(
            dense[index].depth if index in dense else torch.zeros(view.size) for index, view in enumerate(views)
        ),
        pairs=tuple(ImagePair(members[item.pair.reference], members[item.pair.other]) for item in subset.predictions),
        T_world_pair=variables.T_world_pair,
        pair_scale=variables.log_scale.exp(),
        mu=solution.mu,
        residual=total / max(votes, 1e-30) / median_depth,
    )


def _subset(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    confidences: Sequence[Sides],
    reasons: Sequence[str | None],
) -> Subset:
    members = tuple(index for index, reason in enumerate(reasons) if reason is None)
    rename = {original: new for new, original in enumerate(members)}
    positions = tuple(
        position
        for position, item in enumerate(predictions)
        if item.pair.reference in rename and item.pair.other in rename
    )
    renamed = tuple(
        replace(item, pair=ImagePair(rename[item.pair.reference], rename[item.pair.other]))
        for item in (predictions[position] for position in positions)
    )
    kept = tuple(confidences[position] for position in positions)
    return Subset(members, positions, tuple(views[index] for index in members), renamed, kept)


def _members_modes(modes: FocalModes, subset: Subset) -> FocalModes:
    """The focal modes of the members, columns renumbered without gaps."""
    members = list(subset.members)
    mode = modes.mode[members].clone()
    used = mode[mode >= 0].unique()
    mode = torch.where(mode >= 0, torch.searchsorted(used, mode.clamp_min(0)), mode)
    return FocalModes(modes.unit[members], mode, modes.fixed[members])


def _check_shapes(views: Sequence[View], predictions: Sequence[PairPrediction]) -> None:
    for item in predictions:
        sides = ((item.pair.reference, item.points_reference), (item.pair.other, item.points_other))
        for index, cloud in sides:
            if not 0 <= index < len(views) or tuple(cloud.shape[:2]) != views[index].size:
                raise InputError(
                    f"a prediction of view {index} with shape {tuple(cloud.shape)}",
                    f"views 0 to {len(views) - 1} with pointmaps of their own size",
                    "predict the pairs again from the same views",
                )
            if not bool(torch.isfinite(cloud).all()):
                raise InputError(
                    f"a prediction of pair ({item.pair.reference}, {item.pair.other}) that is not finite",
                    "finite pointmaps",
                    "check the network's weights",
                )
