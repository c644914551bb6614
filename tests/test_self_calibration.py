"""The loop on a network that knows the scene: cameras recovered, stages cached, the adapter kept where it helps."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from oracle_network import FOCAL, OracleNetwork, true_pose, write_photographs

from lora3d_splat import self_calibration
from lora3d_splat.alignment import AlignmentConfig
from lora3d_splat.calibration_files import load_calibration, save_calibration
from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.lora.finetune import FinetuneConfig
from lora3d_splat.pseudo_labels import PseudoLabelConfig
from lora3d_splat.records import Calibration, SparseScene
from lora3d_splat.self_calibration import (
    ADAPTED,
    PLAIN,
    ROBUST,
    TRACKED,
    CalibrationConfig,
    calibrate,
    register_heldout,
    source_sentence,
)
from lora3d_splat.watch import Watcher, watching

SMALL = {"alignment": AlignmentConfig(steps=10, samples_per_view=120), "finetune": FinetuneConfig(rank=2, epochs=1)}
VIEWS = [0, 1, 3, 4]


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[OracleNetwork]:
    """Every network is the oracle, whose counter starts at zero."""
    torch.set_num_threads(1)
    OracleNetwork.decoded = 0
    monkeypatch.setattr(self_calibration, "load_network", lambda name, device: OracleNetwork())
    return OracleNetwork


def config(folder: Path, **changes: object) -> CalibrationConfig:
    return CalibrationConfig(**{**SMALL, "device": "cpu", "cache": folder / "cache", **changes})


@dataclass(frozen=True)
class Finished:
    """A calibration of four photographs with all three rows, and the folder of its photographs and cache."""

    folder: Path
    photos: Path
    calibration: Calibration

    def copy(self, folder: Path) -> Path:
        """The cache once more, to be tampered with."""
        shutil.copytree(self.folder / "cache", folder / "cache")
        return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    write_photographs(folder / "photos", VIEWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_calibration, "load_network", lambda name, device: OracleNetwork())
        return Finished(folder, folder / "photos", calibrate(folder / "photos", config(folder)))


def centre_error(calibration: Calibration, views: list[int]) -> float:
    """RMSE of the camera centres after Sim(3), relative to their extent."""
    true = torch.stack([true_pose(view)[:3, 3] for view in views])
    found = calibration.scene.T_world_camera[:, :3, 3]
    miss = align_trajectories(found, true).apply(found) - true
    return float(miss.square().sum(-1).mean().sqrt() / (true - true.mean(0)).norm(dim=-1).max())


def test_cameras_are_recovered_and_three_rows_reported(finished: Finished) -> None:
    """With 10 % outliers and a 5 % error per pair, centres within 5 % of their extent and the focal within 5 %."""
    calibration = finished.calibration
    assert [row.name for row in calibration.rows] == [PLAIN, ROBUST, ADAPTED, TRACKED]
    assert all(row.residual is not None and row.heldout_residual is not None for row in calibration.rows[:3])
    assert centre_error(calibration, VIEWS) < 0.05
    assert calibration.rows[1].focal == pytest.approx(FOCAL, rel=0.05)


def test_the_adapter_is_kept_exactly_where_left_out_pairs_do_not_get_worse(finished: Finished, tmp_path: Path) -> None:
    """Whichever way it goes, adapter, decision, rows and scene agree, and the sentence holds both numbers."""
    calibration = calibrate(finished.photos, config(finished.folder), tmp_path / "out")
    before, after = (row.heldout_residual for row in calibration.rows[1:3])
    kept = after <= before
    assert (calibration.adapter is not None) == kept
    assert ("adapter was kept" in calibration.decision) == kept
    assert f"{before:.3%}" in calibration.decision
    assert f"{after:.3%}" in calibration.decision
    used = ADAPTED if kept else ROBUST
    assert calibration.decision.startswith(f"The scene used is the {used}; no tracks: {calibration.rows[3].reason}.")
    row = calibration.rows[2 if kept else 1]
    assert tuple(calibration.scene.T_world_camera[0].flatten().tolist()) == row.T_world_camera[0]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists() == kept


def test_the_sentence_on_tracks_counts_them_and_the_cameras_they_place() -> None:
    sparse = SparseScene(
        placed=(True, True, False),
        T_world_camera=torch.eye(4, dtype=torch.float64).repeat(3, 1, 1),
        focal=torch.ones(3, dtype=torch.float64),
        radial=torch.zeros(3, dtype=torch.float64),
        points_world=torch.zeros(1234, 3, dtype=torch.float64),
        mark_point=torch.zeros(0, dtype=torch.long),
        mark_view=torch.zeros(0, dtype=torch.long),
        mark_pixels=torch.zeros(0, 2, dtype=torch.float64),
    )
    sentence = source_sentence(ROBUST, None, sparse)
    assert "1,234 feature tracks place 2 of 3 cameras" in sentence
    assert ROBUST in sentence
    assert "no tracks: too dark." in source_sentence(ROBUST, "too dark", sparse)


def test_a_second_run_needs_no_network(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_calibration, "load_network", lambda *_: pytest.fail("built a network"))
    second = calibrate(finished.photos, config(finished.folder))
    assert torch.equal(second.scene.T_world_camera, finished.calibration.scene.T_world_camera)
    assert second.rows == finished.calibration.rows


def test_two_more_photographs_cost_only_their_pairs(
    finished: Finished, tmp_path: Path, oracle: type[OracleNetwork]
) -> None:
    """4 views have 12 ordered pairs, 6 have 30: the base network runs on 18 more, wherever the photographs lie."""
    write_photographs(tmp_path / "photos", range(6))
    calibrate(tmp_path / "photos", config(finished.copy(tmp_path), adapt="none"))
    assert oracle.decoded == 18


def test_an_interrupted_run_goes_on_from_the_finished_stages(
    tmp_path: Path, oracle: type[OracleNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the alignment keeps the predictions; the same call then gives what an uninterrupted run gives."""
    write_photographs(tmp_path / "photos", range(3))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(self_calibration, "align", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tmp_path / "photos", config(tmp_path, adapt="none"))
    assert oracle.decoded == 6
    resumed = calibrate(tmp_path / "photos", config(tmp_path, adapt="none"))
    assert oracle.decoded == 6
    fresh = calibrate(tmp_path / "photos", config(tmp_path, adapt="none", cache=tmp_path / "other"))
    assert torch.equal(resumed.scene.T_world_camera, fresh.scene.T_world_camera)


def test_a_finished_adapter_is_loaded_not_trained_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished.copy(tmp_path) / "cache" / "calibrations")
    monkeypatch.setattr(self_calibration, "finetune", lambda *_: pytest.fail("trained again"))
    second = calibrate(finished.photos, config(tmp_path))
    assert second.decision == finished.calibration.decision
    assert torch.equal(second.scene.T_world_camera, finished.calibration.scene.T_world_camera)


def test_settings_and_weights_name_the_result(tmp_path: Path) -> None:
    """Another focal mode is another result; another device or cache folder is not."""
    paths = write_photographs(tmp_path / "photos", range(3))
    base = config(tmp_path)
    other = replace(base, alignment=replace(base.alignment, focal="per-view"))
    assert self_calibration._request_key(paths, base) != self_calibration._request_key(paths, other)
    moved = replace(base, device="cuda", cache=tmp_path, recompute=True)
    assert self_calibration._request_key(paths, base) == self_calibration._request_key(paths, moved)


class Diary(Watcher):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.cameras: list[torch.Tensor] = []
        self.names: list[str] = []

    def photographs(self, views) -> None:
        self.heard.append("photographs")

    def predicted(self, prediction) -> None:
        self.heard.append("pair")

    def progress(self, title: str, done: int, total: int, seconds: float) -> None:
        assert 0 <= done <= total
        self.heard.append(title)

    def moved(self, name: str, T_world_camera: torch.Tensor, focal: torch.Tensor, loss: float) -> None:
        self.cameras.append(T_world_camera)

    def aligned(self, each) -> None:
        self.names.append(each.name)


def test_a_watcher_hears_of_pairs_steps_and_scenes(tmp_path: Path) -> None:
    """All six ordered pairs of three views, cameras that move, both alignments; afterwards it hears nothing more."""
    write_photographs(tmp_path / "photos", range(3))
    diary = Diary()
    with watching(diary):
        calibration = calibrate(tmp_path / "photos", config(tmp_path, adapt="none", tracks="off"))
    assert diary.heard.count("pair") == 6
    assert diary.heard.index("photographs") < diary.heard.index("pair") < diary.heard.index(PLAIN)
    assert diary.names == [PLAIN, ROBUST]
    assert (diary.cameras[0] - diary.cameras[-1]).abs().max() > 0
    assert [each.name for each in calibration.passes] == [PLAIN, ROBUST]
    before = len(diary.heard)
    calibrate(tmp_path / "photos", config(tmp_path, adapt="none", recompute=True, tracks="off"))
    assert len(diary.heard) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"adapt": "none"}, "switched off"), ({"pseudo_labels": PseudoLabelConfig(cutoff=99.0)}, "trusted")],
)
def test_fine_tuning_is_refused_with_a_reason(
    finished: Finished, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    calibration = calibrate(finished.photos, config(finished.copy(tmp_path), **changes))
    assert calibration.adapter is None
    assert calibration.rows[2].residual is None
    assert reason in calibration.rows[2].reason
    assert reason in calibration.decision


def test_three_views_are_judged_on_all_pairs(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photos", range(3))
    calibration = calibrate(tmp_path / "photos", config(tmp_path))
    assert "on all pairs" in calibration.decision
    assert all(row.heldout_residual is None for row in calibration.rows)


def test_a_calibration_survives_saving_and_moving(finished: Finished, tmp_path: Path) -> None:
    calibration = finished.calibration
    save_calibration(calibration, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    found = load_calibration(tmp_path / "b")
    assert found.folder == tmp_path / "b"
    assert found.rows == calibration.rows
    for name in ("T_world_camera", "focal", "principal_point", "T_world_pair", "pair_scale"):
        assert torch.equal(getattr(found.scene, name), getattr(calibration.scene, name))
    for a, b in zip(found.scene.depth, calibration.scene.depth, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found.confidence.view_confidence, calibration.confidence.view_confidence, strict=True):
        assert torch.equal(a, b)


def test_heldout_views_are_registered_without_moving_the_scene(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held-out camera lands where it is, judged in the frame of the scene; the second call needs no network."""
    (path,) = write_photographs(tmp_path, [2])
    settings = config(finished.copy(tmp_path))
    placed = register_heldout([path], finished.calibration, settings)
    assert placed.registered == (True,)
    assert placed.views[0].file == "02.png"
    true = torch.stack([true_pose(view)[:3, 3] for view in VIEWS])
    to_true = align_trajectories(finished.calibration.scene.T_world_camera[:, :3, 3], true)
    miss = to_true.apply(placed.T_world_camera[:, :3, 3])[0] - true_pose(2)[:3, 3]
    assert miss.norm() < 0.1 * (true - true.mean(0)).norm(dim=-1).max()
    monkeypatch.setattr(self_calibration, "load_network", lambda *_: pytest.fail("built a network"))
    assert torch.equal(register_heldout([path], finished.calibration, settings).T_world_camera, placed.T_world_camera)
