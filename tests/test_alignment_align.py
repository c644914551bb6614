"""`align`: exact recovery, robustness, invariances, views that cannot be placed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from analytic_scene import FOCAL, errors, make_scene, predict

from lora3d_splat.alignment import AlignmentConfig, align, pair_residual
from lora3d_splat.errors import AlignmentError, InputError
from lora3d_splat.geometry.transforms import rigid, so3_exp, transform_points
from lora3d_splat.records import ImagePair, PairPrediction

SMALL = AlignmentConfig(samples_per_view=150)
PLAIN = replace(SMALL, robust="none")


def garble(item: PairPrediction, seed: int) -> PairPrediction:
    """The same pair with pointmaps that mean nothing, different for every pair."""
    generator = torch.Generator().manual_seed(seed)
    clouds = [torch.randn(points.shape, generator=generator) for points in (item.points_reference, item.points_other)]
    return replace(item, points_reference=clouds[0].abs() + 0.2, points_other=clouds[1] + 1.0)


@pytest.mark.parametrize("robust", ["geman-mcclure", "none"])
@pytest.mark.parametrize("focal", ["shared", "per-view", str(FOCAL)])
def test_exact_predictions_give_the_exact_scene(robust: str, focal: str):
    """Poses, focal and depth to numerical precision of the float32 input."""
    scene = make_scene(4)
    aligned, _ = align(predict(scene), replace(SMALL, robust=robust, focal=focal), views=scene.views)
    found = errors(scene, aligned)
    assert found["centre"] < 1e-4
    assert found["rotation"] < 1e-2
    assert found["focal"] < 1e-4
    assert found["depth"] < 1e-4
    assert aligned.residual < 1e-4


@pytest.mark.parametrize("outliers", [0.1, 0.3])
def test_confident_outliers_hurt_the_robust_alignment_less(outliers: float):
    scene = make_scene(4)
    predictions = predict(scene, outliers=outliers, noise=0.005, one_sided=True)
    robust, plain = (errors(scene, align(predictions, config, views=scene.views)[0]) for config in (SMALL, PLAIN))
    assert robust["centre"] < 0.02
    assert robust["rotation"] < 0.5
    assert robust["focal"] < 0.02
    assert robust["depth"] < 0.01
    assert robust["centre"] < plain["centre"]
    assert robust["focal"] < 0.5 * plain["focal"]


def test_the_weights_tell_outliers_from_inliers():
    """Of confident predictions, at least 95 % of the gross outliers end below all but 5 % of the inliers."""
    scene = make_scene(4)
    clean, dirty = predict(scene), predict(scene, outliers=0.2)
    _, confidence = align(dirty, SMALL, views=scene.views)
    wrong = torch.cat(
        [(a.points_other - b.points_other).norm(dim=-1).flatten() > 1e-3 for a, b in zip(clean, dirty, strict=True)]
    )
    weights = torch.cat([sides[1].flatten() for sides in confidence.pair_weights])
    assert 0.15 < float(wrong.float().mean()) < 0.25
    assert float(weights[wrong].quantile(0.95)) < float(weights[~wrong].quantile(0.05))
    assert float(weights.max()) <= 3.0 + 1e-5


def test_moving_and_scaling_any_pair_changes_nothing():
    """A pair's frame and unit are the network's own choice."""
    scene = make_scene(4)
    predictions = predict(scene, outliers=0.1, noise=0.01)
    generator = torch.Generator().manual_seed(5)

    def scaled(item: PairPrediction) -> PairPrediction:
        factor = 0.3 + 2 * float(torch.rand((), generator=generator))
        return replace(item, points_reference=factor * item.points_reference, points_other=factor * item.points_other)

    first, _ = align(predictions, SMALL, views=scene.views)
    second, _ = align([scaled(item) for item in predictions], SMALL, views=scene.views)
    before, after = errors(scene, first), errors(scene, second)
    assert before == pytest.approx(after, abs=2e-3)
    assert second.residual == pytest.approx(first.residual, rel=2e-2)


def test_the_order_of_the_views_does_not_matter():
    scene = make_scene(4)
    predictions = predict(scene, outliers=0.1, noise=0.01)
    order = [2, 0, 3, 1]
    views = [scene.views[k] for k in order]
    renamed = [
        replace(item, pair=ImagePair(order.index(item.pair.reference), order.index(item.pair.other)))
        for item in reversed(predictions)
    ]
    first, _ = align(predictions, SMALL, views=scene.views)
    second, _ = align(renamed, SMALL, views=views)
    turned = second.T_world_camera[[order.index(k) for k in range(4)]]
    torch.testing.assert_close(
        first.T_world_camera[0, :3, :3].T @ first.T_world_camera[:, :3, :3],
        turned[0, :3, :3].T @ turned[:, :3, :3],
        atol=1e-3,
        rtol=0,
    )
    torch.testing.assert_close(first.focal, second.focal[[order.index(k) for k in range(4)]], rtol=1e-3, atol=0)


def test_the_same_input_gives_the_same_scene():
    scene = make_scene(3)
    predictions = predict(scene, outliers=0.1, noise=0.01)
    first, second = (align(predictions, SMALL, views=scene.views)[0] for _ in range(2))
    assert torch.equal(first.T_world_camera, second.T_world_camera)
    assert torch.equal(first.depth[0], second.depth[0])


def test_portrait_and_landscape_photographs_of_one_camera_share_the_focal():
    scene = make_scene(4, portrait=(1, 2))
    aligned, confidence = align(predict(scene), SMALL, views=scene.views)
    found = errors(scene, aligned)
    assert found["centre"] < 1e-4
    assert found["focal"] < 1e-4
    assert [tuple(depth.shape) for depth in aligned.depth] == [view.size for view in scene.views]
    assert confidence.view_confidence[1].shape == (64, 48)
    assert float(confidence.view_confidence[1].min()) > 2.0


def test_two_views_are_enough():
    scene = make_scene(2)
    aligned, _ = align(predict(scene), SMALL, views=scene.views)
    relative = torch.linalg.inv(aligned.T_world_camera[0]) @ aligned.T_world_camera[1]
    true = torch.linalg.inv(scene.T_world_camera[0]) @ scene.T_world_camera[1]
    torch.testing.assert_close(relative[:3, :3], true[:3, :3], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        relative[:3, 3] / relative[:3, 3].norm(), true[:3, 3] / true[:3, 3].norm(), atol=1e-3, rtol=0
    )


def test_the_unit_is_pinned():
    """The geometric mean of the pair scales is 0.5, whatever the network's units."""
    scene = make_scene(3)
    aligned, _ = align(predict(scene), SMALL, views=scene.views)
    assert aligned.pair_scale.log().mean().exp().item() == pytest.approx(0.5, rel=1e-6)


def test_a_view_of_something_else_is_left_out_with_a_reason_and_harms_nobody():
    scene = make_scene(4)
    predictions = [
        garble(item, k) if 3 in (item.pair.reference, item.pair.other) else item
        for k, item in enumerate(predict(scene))
    ]
    aligned, confidence = align(predictions, SMALL, views=scene.views)
    assert aligned.registered == (True, True, True, False)
    assert aligned.reasons[:3] == (None, None, None)
    assert "%" in aligned.reasons[3] or "connects" in aligned.reasons[3]
    assert torch.equal(aligned.T_world_camera[3], torch.eye(4).double())
    assert float(aligned.depth[3].abs().max()) == 0.0
    assert float(confidence.view_confidence[3].abs().max()) == 0.0
    assert len(aligned.pairs) == len(confidence.pair_weights) == 6
    assert errors(scene, aligned, [0, 1, 2])["centre"] < 1e-4


def test_a_view_without_pairs_or_without_confidence_is_left_out():
    scene = make_scene(5)
    unsure = math.exp(0.1)

    def dimmed(item: PairPrediction) -> PairPrediction:
        for side, view in (("confidence_reference", item.pair.reference), ("confidence_other", item.pair.other)):
            if view == 4:
                item = replace(item, **{side: torch.full_like(getattr(item, side), unsure)})
        return item

    predictions = [dimmed(item) for item in predict(scene) if 3 not in (item.pair.reference, item.pair.other)]
    aligned, _ = align(predictions, SMALL, views=scene.views)
    assert aligned.registered == (True, True, True, False, False)
    assert "no pair" in aligned.reasons[3]
    assert "sure of only" in aligned.reasons[4]


def test_pictures_that_share_nothing_are_an_error_that_names_them():
    scene = make_scene(3)
    predictions = [garble(item, k) for k, item in enumerate(predict(scene))]
    with pytest.raises(AlignmentError, match=r"000\.jpg") as caught:
        align(predictions, SMALL, views=scene.views)
    assert "overlap" in caught.value.accepted


def test_cameras_in_one_place_are_an_error_that_says_so():
    scene = make_scene(3)
    poses = scene.T_world_camera.clone()
    poses[:, :3, 3] = 0.0
    with pytest.raises(AlignmentError, match="parallax"):
        align(predict(replace(scene, T_world_camera=poses)), SMALL, views=scene.views)


def test_a_network_that_does_not_judge_itself_has_all_pixels_count_alike():
    """With the floor at zero, raw confidence 1 everywhere (log 0) does not mask everything."""
    scene = make_scene(3)
    aligned, confidence = align(predict(scene, confidence=1.0), SMALL, confidence_floor=0.0, views=scene.views)
    assert errors(scene, aligned)["centre"] < 1e-4
    assert float(confidence.view_confidence[0].mean()) == pytest.approx(1.0, abs=0.05)


def test_a_pair_without_confidence_takes_no_part():
    """What it claims cannot matter: nonsense of confidence 1 leaves the exact scene exact, and no trace in it."""
    scene = make_scene(4)
    predictions = list(predict(scene))
    lost = garble(predictions[3], 1)
    ones = torch.ones_like(lost.confidence_reference)
    predictions[3] = replace(lost, confidence_reference=ones, confidence_other=ones)
    aligned, _ = align(predictions, SMALL, views=scene.views)
    assert errors(scene, aligned)["centre"] < 1e-4
    assert lost.pair not in aligned.pairs
    assert len(aligned.pairs) == len(predictions) - 1


def test_photographs_in_which_a_network_sees_nothing_in_common_are_an_error_that_says_so():
    """Confidence 1, the least there is, on every pixel of every pair: what networks say of pictures without overlap."""
    scene = make_scene(3)
    with pytest.raises(AlignmentError, match=r"sure of only 0.0% .* overlap"):
        align(predict(scene, confidence=1.0), SMALL, confidence_floor=0.5, views=scene.views)


def test_predictions_of_another_size_are_refused():
    scene = make_scene(2)
    with pytest.raises(InputError, match="shape"):
        align(predict(scene), SMALL, views=make_scene(2, size=(32, 64)).views)


def test_progress_adds_up_to_the_steps():
    scene, units = make_scene(2), []
    align(predict(scene), SMALL, advance=units.append, views=scene.views)
    assert sum(units) == SMALL.steps


def test_the_pair_residual_ignores_gauge_and_confidence_and_grows_with_error():
    scene = make_scene(3)
    aligned, _ = align(predict(scene), SMALL, views=scene.views)
    exact, noisy, worse = (predict(scene, noise=noise, seed=9) for noise in (0.0, 0.02, 0.1))
    pose = rigid(so3_exp(torch.tensor([0.3, 0.2, 0.1])), torch.tensor([1.0, 2.0, 3.0]))

    def moved(item: PairPrediction) -> PairPrediction:
        clouds = [
            3.0 * transform_points(pose, points.flatten(0, 1)).view_as(points)
            for points in (item.points_reference, item.points_other)
        ]
        sure = torch.full_like(item.confidence_other, 50.0)
        return PairPrediction(item.pair, clouds[0], sure, clouds[1], sure)

    assert pair_residual(aligned, exact) < 1e-4
    assert pair_residual(aligned, exact) < pair_residual(aligned, noisy) < pair_residual(aligned, worse)
    assert pair_residual(aligned, [moved(item) for item in noisy]) == pytest.approx(
        pair_residual(aligned, noisy), rel=1e-3
    )
    assert pair_residual(aligned, [garble(item, k) for k, item in enumerate(exact)]) < 0.05
