"""The aligner on ray-cast scenes whose predictions err as networks do; the figures are benchmarks/alignment.py's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from disturbed_predictions import EXACT, Disturbance, camera_errors, predict_disturbed, true_errors, true_scene

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.alignment.diagnose import components
from lora3d_splat.alignment.initialise import Edge
from lora3d_splat.alignment.pairs_file import pairs_from_arrays, read_pairs, write_aligned
from lora3d_splat.cli import main
from lora3d_splat.errors import AlignmentError, InputError
from lora3d_splat.metrics.geometry import ause, confidence_quality, spearman
from lora3d_splat.records import ImagePair

SIZE = (60, 80)
SMALL = AlignmentConfig(samples_per_view=400)


@pytest.fixture(scope="module")
def scene():
    return true_scene(3, 5, SIZE)


def test_exact_predictions_are_recovered_exactly(scene):
    for residual in ("pointmap", "reprojection"):
        aligned, _ = align(predict_disturbed(scene, 0, EXACT), replace(SMALL, residual=residual), views=scene.views)
        found = camera_errors(scene, aligned)
        assert found["centre"] < 1e-4
        assert found["focal"] < 1e-4


@pytest.mark.parametrize(("outliers", "nonsense", "limit"), [(0.1, 0, 0.02), (0.3, 0, 0.03), (0.1, 1, 0.03)])
def test_outliers_and_a_nonsense_pair_are_borne(scene, outliers: float, nonsense: int, limit: float):
    predictions = predict_disturbed(scene, 1, Disturbance(outliers=outliers, nonsense=nonsense))
    aligned, confidence = align(predictions, SMALL, views=scene.views)
    assert all(aligned.registered)
    assert camera_errors(scene, aligned)["centre"] < limit
    error = torch.cat([side.flatten() for item in predictions for side in true_errors(scene, item)])
    raw = torch.cat(
        [side.flatten() for item in predictions for side in (item.confidence_reference, item.confidence_other)]
    )
    calibrated = torch.cat([side.flatten() for sides in confidence.pair_weights for side in sides])
    before, after = confidence_quality(raw, error), confidence_quality(calibrated, error)
    assert after.spearman > before.spearman + 0.2
    assert after.ause < before.ause


def test_quality_by_hand():
    """Perfect order: correlation 1 and no area; reversed order: correlation -1 and a large one."""
    error = torch.arange(1.0, 101.0)
    assert spearman(-error, -error) == pytest.approx(1.0)
    assert spearman(error, -error) == pytest.approx(-1.0)
    assert ause(-error, error) == pytest.approx(0.0)
    assert ause(error, error) > 0.5


def test_cameras_in_one_place_are_named_under_noise(scene):
    poses = scene.T_world_camera.copy()
    inverse = np.linalg.inv(poses)
    points = np.einsum("vij,vhwj->vhwi", inverse[:, :3, :3], scene.points_world) + inverse[:, None, None, :3, 3]
    poses[:, :3, 3] = poses[0, :3, 3]
    world = np.einsum("vij,vhwj->vhwi", poses[:, :3, :3], points) + poses[:, None, None, :3, 3]
    standing = replace(scene, T_world_camera=poses, points_world=world)
    noise = Disturbance(half_rotation_deg=0.1, half_translation=0.001)
    with pytest.raises(AlignmentError, match="parallax"):
        align(predict_disturbed(standing, 0, noise), SMALL, views=scene.views)


def test_separate_groups_of_views_are_named(scene):
    """Views 3 and 4 see each other alone: the larger group stays, the other is named as a group."""
    pairs = [ImagePair(i, j) for i in range(5) for j in range(5) if i != j and (i < 3) == (j < 3)]
    aligned, _ = align(predict_disturbed(scene, 0, EXACT, pairs), SMALL, views=scene.views)
    assert aligned.registered == (True, True, True, False, False)
    assert "separate group of 2 views (003.png, 004.png)" in str(aligned.reasons[3])
    edges = [Edge((0, 1), (0,), 1.0, 0.0), Edge((3, 4), (1,), 1.0, 0.0)]
    assert components(5, edges) == [[0, 1], [2], [3, 4]]


@pytest.mark.parametrize("disturbance", [EXACT, Disturbance()], ids=["exact", "disturbed"])
def test_one_order_of_each_pair_is_enough(scene, disturbance: Disturbance):
    """Only pairs (i, j) with i < j: the last view leads none, and its depth comes by resection."""
    pairs = [ImagePair(i, j) for i in range(5) for j in range(i + 1, 5)]
    aligned, _ = align(predict_disturbed(scene, 1, disturbance, pairs), SMALL, views=scene.views)
    assert all(aligned.registered)
    errors = camera_errors(scene, aligned)
    assert errors["centre"] < (1e-4 if disturbance is EXACT else 0.02)
    assert errors["rotation"] < (0.01 if disturbance is EXACT else 0.8)


def arrays_of(scene, predictions) -> dict[str, np.ndarray]:
    return {
        "edges": np.array([[item.pair.reference, item.pair.other] for item in predictions]),
        "pts_i": np.stack([item.points_reference.numpy() for item in predictions]),
        "pts_j": np.stack([item.points_other.numpy() for item in predictions]),
        "conf_i": np.stack([item.confidence_reference.numpy() for item in predictions]),
        "conf_j": np.stack([item.confidence_other.numpy() for item in predictions]),
    }


def test_a_file_of_pairs_becomes_a_file_of_cameras(scene, tmp_path):
    predictions = predict_disturbed(scene, 0)
    np.savez(tmp_path / "pairs.npz", **arrays_of(scene, predictions))
    assert main(["align", str(tmp_path / "pairs.npz"), "--output", str(tmp_path / "result.npz")]) == 0
    with np.load(tmp_path / "result.npz") as result:
        direct, confidence = align(predictions, views=scene.views)
        np.testing.assert_allclose(result["cam2world"], direct.T_world_camera.numpy(), atol=1e-9)
        np.testing.assert_allclose(result["focals"], direct.focal.numpy(), rtol=1e-9)
        assert result["pts3d"].shape == (5, *SIZE, 3)
        assert result["depth"].shape == (5, *SIZE)
        np.testing.assert_array_equal(result["calibrated_j"][7], confidence.pair_weights[7][1].numpy())
        again = np.einsum("ij,hwj->hwi", np.linalg.inv(result["cam2world"][2])[:3, :3], result["pts3d"][2])
        depth = again[..., 2] + np.linalg.inv(result["cam2world"][2])[2, 3]
        np.testing.assert_allclose(depth, result["depth"][2], rtol=1e-4)


def test_padding_masks_and_priors_of_a_file_are_honoured(scene, tmp_path):
    """Maps padded to 64x96 with NaN, half known poses and focals: the given world is kept, padding stays empty."""
    arrays = arrays_of(scene, predict_disturbed(scene, 0, EXACT))
    for name in ("pts_i", "pts_j", "conf_i", "conf_j"):
        extra = [(0, 0), (0, 4), (0, 16)] + [(0, 0)] * (arrays[name].ndim - 3)
        arrays[name] = np.pad(arrays[name], extra, constant_values=np.nan)
    poses = scene.T_world_camera.copy()
    poses[1::2] = np.nan
    arrays |= {"size_wh": np.array([80, 60]), "cam2world": poses, "focals": scene.focal}
    source = pairs_from_arrays(arrays)
    found = align(source.predictions, SMALL, views=source.views, priors=source.priors)
    np.testing.assert_allclose(found.scene.T_world_camera.numpy(), scene.T_world_camera, atol=1e-3)
    write_aligned(tmp_path / "out.npz", source, found)
    with np.load(tmp_path / "out.npz") as result:
        assert result["depth"].shape == (5, 64, 96)
        assert float(np.abs(result["depth"][:, 60:]).max()) == 0.0
        np.testing.assert_allclose(result["focals"], scene.focal)


@pytest.mark.parametrize("damage", ["missing", "shape", "file", "itself"])
def test_a_file_that_is_none_is_refused(scene, tmp_path, damage: str):
    arrays = arrays_of(scene, predict_disturbed(scene, 0, EXACT, [ImagePair(0, 1), ImagePair(1, 0)]))
    if damage == "missing":
        arrays.pop("conf_j")
    if damage == "shape":
        arrays["pts_j"] = arrays["pts_j"][:, :10]
    if damage == "itself":
        arrays["edges"][0] = 1
    path = tmp_path / "pairs.npz"
    path.write_bytes(b"no archive") if damage == "file" else np.savez(path, **arrays)
    with pytest.raises(InputError):
        read_pairs(path)


def test_a_network_without_confidence_is_aligned(scene):
    """All of it 1: every pixel counts alike. All below 1: no weight in the field's terms, and the way out is named."""
    arrays = arrays_of(scene, predict_disturbed(scene, 0, replace(EXACT, noise=0.005)))
    silent = {name: np.ones_like(values) for name, values in arrays.items() if name.startswith("conf")}
    source = pairs_from_arrays(arrays | silent)
    aligned, _ = align(source.predictions, SMALL, views=source.views, priors=source.priors)
    assert all(aligned.registered)
    assert camera_errors(scene, aligned)["centre"] < 0.01
    with pytest.raises(InputError, match=r"1 \+ exp\(x\)"):
        pairs_from_arrays(arrays | {name: 0.9 * values for name, values in silent.items()})
