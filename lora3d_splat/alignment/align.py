"""`align`: pair predictions -> one aligned scene with calibrated confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..confidence import calibrated_confidence
from ..errors import InputError
from ..geometry.procrustes import Similarity, robust_similarity
from ..geometry.transforms import rigid, transform_points
from ..records import AlignedScene, CalibratedConfidence, ImagePair, PairPrediction, PixelAffine, View
from .config import AlignmentConfig
from .dense import DenseView, dense_view
from .diagnose import check_parallax, heard_pairs, lost_views, misfit_views, silent_views, too_few_views
from .initialise import Edge, grow_tree, initial_variables, prepare
from .observations import Observations, Voting, observe, sides_of
from .priors import CameraPriors, frame_of_priors, no_priors
from .solve import AlignmentStep, Listener, Problem, State, solve
from .variables import FocalModes, Layout, Variables, focal_modes


class Alignment(NamedTuple):
    """What `align` finds."""

    scene: AlignedScene
    confidence: CalibratedConfidence


@dataclass(frozen=True)
class Subset:
    """The views still in play, renumbered; `members[k]` is the original index of view k."""

    members: tuple[int, ...]
    positions: tuple[int, ...]
    """positions of the taking-part predictions among all"""
    pairs: tuple[ImagePair, ...]
    """their pairs, renumbered"""


@dataclass(frozen=True)
class Solution:
    """A solved subset."""

    subset: Subset
    variables: Variables
    mu: float
    edges: tuple[Edge, ...]


def align(
    predictions: Sequence[PairPrediction],
    config: AlignmentConfig | None = None,
    *,
    views: Sequence[View] | None = None,
    priors: CameraPriors | None = None,
    confidence_floor: float = 0.5,
    advance: Callable[[int], None] | None = None,
    on_step: Listener | None = None,
) -> Alignment:
    """Place every view in one world and learn which predictions to trust (LoRA3D, robust alignment).

    `views` give names, masks, EXIF and the way to photograph pixels; without them, the maps are taken for whole
    pictures. `priors` are known cameras, whose frame and unit the scene then has; else the unit is the scene's own.
    `confidence_floor` is a log-confidence; pixels below it never vote. `advance` is told of `config.steps` units,
    `on_step` hears of every step. Raises AlignmentError where fewer than two views fit together or the cameras share
    one position, InputError where predictions, views and priors do not match.
    """
    config = config or AlignmentConfig()
    views = blank_views(predictions) if views is None else views
    priors = no_priors(views) if priors is None else priors
    _check_shapes(views, predictions, priors)
    observations, voting = observe(views, predictions, priors, confidence_floor, config.samples_per_view)
    modes = focal_modes(views, config, priors)
    heard = heard_pairs(observations, config)
    silent = silent_views(observations, heard, config)
    reasons: list[str | None] = [silent.get(index) for index in range(len(views))]
    solution, ticker = None, _Ticker(config.steps, advance, on_step)
    while solution is None:
        subset = _subset(predictions, heard, reasons)
        if len(subset.members) < 2:
            raise too_few_views(views, reasons)
        solution = _solve_subset(subset, views, observations, modes, priors, config, reasons, ticker)
    ticker.finish()
    return _finish(views, predictions, voting, solution, modes, priors, config, reasons)


def blank_views(predictions: Sequence[PairPrediction]) -> tuple[View, ...]:
    """Views that know nothing but the sizes of their pointmaps."""
    sizes: dict[int, tuple[int, int]] = {}
    for item in predictions:
        for view, points, _ in sides_of(item):
            sizes[view] = (points.shape[0], points.shape[1])
    count = max(sizes, default=-1) + 1
    return tuple(blank_view(f"view {index}", *sizes.get(index, (1, 1))) for index in range(count))


def blank_view(name: str, height: int, width: int, mask: np.ndarray | None = None) -> View:
    """A view without a picture, whose network pixels are its photograph's."""
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
    return View(name, Path(name), width, height, image, PixelAffine(1.0, 1.0, 0.0, 0.0), name, mask=mask)


class _Ticker:
    """Passes the solver's steps on, as units of progress and to a listener."""

    def __init__(self, steps: int, advance: Callable[[int], None] | None, on_step: Listener | None) -> None:
        self.left, self.advance, self.on_step = steps, advance, on_step

    def __call__(self, step: AlignmentStep) -> None:
        self._advance(min(1, self.left))
        if self.on_step is not None:
            self.on_step(step)

    def finish(self) -> None:
        self._advance(self.left)

    def _advance(self, units: int) -> None:
        self.left -= units
        if self.advance is not None and units:
            self.advance(units)


def _solve_subset(
    subset: Subset,
    views: Sequence[View],
    everything: Observations,
    modes: FocalModes,
    priors: CameraPriors,
    config: AlignmentConfig,
    reasons: list[str | None],
    listen: Listener,
) -> Solution | None:
    """Start and solve; None when views had to be left out (their reasons are then filled in)."""
    names = [views[index].file for index in subset.members]
    observations = everything.of(subset.members, subset.positions)
    modes, priors, pairs = modes.of(subset.members), priors.of(subset.members), list(subset.pairs)
    start = prepare(observations, pairs, modes)
    tree = grow_tree([edge for edge in start.edges if edge.disagreement <= config.disagreement_limit])
    reasons_here = lost_views(names, observations, start.edges, tree, config)
    if reasons_here:
        _leave_out(subset, reasons_here, reasons)
        return None
    variables, depth = initial_variables(observations, pairs, start, tree, config.pair_scale)
    variables, depth = _in_known_frame(variables, depth, priors)
    trust = _trust(start.edges, pairs)
    free_unit = int(priors.posed.sum()) < 2
    layout = Layout(
        len(names),
        len(pairs),
        modes,
        priors.fixed_pose,
        free_unit,
        lead=observations.view[observations.reference_blocks()],
        own=0 if config.residual == "reprojection" else 7,
    )
    problem = Problem(observations, layout, priors, trust, config)
    state, mu = solve(problem, variables, depth, listen)
    reasons_here = misfit_views(names, problem, state)
    if reasons_here:
        _leave_out(subset, reasons_here, reasons)
        return None
    variables = state.variables if layout.own else _pairs_registered(observations, state)
    if not layout.own:
        mu = mu * float(state.depth.median())
    if free_unit and not bool(priors.posed.any()):
        factor = config.pair_scale / (trust @ variables.log_scale / trust.sum()).exp()
        nowhere = torch.zeros(3, dtype=torch.float64)
        variables = variables.moved_to(Similarity(factor, torch.eye(3, dtype=torch.float64), nowhere))
        mu = mu * float(factor)
    return Solution(subset, variables, mu, tuple(start.edges))


def _in_known_frame(variables: Variables, depth: Tensor, priors: CameraPriors) -> tuple[Variables, Tensor]:
    """The start in the frame of the known poses, known views exactly where they are known to be."""
    frame = frame_of_priors(variables.T_world_view, priors)
    if frame is None:
        return variables, depth
    moved = variables.moved_to(frame)
    poses = torch.where(priors.posed[:, None, None], priors.T_world_camera, moved.T_world_view)
    return replace(moved, T_world_view=poses), depth * frame.scale


def _pairs_registered(observations: Observations, state: State) -> Variables:
    """Pair poses and scales in closed form, against the depths and cameras that the reprojection residual found."""
    variables = state.variables
    slopes = observations.pixels / variables.log_focal.exp()[:, None, None]
    camera = torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1) * state.depth[..., None]
    clouds = transform_points(variables.T_world_view, camera)[observations.view]
    fits, _ = robust_similarity(
        observations.sides(observations.points),
        observations.sides(clouds),
        observations.sides(observations.confidence),
        tolerance=0.02 * state.depth.median(),
    )
    return replace(variables, T_world_pair=rigid(fits.rotation, fits.translation), log_scale=fits.scale.log())


def _trust(edges: Sequence[Edge], pairs: Sequence[ImagePair]) -> Tensor:
    """(P,) weight of each pair's scale in the scene's unit: little where its edge contradicts itself or its triangles.

    Without it a bounded loss would let a hopeless pair grow without cost while the whole scene shrinks in exchange.
    """
    gap = {edge.views: edge.disagreement for edge in edges}
    gaps = torch.tensor([gap[min(p.reference, p.other), max(p.reference, p.other)] for p in pairs]).double()
    typical = gaps.median().clamp_min(1e-3)
    return 1 / (1 + (gaps / (2 * typical)) ** 4)


def _leave_out(subset: Subset, lost: dict[int, str], reasons: list[str | None]) -> None:
    for index, reason in lost.items():
        reasons[subset.members[index]] = reason


def _subset(predictions: Sequence[PairPrediction], heard: Sequence[bool], reasons: Sequence[str | None]) -> Subset:
    """The views without a reason against them, and the pairs of such views that have something to say."""
    members = tuple(index for index, reason in enumerate(reasons) if reason is None)
    rename = {original: new for new, original in enumerate(members)}
    positions = tuple(
        position
        for position, item in enumerate(predictions)
        if heard[position] and item.pair.reference in rename and item.pair.other in rename
    )
    pairs = (predictions[position].pair for position in positions)
    renamed = tuple(ImagePair(rename[pair.reference], rename[pair.other]) for pair in pairs)
    return Subset(members, positions, renamed)


def _finish(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    voting: Voting,
    solution: Solution,
    modes: FocalModes,
    priors: CameraPriors,
    config: AlignmentConfig,
    reasons: Sequence[str | None],
) -> Alignment:
    """Depths and weights at full resolution, and everything back under the original indices."""
    subset, variables = solution.subset, solution.variables
    taking_part = [
        replace(predictions[position], pair=pair) for position, pair in zip(subset.positions, subset.pairs, strict=True)
    ]
    local = [
        dense_view(
            k, views[index], priors.principal_point[index], taking_part, voting, variables, solution.mu, config.robust
        )
        for k, index in enumerate(subset.members)
    ]
    median_depth = float(torch.cat([item.depth[item.depth > 0] for item in local]).median())
    check_parallax(variables.T_world_view, median_depth, solution.edges, config)
    dense = dict(zip(subset.members, local, strict=True))
    scene = _scene(views, solution, modes, priors, dense, median_depth, reasons)
    weights = {block: side for item in local for block, side in zip(item.blocks, item.weights, strict=True)}
    sides = [(weights[2 * number], weights[2 * number + 1]) for number in range(len(taking_part))]
    return Alignment(scene, calibrated_confidence(scene, [predictions[k] for k in subset.positions], sides))


def _scene(
    views: Sequence[View],
    solution: Solution,
    modes: FocalModes,
    priors: CameraPriors,
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
    votes, cost = (sum(getattr(item, name) for item in dense.values()) for name in ("votes", "cost"))
    return AlignedScene(
        registered=tuple(index in dense for index in range(len(views))),
        reasons=tuple(reasons),
        T_world_camera=poses,
        focal=focal,
        principal_point=priors.principal_point,
        depth=tuple(
            dense[index].depth if index in dense else torch.zeros(view.size) for index, view in enumerate(views)
        ),
        pairs=tuple(ImagePair(members[pair.reference], members[pair.other]) for pair in subset.pairs),
        T_world_pair=variables.T_world_pair,
        pair_scale=variables.log_scale.exp(),
        mu=solution.mu,
        residual=cost / max(votes, 1e-30) / median_depth,
    )


def _check_shapes(views: Sequence[View], predictions: Sequence[PairPrediction], priors: CameraPriors) -> None:
    if len(priors.focal) != len(views):
        raise InputError(
            f"priors for {len(priors.focal)} views", f"one entry for each of the {len(views)} views", "match the two"
        )
    for item in predictions:
        for index, cloud, confidence in sides_of(item):
            if not 0 <= index < len(views) or tuple(cloud.shape) != (*views[index].size, 3):
                raise InputError(
                    f"a prediction of view {index} with shape {tuple(cloud.shape)}",
                    f"views 0 to {len(views) - 1} with pointmaps of their own size",
                    "predict the pairs again from the same views",
                )
            if tuple(confidence.shape) != views[index].size:
                raise InputError(
                    f"a confidence of view {index} with shape {tuple(confidence.shape)}",
                    f"the view's own size {views[index].size}",
                    "predict the pairs again from the same views",
                )
