"""The robust objective: closed-form weights, what is left of the objective, and its slope (LoRA3D Eq. 7 and 8)."""

from __future__ import annotations

import math

import torch

from lora3d_splat.alignment.robust import (
    joint_objective,
    masked_log_confidence,
    robust_loss,
    robust_weights,
    weighted_median,
)

GENERATOR = torch.Generator().manual_seed(0)
RESIDUAL = torch.rand(50, generator=GENERATOR, dtype=torch.float64)
CONFIDENCE = torch.rand(50, generator=GENERATOR, dtype=torch.float64) * 3
MU = 0.07


def test_the_weights_minimise_the_joint_objective():
    """Against a fine grid of weights from 0 to C, and against scaling them by 1 %."""
    best = joint_objective(robust_weights(RESIDUAL, CONFIDENCE, MU), RESIDUAL, CONFIDENCE, MU)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * CONFIDENCE
    assert bool((best <= joint_objective(grid, RESIDUAL, CONFIDENCE, MU).min(0).values + 1e-15).all())
    for factor in (0.99, 1.01):
        moved = joint_objective(factor * robust_weights(RESIDUAL, CONFIDENCE, MU), RESIDUAL, CONFIDENCE, MU)
        assert bool((best < moved).all())


def test_what_is_left_is_the_robust_loss():
    joint = joint_objective(robust_weights(RESIDUAL, CONFIDENCE, MU), RESIDUAL, CONFIDENCE, MU)
    torch.testing.assert_close(joint, robust_loss(RESIDUAL, CONFIDENCE, MU))


def test_the_slope_of_the_loss_is_the_weight():
    """Envelope theorem: the derivative of the eliminated objective by |e| is w."""
    residual = RESIDUAL.clone().requires_grad_()
    (slope,) = torch.autograd.grad(robust_loss(residual, CONFIDENCE, MU).sum(), residual)
    torch.testing.assert_close(slope, robust_weights(RESIDUAL, CONFIDENCE, MU))


def test_at_mu_a_quarter_of_the_confidence_is_left():
    assert robust_weights(torch.tensor(MU), torch.tensor(2.0), MU).item() == 0.5


def test_infinite_mu_is_the_plain_alignment():
    torch.testing.assert_close(robust_weights(RESIDUAL, CONFIDENCE, math.inf), CONFIDENCE)
    torch.testing.assert_close(robust_loss(RESIDUAL, CONFIDENCE, math.inf), CONFIDENCE * RESIDUAL)


def test_the_floor_masks_on_the_log_scale():
    """Raw confidence e^0.4 is below a floor of 0.5, e^0.6 above it."""
    masked = masked_log_confidence(torch.tensor([0.4, 0.6, 2.0]).exp(), 0.5)
    torch.testing.assert_close(masked, torch.tensor([0.0, 0.6, 2.0]))


def test_the_weighted_median_counts_by_weight():
    values, weights = torch.tensor([3.0, 1.0, 2.0, 100.0]), torch.tensor([1.0, 1.0, 5.0, 0.0])
    assert weighted_median(values, weights).item() == 2.0
    assert weighted_median(values, torch.zeros(4)).item() == 0.0
