"""Calibrated confidence: averaging, thresholds, reliability."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_scene import make_scene, predict

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.confidence import (
    calibrated_confidence,
    reliability_curve,
    trusted_fraction,
    trusted_masks,
    trusted_threshold,
)


@pytest.fixture(scope="module")
def aligned():
    scene = make_scene(3)
    predictions = predict(scene, outliers=0.2, noise=0.005)
    return scene, predictions, *align(predictions, AlignmentConfig(samples_per_view=150), views=scene.views)


def test_a_view_averages_the_pairs_that_see_it(aligned):
    """Three views, all ordered pairs: each view is seen four times; raw confidence was 3 in the log everywhere."""
    _, predictions, scene, confidence = aligned
    again = calibrated_confidence(scene, predictions, confidence.pair_weights)
    seen = [
        sides[side]
        for pair, sides in zip(scene.pairs, confidence.pair_weights, strict=True)
        for side, owner in enumerate((pair.reference, pair.other))
        if owner == 1
    ]
    assert len(seen) == 4
    torch.testing.assert_close(again.view_confidence[1], torch.stack(seen).mean(0))
    torch.testing.assert_close(again.view_raw_confidence[1], torch.full((48, 64), 3.0))
    torch.testing.assert_close(confidence.view_confidence, again.view_confidence)


def test_an_absolute_cutoff_is_taken_as_it_is(aligned):
    assert trusted_threshold(aligned[3], 1.5) == 1.5


@pytest.mark.parametrize("keep", [0.5, 0.7, 1.0])
def test_the_rank_rule_keeps_the_asked_share(aligned, keep: float):
    confidence = aligned[3]
    kept = trusted_fraction(confidence, trusted_threshold(confidence, None, keep))
    assert kept == pytest.approx(keep, abs=0.01)


def test_masks_follow_the_threshold(aligned):
    confidence = aligned[3]
    masks = trusted_masks(confidence, 1.0)
    assert [tuple(mask.shape) for mask in masks] == [(48, 64)] * 3
    assert bool(((confidence.view_confidence[0] > 1.0) == masks[0]).all())
    assert not bool(trusted_masks(confidence, 3.1)[0].any())


def test_calibrated_confidence_orders_errors_that_the_raw_one_cannot(aligned):
    """Raw confidence is constant; calibrated, the surest tenth has far less error than the least sure."""
    scene, predictions, _, confidence = aligned
    clean = predict(scene)
    gap = torch.cat(
        [(a.points_other - b.points_other).norm(dim=-1).flatten() for a, b in zip(clean, predictions, strict=True)]
    )
    weights = torch.cat([sides[1].flatten() for sides in confidence.pair_weights])
    curve = reliability_curve(weights, gap, bins=10)
    assert len(curve.error) == 10
    assert bool((curve.confidence.diff() >= 0).all())
    assert float(curve.error[-1]) < 0.05 * float(curve.error[0])


def test_the_reliability_curve_by_hand():
    confidence = torch.tensor([3.0, 1.0, 2.0, 4.0, math.nan])
    curve = reliability_curve(confidence, torch.tensor([3.0, 10.0, 6.0, 1.0, 99.0]), bins=2)
    assert curve.confidence.tolist() == [1.5, 3.5]
    assert curve.error.tolist() == [8.0, 2.0]
