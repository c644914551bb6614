"""The loop: residuals -> weights -> step -> stop.

Re-weighted Gauss-Newton. A robust kernel enters as weights slope / |e| of a least-squares problem, which touches the
objective from above; steps that do not lower the objective are taken back with more damping. The robust width starts
wide and closes in, so that a start some way off is not taken for an outlier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from . import reprojection, residuals
from .config import AlignmentConfig
from .normal_equations import System, gauss_newton_step
from .observations import Observations
from .priors import CameraPriors, pose_pull
from .robust import SMOOTHING, Kernel, kernel_loss, kernel_slope, masked_median, mean_over
from .variables import Layout, Variables

TOLERANCE = 3e-4
"""Relative fall of the objective below which a step counts as standing still."""
STILL = 3e-5
"""Largest move of a camera centre, over the depth, that counts as standing still whatever hopeless pairs do."""
PATIENCE = 3
"""Steps in a row that stand still before the loop ends."""
WIDE, NARROWING = 8.0, 0.6
"""How much wider than mu the kernel is at the first step, and the factor by which it closes in at each."""
CG_ROUNDS, CG_TOLERANCE = 60, 1e-3
"""Conjugate gradients per step; focals and baselines trade off softly, and a loose solve leaves just them behind."""
MODELS: dict[str, ModuleType] = {"pointmap": residuals, "reprojection": reprojection}
"""Modules with world_geometry, best_depth, typical_size, squared_errors and linearised."""


@dataclass(frozen=True)
class State:
    """Where the solver stands."""

    variables: Variables
    depth: Tensor
    """(V, S)"""
    squared: Tensor
    """(B, S) squared residual norms"""

    def residual(self, yardstick: Tensor, smoothing: float = 0.0) -> Tensor:
        """(B, S) residual norms over the yardstick, rounded off below `smoothing`."""
        return (self.squared / yardstick**2 + smoothing**2).sqrt()


@dataclass(frozen=True)
class AlignmentStep:
    """What a listener hears after every step of the solver."""

    step: int
    steps: int
    """the most that can come"""
    loss: float
    """objective over its mu: comparable between steps once mu has settled"""
    mu: float
    T_world_camera: Tensor
    """(V, 4, 4) float64"""
    focal: Tensor
    """(V,) float64, network pixels"""


Listener = Callable[[AlignmentStep], None]


@dataclass(frozen=True)
class Problem:
    """Everything that stays while the solver runs."""

    observations: Observations
    layout: Layout
    priors: CameraPriors
    trust: Tensor
    """(P,) how much each pair's scale has to say about the scene's unit"""
    config: AlignmentConfig

    def votes(self, settled: bool) -> Tensor:
        """(B, S) what each pixel has to say: until the kernel has closed in, mistrusted pairs say little."""
        confidence = self.observations.confidence
        return confidence if settled else confidence * self.trust[self.observations.pair, None]

    @property
    def relative(self) -> bool:
        """Whether residuals are measured against their pixel's depth; the plain alignment takes them as they are."""
        return self.layout.own > 0 and self.kernel != "none"

    def yardstick(self, depth: Tensor) -> Tensor:
        """(B, S) what a residual is measured with: the pixel's depth over the typical one; networks err by shares."""
        if not self.relative:
            return torch.ones_like(self.observations.confidence)
        typical = self.model.typical_size(self.observations, depth)
        return (depth / typical).clamp(0.05, 20.0)[self.observations.view]

    @property
    def depth_weight(self) -> float:
        """How residuals along the rays count; the plain alignment takes all directions alike."""
        return 1.0 if self.kernel == "none" else self.config.depth_weight

    @property
    def kernel(self) -> Kernel:
        return self.config.robust

    @property
    def model(self) -> ModuleType:
        return MODELS[self.config.residual]


def solve(problem: Problem, start: Variables, depth: Tensor, listen: Listener | None = None) -> tuple[State, float]:
    """Minimise the alignment objective from a start; returns the final state and mu (scene units)."""
    config, damping, idle = problem.config, 1e-4, 0
    geometry = problem.model.world_geometry(start, problem.observations)
    state = _evaluated(problem, start, geometry, depth)
    mu = WIDE * settled_mu(problem, state)
    for step in range(config.steps):
        goal = settled_mu(problem, state)
        settled = step >= config.settle_steps
        mu = mu if settled else max(goal, NARROWING * mu)
        votes, yardstick = problem.votes(settled), problem.yardstick(state.depth)
        residual = state.residual(yardstick, SMOOTHING * mu)
        weights = kernel_slope(problem.kernel, residual, votes, mu) / (residual * yardstick**2)
        trial = _stepped(problem, state, weights, mu, damping)
        before, after = (_objective(problem, candidate, votes, mu) for candidate in (state, trial))
        still = after > before * (1 - TOLERANCE) or _motion(problem, state, trial) < STILL
        idle = idle + 1 if settled and still else 0
        state, damping = (trial, max(damping / 10, 1e-8)) if after < before else (state, max(100 * damping, 1e-4))
        if listen is not None:
            focal = state.variables.log_focal.exp()
            listen(AlignmentStep(step, config.steps, min(before, after) / mu, mu, state.variables.T_world_view, focal))
        if idle >= PATIENCE:
            break
    return state, mu


def settled_mu(problem: Problem, state: State) -> float:
    """mu in the residual's unit: a fraction of the typical size, at least a fraction of the median residual."""
    observations, config = problem.observations, problem.config
    typical = config.mu_relative * problem.model.typical_size(observations, state.depth)
    residual = state.residual(problem.yardstick(state.depth))
    spread = config.mu_spread * masked_median(residual.flatten(), observations.confidence.flatten())
    return float(torch.maximum(typical, spread))


def _stepped(problem: Problem, state: State, weights: Tensor, mu: float, damping: float) -> State:
    """One Gauss-Newton step over cameras and pairs, the depths at their best before and after."""
    observations, layout, model, variables = problem.observations, problem.layout, problem.model, state.variables
    geometry = model.world_geometry(variables, observations)
    depth = model.best_depth(geometry, observations, weights, state.depth)
    places = layout.block_places(observations)
    blocks = model.linearised(geometry, observations, depth, weights, places, problem.depth_weight)
    gap, precision = pose_pull(variables.T_world_view, problem.priors)
    precision = _unit_of_evidence(problem, mu) * precision
    system = System(
        blocks,
        layout.size,
        layout.land,
        layout.own,
        layout.on_poses(precision * gap) + layout.on_scales(_shrinkage(problem, state, weights)),
        layout.on_poses(precision),
        layout.pin(problem.trust),
    )
    moved = variables.moved(*layout.split(gauss_newton_step(system, damping, CG_TOLERANCE, CG_ROUNDS)))
    if layout.free_unit:
        moved = moved.in_unit_of(variables, problem.trust)
    geometry = model.world_geometry(moved, observations)
    return _evaluated(problem, moved, geometry, model.best_depth(geometry, observations, weights, depth))


def _shrinkage(problem: Problem, state: State, weights: Tensor) -> Tensor:
    """(P,) what takes the pull towards a smaller scene out of the gradient.

    Residuals relative to depth do not care for the scene's unit, but a step that holds the depths they are measured
    with sees them fall when everything shrinks. Only known poses, which do not shrink along, bring that to light.
    """
    pull = (weights * state.squared).sum() if problem.relative and not problem.layout.free_unit else 0.0
    return -pull * problem.trust / problem.trust.sum()


def _motion(problem: Problem, before: State, after: State) -> float:
    """Largest move of a camera centre, over the typical depth."""
    gap = (after.variables.T_world_view - before.variables.T_world_view)[:, :3, 3].norm(dim=-1).max()
    return float(gap / before.depth.median())


def _evaluated(problem: Problem, variables: Variables, geometry: object, depth: Tensor) -> State:
    squared = problem.model.squared_errors(geometry, problem.observations, depth, problem.depth_weight)
    return State(variables, depth, squared)


def _objective(problem: Problem, state: State, confidence: Tensor, mu: float) -> float:
    """Mean loss per vote, and what soft poses add to it."""
    residual = state.residual(problem.yardstick(state.depth), SMOOTHING * mu)
    data = mean_over(kernel_loss(problem.kernel, residual, torch.ones_like(confidence), mu), confidence)
    gap, precision = pose_pull(state.variables.T_world_view, problem.priors)
    pull = 0.5 * _unit_of_evidence(problem, mu) * (precision * gap * gap).sum()
    return float(data + pull / confidence.sum().clamp_min(1e-30))


def _unit_of_evidence(problem: Problem, mu: float) -> Tensor:
    """What turns a prior's squared sigmas into the objective's unit: a block whose residuals are mu counts as one."""
    confidence = problem.observations.confidence
    return mu * confidence.sum() / len(confidence)
