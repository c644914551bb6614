"""Pseudo labels: the trusted aligned scene in each pair's reference camera (LoRA3D Eq. 9)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from analytic_scene import make_scene, predict

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.errors import InputError
from lora3d_splat.metrics.geometry import scale_aligned_pointmap_error
from lora3d_splat.pseudo_labels import PseudoLabelConfig, degenerate, make_pseudo_labels


@pytest.fixture(scope="module")
def aligned():
    scene = make_scene(3, portrait=(1,))
    predictions = predict(scene, outliers=0.3, noise=0.005)
    return scene, predictions, *align(predictions, AlignmentConfig(samples_per_view=150), views=scene.views)


def test_labels_are_closer_to_the_truth_than_the_predictions(aligned):
    scene, predictions, result, confidence = aligned
    labels = make_pseudo_labels(scene.views, result, confidence, cutoff=1.5)
    truth = predict(scene)
    assert [label.pair for label in labels] == [item.pair for item in predictions]
    for label, item, true in zip(labels, predictions, truth, strict=True):
        everywhere = torch.ones_like(label.valid_other)
        before = scale_aligned_pointmap_error(item.points_other, true.points_other, everywhere)
        after = scale_aligned_pointmap_error(label.points_other, true.points_other, label.valid_other)
        assert after < 0.1 * before


def test_a_label_lies_in_its_reference_camera(aligned):
    """The reference side unprojects to its own pixels: depth times ray, no pose in between."""
    scene, _, result, confidence = aligned
    label = make_pseudo_labels(scene.views, result, confidence, cutoff=1.5)[0]
    points = label.points_reference
    pixels = points[..., :2] / points[..., 2:] * result.focal[0].float() + result.principal_point[0].float()
    assert pixels[3, 5].tolist() == pytest.approx([5.5, 3.5], abs=1e-3)
    torch.testing.assert_close(points[..., 2], result.depth[0])


def test_only_weights_above_the_cutoff_are_valid_per_ordered_pair(aligned):
    scene, _, result, confidence = aligned
    labels = make_pseudo_labels(scene.views, result, confidence, cutoff=1.5)
    for label, sides in zip(labels, confidence.pair_weights, strict=True):
        assert bool((label.valid_reference == (sides[0] > 1.5)).all())
        assert bool((label.valid_other == (sides[1] > 1.5)).all())
    assert not torch.equal(labels[0].valid_reference, labels[1].valid_reference)


def test_without_a_cutoff_the_best_share_is_kept(aligned):
    scene, _, result, confidence = aligned
    labels = make_pseudo_labels(scene.views, result, confidence, PseudoLabelConfig(keep=0.6))
    share = torch.cat([side.flatten() for label in labels for side in (label.valid_reference, label.valid_other)])
    assert float(share.float().mean()) == pytest.approx(0.6, abs=0.02)


def test_labels_that_teach_nothing_are_refused_with_a_reason(aligned):
    scene, _, result, confidence = aligned
    config = PseudoLabelConfig()
    good = make_pseudo_labels(scene.views, result, confidence, config, cutoff=1.5)
    assert degenerate(good, len(result.pairs), config) is None
    none = make_pseudo_labels(scene.views, result, confidence, config, cutoff=100.0)
    assert none == ()
    assert "none of the 6 pairs" in degenerate(none, 6, config)
    few = [
        replace(good[0], valid_reference=good[0].valid_reference & (torch.rand(good[0].valid_reference.shape) < 0.1))
    ]
    assert "trusted" in degenerate(few, 60, config)


def test_wrong_shares_are_refused():
    with pytest.raises(InputError, match="keep"):
        PseudoLabelConfig(keep=0.0)


def test_agreement_judges_by_the_pairs_whatever_the_network_claims(aligned):
    """Half of the pixels stay, the same ones when all confidences triple; they err less than those that go."""
    scene, predictions, result, confidence = aligned
    half = PseudoLabelConfig(cutoff=0.0, agreement=0.5)
    tripled = replace(
        confidence,
        view_confidence=tuple(3 * each for each in confidence.view_confidence),
        view_raw_confidence=tuple(3 * each for each in confidence.view_raw_confidence),
    )
    once, thrice = (make_pseudo_labels(scene.views, result, each, half) for each in (confidence, tripled))
    sides = [side for label in once for side in (label.valid_reference, label.valid_other)]
    assert float(torch.cat([side.flatten() for side in sides]).float().mean()) == pytest.approx(0.5, abs=0.03)
    for a, b in zip(once, thrice, strict=True):
        assert torch.equal(a.valid_reference, b.valid_reference)
    truth = {item.pair: item for item in predict(scene)}
    label = once[0]
    first = next(item for item in predictions if item.pair == label.pair)
    gaps = (first.points_other - truth[label.pair].points_other).norm(dim=-1)
    assert gaps[label.valid_other].mean() < 0.5 * gaps[~label.valid_other].mean()
    with pytest.raises(InputError, match="agreement"):
        PseudoLabelConfig(agreement=1.5)
