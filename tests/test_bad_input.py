"""What a new user does wrong, through the command line: one sentence, status 1, nothing lost, nothing half written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle_network import OracleNetwork, write_photographs

from lora3d_splat import self_calibration
from lora3d_splat.cli import main


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    OracleNetwork.decoded = 0
    monkeypatch.setattr(self_calibration, "load_network", lambda name, device: OracleNetwork())


def run(tmp_path: Path, *photos: Path | str) -> int:
    words = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    return main(["calibrate", *map(str, photos), *words, "--no-lora", "--steps", "8"])


def said(capsys: pytest.CaptureFixture) -> str:
    output = capsys.readouterr().out
    assert "Traceback" not in output
    return " ".join(output.split())


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "photos").mkdir()
    assert run(tmp_path, tmp_path / "photos") == 1
    assert "no images in" in said(capsys)


def test_a_path_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, tmp_path / "nowhere") == 1
    assert "nowhere, which does not exist" in said(capsys)


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_photographs(tmp_path / "photos", range(1))
    assert run(tmp_path, tmp_path / "photos") == 1
    assert "one usable photograph" in said(capsys)


def test_two_identical_photographs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (path,) = write_photographs(tmp_path / "photos", range(1))
    shutil.copy(path, path.with_name("copy.png"))
    assert run(tmp_path, tmp_path / "photos") == 1
    output = said(capsys)
    assert "one usable photograph" in output
    assert "the same photograph as" in output


def test_bad_files_among_good_ones_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A text file with an image's name, a truncated picture and a copy: the run goes on with the other three."""
    paths = write_photographs(tmp_path / "photos", range(4))
    (tmp_path / "photos" / "notes.jpg").write_text("not a photograph")
    (tmp_path / "photos" / "copy.png").write_bytes(paths[0].read_bytes())
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    assert run(tmp_path, tmp_path / "photos") == 0
    output = said(capsys)
    for name in ("notes.jpg", "copy.png", "03.png"):
        assert f"left out {name}" in output
    assert (tmp_path / "out" / "scene.json").exists()


def test_an_output_that_is_a_file_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_photographs(tmp_path / "photos", range(3))
    (tmp_path / "out").write_text("precious")
    assert run(tmp_path, tmp_path / "photos") == 1
    assert "output folder" in said(capsys)
    assert OracleNetwork.decoded == 0
    assert (tmp_path / "out").read_text() == "precious"


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_photographs(tmp_path / "photos", range(3))
    (tmp_path / "cache").write_text("in the way")
    assert run(tmp_path, tmp_path / "photos") == 1
    assert "cache folder" in said(capsys)
    assert OracleNetwork.decoded == 0


def test_corrupt_cache_entries_are_computed_again_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The finished calibration and one pair are damaged: both are said, only that pair runs again."""
    write_photographs(tmp_path / "photos", range(3))
    assert run(tmp_path, tmp_path / "photos") == 0
    first = (tmp_path / "out" / "scene.json").read_text()
    shutil.rmtree(tmp_path / "cache" / "alignment")
    for damaged in (next((tmp_path / "cache/calibrations").iterdir()) / "scene.safetensors", pair_entry(tmp_path)):
        damaged.write_bytes(damaged.read_bytes()[:-7])
    OracleNetwork.decoded = 0
    capsys.readouterr()
    assert run(tmp_path, tmp_path / "photos") == 0
    assert said(capsys).count("is corrupt") == 2
    assert OracleNetwork.decoded == 1
    assert (tmp_path / "out" / "scene.json").read_text() == first


def pair_entry(tmp_path: Path) -> Path:
    return sorted((tmp_path / "cache" / "pairs").iterdir())[0]


def test_ctrl_c_then_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Status 130 with a line that work is kept, no half files, and the second run does not predict again."""
    write_photographs(tmp_path / "photos", range(3))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(self_calibration, "align", interrupted)
        assert run(tmp_path, tmp_path / "photos") == 130
    assert "are kept" in said(capsys)
    assert [path for path in (tmp_path / "cache").rglob(".*")] == []
    assert OracleNetwork.decoded == 6
    assert run(tmp_path, tmp_path / "photos") == 0
    assert OracleNetwork.decoded == 6


def test_photographs_without_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A network that is never sure: the sentence says that the views do not fit together, and nothing is written."""
    write_photographs(tmp_path / "photos", range(3))
    monkeypatch.setattr(self_calibration, "load_network", lambda name, device: OracleNetwork(noise=3.0, outliers=1.0))
    assert run(tmp_path, tmp_path / "photos") == 1
    assert "overlap" in said(capsys)
    assert not (tmp_path / "out" / "scene.json").exists()


def test_an_unknown_network_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_photographs(tmp_path / "photos", range(3))
    words = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--network", "dust4r"]
    assert main(["calibrate", str(tmp_path / "photos"), *words]) == 1
    assert "'dust4r'" in said(capsys)


def test_ns_train_ends_with_the_sentence_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    command = [str(Path(sys.executable).with_name("ns-train")), "lora3d-splat", "--output-dir", str(tmp_path / "out")]
    command += ["--vis", "tensorboard", "--data", str(tmp_path / "photos")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "no images in" in " ".join(done.stdout.split())
