"""The maintainers' test of joint optimisation: which trainings it runs, and what it concludes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora3d_splat import pose_test


def test_three_trainings_and_their_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joint on all photographs, then fixed with the cameras before and after; the gain is that of raw scores."""
    calls: list[list[str]] = []

    def train(photos: Path, runs: Path, options: list[str]) -> Path:
        calls.append([runs.name, *options])
        runs.mkdir(parents=True)
        quality = {"joint": 30.0, "fixed-before": 20.0, "fixed-optimised": 21.5}[runs.name]
        (runs / "metrics.json").write_text(json.dumps({"mean": {"psnr": quality, "ssim": quality / 100}}))
        return runs

    monkeypatch.setattr(pose_test, "train", train)
    pose_test.run_pose_test(Path("photos"), tmp_path, 40, 64)
    joint, before, optimised = calls
    assert joint == ["joint", "--max-num-iterations", "40", "lora3d-data", "--long-side", "64", "--eval-mode", "all"]
    assert before[-2:] == ["--cameras", str(tmp_path / "joint/calibration/scene.json")]
    assert optimised[-2:] == ["--cameras", str(tmp_path / "joint/cameras.json")]
    for fixed in (before, optimised):
        assert fixed[fixed.index("--pipeline.model.camera-optimizer.mode") + 1] == "off"
        assert fixed.index("lora3d-data") > fixed.index("off")
    found = json.loads((tmp_path / "pose_test.json").read_text())
    assert (found["psnr_gain"], found["ssim_gain"]) == pytest.approx((1.5, 0.015))
