"""What an alignment is remembered by: points where they belong, residuals that mean what they say, one world frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from calibration_example import make_calibration

from lora3d_splat.alignment.judge import scene_median_depth, world_points
from lora3d_splat.geometry.transforms import se3_exp
from lora3d_splat.passes import GRID_LONG_SIDE, grid_points, in_frame_of, judge_reliability, pass_points, summarise
from lora3d_splat.records import CalibratedConfidence, Calibration, CalibrationPass, ImagePair, PairPrediction


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return make_calibration(tmp_path_factory.mktemp("passes"), lost=2)


def shifted(calibration: Calibration, shift: float) -> tuple[CalibrationPass, PairPrediction]:
    """A pass over one pair whose reference points all lie `shift` beside the scene's."""
    pair, eye = ImagePair(0, 1), torch.eye(4, dtype=torch.float64)[None]
    scene = replace(calibration.scene, pairs=(pair,), T_world_pair=eye, pair_scale=torch.ones(1).double())
    trust = calibration.confidence.view_confidence
    beside = world_points(scene, 0) + torch.tensor([shift, 0.0, 0.0])
    prediction = PairPrediction(pair, beside, trust[0], world_points(scene, 1), trust[1])
    return summarise("x", calibration.views, scene, calibration.confidence, [prediction], None), prediction


def test_residuals_are_fractions_of_the_depth(calibration: Calibration) -> None:
    """Half of the pair's pixels miss by a twentieth of the depth: so say map, pair and histogram."""
    unit = scene_median_depth(calibration.scene)
    found, _ = shifted(calibration, 0.05 * unit)
    torch.testing.assert_close(
        found.residual[0].float(), torch.full_like(found.residual[0], 0.05).float(), rtol=2e-3, atol=0
    )
    assert found.residual[1].max() < 1e-3
    assert found.pair_residual.item() == pytest.approx(0.0, abs=1e-5)  # the lower of the two middle values
    assert found.residual_share.max() == 0.5
    assert found.residual_share[0] == 0.5


def test_points_are_those_of_the_scene(calibration: Calibration) -> None:
    """Every grid point lies where the full map has it, and only registered views have points."""
    found, _ = shifted(calibration, 0.0)
    assert found.step == 1
    points = pass_points(found, calibration.views)
    assert len(points.points_world) == 2 * found.depth[0].numel()
    torch.testing.assert_close(grid_points(found, 1).float(), world_points(calibration.scene, 1), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(points.rgb[: found.depth[0].numel()], calibration.views[0].image.reshape(-1, 3))
    assert len(pass_points(found, calibration.views, 100).points_world) == 100


def test_a_coarse_grid_keeps_its_pixels(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every third pixel, grid points are still points of the full map."""
    monkeypatch.setattr("lora3d_splat.passes.GRID_LONG_SIDE", 11)
    found, _ = shifted(calibration, 0.0)
    assert found.step == 3
    assert GRID_LONG_SIDE > 11
    full = world_points(calibration.scene, 0)[1::3, 1::3]
    torch.testing.assert_close(grid_points(found, 0).float(), full, rtol=0, atol=1e-5)


def test_passes_meet_in_one_world(calibration: Calibration) -> None:
    """A pass in another gauge (moved, turned, twice as large) comes back onto the kept one."""
    kept, _ = shifted(calibration, 0.0)
    twist = se3_exp(torch.tensor([0.4, -0.2, 0.3, 0.5, 0.1, -0.3], dtype=torch.float64))
    poses = twist @ kept.T_world_camera
    poses[:, :3, 3] = 2 * kept.T_world_camera[:, :3, 3] @ twist[:3, :3].T + twist[:3, 3]
    other = replace(kept, name="other", T_world_camera=poses, depth=tuple(2 * depth for depth in kept.depth))
    back = in_frame_of(other, kept)
    placed = list(kept.registered)
    torch.testing.assert_close(back.T_world_camera[placed], kept.T_world_camera[placed], rtol=0, atol=1e-6)
    torch.testing.assert_close(back.depth[0], kept.depth[0], rtol=1e-5, atol=0)
    assert in_frame_of(kept, kept) is kept


def test_reliability_falls_where_confidence_knows_the_error(calibration: Calibration) -> None:
    """Noise on the left half: a confidence low there has a falling curve, one that is high there a rising one."""
    scene = calibration.scene
    points, width = world_points(scene, 0), calibration.views[0].size[1]
    noise = 0.3 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    noise[:, width // 2 :] = 0
    knowing = torch.arange(width).float().repeat(points.shape[0], 1) + 1
    ignorant = knowing.flip(1)
    confidence = CalibratedConfidence((), (knowing,) * 3, (ignorant,) * 3)
    item = PairPrediction(ImagePair(0, 1), points + noise, knowing, world_points(scene, 1), knowing)
    found = judge_reliability(scene, confidence, [item], unseen=True)
    assert found is not None
    assert found.unseen
    assert found.calibrated_error[0] > 5 * found.calibrated_error[-1]
    assert found.confidence_error[0] < found.confidence_error[-1] / 5
    lost = PairPrediction(ImagePair(0, 2), points, knowing, points, knowing)
    assert judge_reliability(scene, confidence, [lost], unseen=True) is None
