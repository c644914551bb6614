"""The command line: light help, settings that arrive, one sentence and an exit status for failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from calibration_example import make_calibration

from lora3d_splat import cli, pretraining
from lora3d_splat.calibration_files import save_calibration


def test_help_needs_neither_torch_nor_nerfstudio() -> None:
    code = (
        "import sys; from lora3d_splat.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'nerfstudio', 'peft', 'numba', 'gsplat'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in output
    for command in ("calibrate", "demo", "export", "doctor", "pretrain"):
        assert command in output


def parse(*words: str) -> cli.Calibrate:
    return tyro.cli(cli.Calibrate, args=list(words))


def test_options_arrive_in_the_settings() -> None:
    config = parse(
        "photos", "--output", "out", "--network", "compact", "--focal", "512.5", "--long-side", "224", "--no-lora",
        "--steps", "7", "--epochs", "2", "--rank", "4", "--device", "cpu", "--cache", "c",
        "--offline",
    ).config()  # fmt: skip
    assert (config.network, config.long_side, config.adapt, config.device) == ("compact", 224, "none", "cpu")
    assert (config.alignment.focal, config.alignment.steps) == ("512.5", 7)
    assert (config.finetune.epochs, config.finetune.rank) == (2, 4)
    assert config.cache == Path("c")
    assert config.offline


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--preview"], 8), (["--preview", "3"], 3), (["--preview", "--seed", "4"], 8), ([], 0)],
)
def test_a_preview_needs_no_number(
    words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It writes a contact sheet and trains nothing; without the word it trains."""
    called: list[tuple[str, int]] = []
    monkeypatch.setattr(pretraining, "write_preview", lambda config: called.append(("preview", config.preview)))
    monkeypatch.setattr(pretraining, "pretrain", lambda config: called.append(("training", config.preview)))
    assert cli.main(["pretrain", *words, "--folder", str(tmp_path)]) == 0
    assert called == [("preview" if expected else "training", expected)]


def test_options_not_given_leave_the_defaults() -> None:
    from lora3d_splat.self_calibration import CalibrationConfig

    assert parse("photos", "--output", "out").config() == CalibrationConfig()


def test_a_known_error_is_one_sentence_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status = cli.main(["calibrate", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert status == 1
    assert "does not exist" in output
    assert "what to do" in output
    assert "Traceback" not in output


def test_an_unusable_setting_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status = cli.main(["calibrate", str(tmp_path), "--output", str(tmp_path / "out"), "--focal", "wide"])
    assert status == 1
    assert "focal='wide'" in capsys.readouterr().out


def test_ctrl_c_says_that_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(self: cli.Doctor) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Doctor, "run", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "kept" in capsys.readouterr().out


def test_export_writes_the_formats_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_calibration(make_calibration(tmp_path), tmp_path / "run" / "calibration")
    status = cli.main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--format", "ply", "colmap"])
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["NOTICE.txt", "colmap", "seed.ply"]


def test_export_of_nothing_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["export", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "scene.safetensors" in capsys.readouterr().out
