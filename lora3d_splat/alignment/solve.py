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
PATIENCE = 3
"""Steps in a row that stand still before the loop ends."""
WIDE, NARROWING = 8.0, 0.6
"""How much wider than mu the kernel is at the first step, and the factor by which it closes in at each."""
CG_ROUNDS, CG_TOLERANCE = 30, 0.03
"""Conjugate gradients per step: the next step corrects what this one leaves."""
MODELS: dict[str, ModuleType] = {"pointmap": residuals, "reprojection": reprojection}
"""Modules with world_geometry, best_depth, typical_size, errors and linearised."""


@dataclass(frozen=True)
class State:
    """Where the solver stands."""

    variables: Variables
    depth: Tensor
    """(V, S)"""
    squared: Tensor
    """(B, S) squared residual norms"""

    def residual(self, smoothing: float = 0.0) -> Tensor:
        """(B, S) residual norms, rounded off below `smoothing`."""
        return (self.squared + smoothing**2).sqrt()


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
        residual = state.residual(SMOOTHING * mu)
        votes = problem.votes(settled)
        weights = kernel_slope(problem.kernel, residual, votes, mu) / residual
        trial = _stepped(problem, state, weights, mu, damping)
        before, after = (_objective(problem, candidate, votes, mu) for candidate in (state, trial))
        idle = idle + 1 if settled and after > before * (1 - TOLERANCE) else 0
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
    spread = config.mu_spread * masked_median(state.residual().flatten(), observations.confidence.flatten())
    return float(torch.maximum(typical, spread))


def _stepped(problem: Problem, state: State, weights: Tensor, mu: float, damping: float) -> State:
    """One Gauss-Newton step over cameras and pairs, the depths at their best before and after."""
    observations, layout, model, variables = problem.observations, problem.layout, problem.model, state.variables
    geometry = model.world_geometry(variables, observations)
    depth = model.best_depth(geometry, observations, weights, state.depth)
    blocks = model.linearised(geometry, observations, depth, weights, layout.block_places(observations))
    gap, precision = pose_pull(variables.T_world_view, problem.priors)
    precision = _unit_of_evidence(problem, mu) * precision
    system = System(
        blocks,
        layout.size,
        layout.pair_places(),
        layout.on_poses(precision * gap),
        layout.on_poses(precision),
        layout.pin(problem.trust),
    )
    moved = variables.moved(*layout.split(gauss_newton_step(system, damping, CG_TOLERANCE, CG_ROUNDS)))
    geometry = model.world_geometry(moved, observations)
    return _evaluated(problem, moved, geometry, model.best_depth(geometry, observations, weights, depth))


def _evaluated(problem: Problem, variables: Variables, geometry: object, depth: Tensor) -> State:
    return State(variables, depth, problem.model.errors(geometry, problem.observations, depth).square().sum(-1))


def _objective(problem: Problem, state: State, confidence: Tensor, mu: float) -> float:
    """Mean loss per vote, and what soft poses add to it."""
    residual = state.residual(SMOOTHING * mu)
    data = mean_over(kernel_loss(problem.kernel, residual, torch.ones_like(confidence), mu), confidence)
    gap, precision = pose_pull(state.variables.T_world_view, problem.priors)
    pull = 0.5 * _unit_of_evidence(problem, mu) * (precision * gap * gap).sum()
    return float(data + pull / confidence.sum().clamp_min(1e-30))


def _unit_of_evidence(problem: Problem, mu: float) -> Tensor:
    """What turns a prior's squared sigmas into the objective's unit: a block whose residuals are mu counts as one."""
    confidence = problem.observations.confidence
    return mu * confidence.sum() / len(confidence)
