"""The demo's own work: collecting a run and scoring cameras (the training itself is the plugin's affair)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from lora3d_splat.demo import METHOD, collect, print_table, run_demo, score_cameras, training_options
from lora3d_splat.errors import InputError, Lora3DError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.scene_json import write_scene_json
from lora3d_splat.geometry.transforms import se3_exp


def write_scenes(folder: Path, scale: float, shift: float, focal: float) -> tuple[Path, Path]:
    """Known cameras, and the same ones turned, scaled and moved by a similarity, with another focal length."""
    poses = se3_exp(torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).numpy()
    frames = [{"file": f"images/{i}.jpg", "fx": 100.0, "c2w": pose.tolist()} for i, pose in enumerate(poses)]
    (folder / "known.json").write_text(json.dumps({"frames": frames}))
    turn = se3_exp(torch.tensor([1.0, 2.0, 3.0, 0.3, 0.2, 0.1], dtype=torch.float64)).numpy()
    cameras = []
    for index, pose in enumerate(poses):
        moved = turn @ pose
        moved[:3, 3] = scale * moved[:3, 3] + (shift if index == 0 else 0.0)
        cameras.append(PhotographCamera(f"{index}.jpg", 64, 48, focal, focal, 32.0, 24.0, moved))
    cameras.append(replace(cameras[0], file="lost.jpg", registered=False, reason="no overlap"))
    write_scene_json(folder / "found.json", "compact", "Apache-2.0", cameras)
    return folder / "found.json", folder / "known.json"


def test_cameras_that_differ_by_a_similarity_have_no_error(tmp_path: Path) -> None:
    """ATE 0 after the Sim(3) fit, focal error 10 %, and the unregistered camera does not count."""
    score = score_cameras(*write_scenes(tmp_path, scale=3.0, shift=0.0, focal=110.0))
    assert score.cameras == 5
    assert score.ate_rmse < 1e-9
    assert score.focal_error == pytest.approx(0.1, rel=1e-5)


def test_a_moved_camera_has_an_error(tmp_path: Path) -> None:
    assert score_cameras(*write_scenes(tmp_path, scale=1.0, shift=0.5, focal=100.0)).ate_rmse > 0.05


def write_run(folder: Path) -> None:
    (folder / "comparisons").mkdir(parents=True)
    (folder / "comparisons" / "000.png").write_bytes(b"picture")
    metrics = {"mean": {"psnr": 20.0, "ssim": 0.7, "lpips_alex": None, "lpips_vgg": None}, "mean_aligned": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "splat.ply").write_bytes(b"splat")
    (folder / "cameras.json").write_text("{}")


def test_a_run_is_collected_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    collect(tmp_path / "run", tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"metrics.json", "splat.ply", "cameras.json", "comparisons/000.png"}


def test_a_run_without_scores_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(Lora3DError, match=r"metrics\.json"):
        collect(tmp_path / "run", tmp_path / "out")


def test_the_table_shows_what_is_missing_as_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path)
    print_table(tmp_path, score_cameras(*write_scenes(tmp_path / "..", 1.0, 0.0, 100.0)))
    output = capsys.readouterr().out
    assert "20.0000" in output
    assert "-" in output
    assert "ATE 0.0000" in output


def test_a_missing_example_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known cameras"):
        run_demo(tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_ns_train_understands_the_demos_options() -> None:
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    arguments = [METHOD, "--data", "photos", *training_options(5, 256)]
    config = tyro.cli(AnnotatedBaseConfigUnion, args=arguments)  # type: ignore[arg-type]
    assert config.max_num_iterations == 5
    assert config.pipeline.datamanager.dataparser.long_side == 256
    assert training_options(None, None) == []
