"""The fine-tuning loss: blind to scale and to invalid pixels, best where confidence is alpha / error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora3d_splat.lora.loss import LabelBatch, confidence_loss
from lora3d_splat.networks.base import PairOutput
from lora3d_splat.records import ImagePair, PseudoLabels

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    """Positive random numbers in float64."""
    return torch.rand(*shape, generator=GENERATOR, dtype=torch.float64) + 0.1


@pytest.fixture
def output() -> PairOutput:
    """Two pairs whose sides differ in size."""
    return PairOutput(rand(2, 4, 6, 3), 1 + rand(2, 4, 6), rand(2, 6, 4, 3), 1 + rand(2, 6, 4))


@pytest.fixture
def labels() -> LabelBatch:
    """Targets with about a third of the pixels invalid."""
    return LabelBatch(rand(2, 4, 6, 3), rand(2, 4, 6) > 0.45, rand(2, 6, 4, 3), rand(2, 6, 4) > 0.45)


def test_scale_of_either_side_does_not_matter(output, labels):
    """Multiplying a pair's prediction, or its labels, by any factor leaves the loss as it is."""
    loss = confidence_loss(output, labels)
    factor = torch.tensor([3.0, 0.2], dtype=torch.float64)[:, None, None, None]
    scaled = replace(
        output, points_reference=factor * output.points_reference, points_other=factor * output.points_other
    )
    torch.testing.assert_close(confidence_loss(scaled, labels), loss)
    scaled_labels = replace(labels, points_reference=7 * labels.points_reference, points_other=7 * labels.points_other)
    torch.testing.assert_close(confidence_loss(output, scaled_labels), loss)


def test_invalid_pixels_have_no_effect(output, labels):
    """NaN and infinity in invalid labels, and any prediction there, change neither the loss nor its gradient."""
    points = output.points_reference.clone().requires_grad_()
    loss = confidence_loss(replace(output, points_reference=points), labels)
    loss.backward()
    assert torch.equal(points.grad[~labels.valid_reference], torch.zeros_like(points.grad[~labels.valid_reference]))
    spoilt = labels.points_reference.clone()
    spoilt[~labels.valid_reference] = torch.nan
    other = points.detach().clone()
    other[~labels.valid_reference] = 1e6
    confidence = torch.where(labels.valid_reference, output.confidence_reference, 1e9)
    changed = replace(output, points_reference=other.requires_grad_(), confidence_reference=confidence)
    again = confidence_loss(changed, replace(labels, points_reference=spoilt))
    again.backward()
    torch.testing.assert_close(again, loss.detach())
    torch.testing.assert_close(other.grad, points.grad)


def test_value_by_hand():
    """One pixel a side: norms 1 and 3 against 2 and 2 give errors 0.5 on both, C = 2: 2 * (2 * 0.5 - 0.2 log 2)."""
    axis = torch.tensor([0.0, 0.0, 1.0])

    def pixel(length: float) -> torch.Tensor:
        return (length * axis).reshape(1, 1, 1, 3)

    ones = torch.ones(1, 1, 1)
    output = PairOutput(pixel(1), 2 * ones, pixel(3), 2 * ones)
    labels = LabelBatch(pixel(2), ones.bool(), pixel(2), ones.bool())
    expected = 2 * (2 * 0.5 - 0.2 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(confidence_loss(output, labels, 0.2), expected)


def test_best_confidence_is_alpha_over_error(output, labels):
    """The gradient with respect to confidence vanishes exactly at alpha / error, pixel by pixel."""
    alpha = 5.0

    def error(side: str) -> torch.Tensor:
        confidence = torch.ones_like(getattr(output, f"confidence_{side}"), requires_grad=True)
        loss = confidence_loss(replace(output, **{f"confidence_{side}": confidence}), labels, alpha)
        valid = getattr(labels, f"valid_{side}")
        gradient = torch.autograd.grad(loss, confidence)[0] * valid.sum()  # error - alpha / 1 where valid
        return torch.where(valid, gradient + alpha, 1.0)

    best = {f"confidence_{side}": (alpha / error(side)).requires_grad_() for side in ("reference", "other")}
    loss = confidence_loss(replace(output, **best), labels, alpha)
    for gradient in torch.autograd.grad(loss, list(best.values())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


def test_perfect_prediction_with_confidence_one_costs_nothing(labels):
    """Labels at another scale, predicted exactly: zero loss and finite gradients."""
    valid = labels.points_reference * 4
    output = PairOutput(
        valid.requires_grad_(), torch.ones(2, 4, 6).double(), labels.points_other * 4, torch.ones(2, 6, 4).double()
    )
    loss = confidence_loss(output, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(output.points_reference.grad).all()


def test_a_pair_without_valid_pixels_is_silent(output, labels):
    """Nothing valid: loss zero, no NaN."""
    nothing = replace(
        labels,
        valid_reference=torch.zeros_like(labels.valid_reference),
        valid_other=torch.zeros_like(labels.valid_other),
    )
    assert confidence_loss(output, nothing).item() == 0


def test_stacking_keeps_the_order():
    """Labels of two pairs become a batch in float32."""
    items = [
        PseudoLabels(ImagePair(0, 1), rand(2, 3, 3), rand(2, 3) > 0.5, rand(3, 2, 3), rand(3, 2) > 0.5)
        for _ in range(2)
    ]
    batch = LabelBatch.stack(items)
    assert batch.points_other.dtype == torch.float32
    torch.testing.assert_close(batch.points_reference[1], items[1].points_reference.float())
    assert torch.equal(batch.valid_other[0], items[0].valid_other)
