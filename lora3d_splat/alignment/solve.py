"""The loop: residuals -> weights -> step -> stop.

Re-weighted Gauss-Newton on LoRA3D Eq. 7. The unsquared norm enters as weights w / |e| of a least-squares problem, which
touches the objective from above; steps that do not lower the objective are taken back with more damping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import AlignmentConfig
from .normal_equations import gauss_newton_step
from .observations import Observations
from .residuals import best_depth, errors, world_geometry
from .robust import SMOOTHING, mean_over, robust_loss, robust_weights, smooth_norm, weighted_median
from .variables import FocalModes, Variables

TOLERANCE = 3e-4
"""Relative fall of the objective below which a step counts as standing still."""
PATIENCE = 3
"""Steps in a row that stand still before the loop ends."""


@dataclass(frozen=True)
class State:
    """Where the solver stands; `residual` (B, S) are the smoothed residual norms."""

    variables: Variables
    depth: Tensor
    residual: Tensor


def solve(
    observations: Observations,
    variables: Variables,
    depth: Tensor,
    modes: FocalModes,
    config: AlignmentConfig,
    advance: Callable[[int], None] | None = None,
) -> tuple[State, float]:
    """Minimise the alignment objective from a start; returns the final state and mu (scene units).

    The first half of the steps aligns plainly: the unsquared norm alone stands many outliers and has no local optima of
    the weights' making. Its residuals set mu, with which the second half calibrates.
    """
    plain_steps = config.steps if config.robust == "none" else (config.steps + 1) // 2
    pinned = variables.pinned(config.pair_scale)
    depth = depth * (pinned.log_scale - variables.log_scale).mean().exp()
    start = State(pinned, depth, torch.zeros_like(observations.confidence))
    plain = _descend(observations, start, modes, config, plain_steps, None, advance)
    mu = final_mu(plain, observations, config)
    if config.robust == "none":
        return plain, mu
    return _descend(observations, plain, modes, config, config.steps - plain_steps, mu, advance), mu


def final_mu(state: State, observations: Observations, config: AlignmentConfig) -> float:
    """mu in scene units: a fraction of the median depth, at least a fraction of the median residual."""
    seen = observations.confidence.new_zeros(state.depth.shape).index_add_(
        0, observations.view, observations.confidence
    )
    typical = config.mu_relative * weighted_median(state.depth, seen)
    spread = config.mu_spread * weighted_median(state.residual, observations.confidence)
    return float(torch.maximum(typical, spread))


def _descend(
    observations: Observations,
    state: State,
    modes: FocalModes,
    config: AlignmentConfig,
    steps: int,
    mu: float | None,
    advance: Callable[[int], None] | None,
) -> State:
    """Gauss-Newton steps under fixed confidence (mu None: plain) or weights calibrated with `mu`."""
    scale, confidence = math.inf if mu is None else mu, observations.confidence
    smoothing = SMOOTHING * (mu or final_mu(state, observations, config))
    state, damping, idle = _evaluate(observations, state.variables, state.depth, smoothing), 1e-6, 0
    weights = confidence
    for step in range(steps):
        if step % config.reweight_every == 0:
            weights = robust_weights(state.residual, confidence, scale)
        trial = _step(observations, state, weights / state.residual, modes, damping, smoothing)
        before, after = (_objective(candidate, confidence, scale) for candidate in (state, trial))
        idle = idle + 1 if after > before * (1 - TOLERANCE) else 0
        state, damping = (trial, damping / 10) if after < before else (state, max(100 * damping, 1e-4))
        if idle >= PATIENCE:
            break
        if advance is not None:
            advance(1)
    if advance is not None and idle >= PATIENCE:
        advance(steps - step)
    return state


def _step(
    observations: Observations, state: State, irls: Tensor, modes: FocalModes, damping: float, smoothing: float
) -> State:
    geometry = world_geometry(state.variables, observations)
    depth = best_depth(geometry, observations, irls)
    moves = gauss_newton_step(geometry, observations, depth, irls, modes, damping)
    variables = state.variables.moved(*moves)
    depth = best_depth(world_geometry(variables, observations), observations, irls)
    return _evaluate(observations, variables, depth, smoothing)


def _evaluate(observations: Observations, variables: Variables, depth: Tensor, smoothing: float) -> State:
    error = errors(world_geometry(variables, observations), observations, depth)
    return State(variables, depth, smooth_norm(error, smoothing))


def _objective(state: State, confidence: Tensor, mu: float) -> float:
    return float(mean_over(robust_loss(state.residual, torch.ones_like(confidence), mu), confidence))
