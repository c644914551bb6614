"""kill -9 in training, while a checkpoint is written, in scoring, in export: the same command afterwards finishes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("nerfstudio")

from plugin_run import run_config, train
from plugin_scene import fake_self_calibration, write_photographs

from lora3d_splat.run_export import export_source

STEPS, SAVE_EVERY = 14, 5


def die(*_: object, **__: object) -> None:
    """As `kill -9` does: no handler runs, no file is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[pytest.MonkeyPatch], object]) -> None:
    """Do the work in a child process, which must be killed by it."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            with pytest.MonkeyPatch.context() as patch:
                work(patch)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child was to be killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that gives the command a user would repeat; only the time of the run differs."""
    write_photographs(tmp_path / "photos", 5)
    fake_self_calibration(monkeypatch, tmp_path / "calibration")

    def config(timestamp: str):
        return run_config(tmp_path, max_num_iterations=STEPS, steps_per_save=SAVE_EVERY, timestamp=timestamp)

    return config


def whole(run: Path) -> None:
    """The run has its results, and every file under a final name can be read."""
    assert json.loads((run / "metrics.json").read_text())["protocol"]["steps"] == STEPS
    for path in run.rglob("*.ckpt"):
        torch.load(path, map_location="cpu", weights_only=True)
    for path in run.rglob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("lora3d_splat.plugin.model.Lora3DSplatModel.step_post_backward", None),
        ("lora3d_splat.plugin.trainer.os.replace", None),
        ("lora3d_splat.plugin.pipeline.score_views", STEPS - 1),
        ("lora3d_splat.plugin.run_files.write_scene_json", STEPS - 1),
    ],
)
def test_training_goes_on_where_it_was_killed(command, place: str, kept: int | None):
    """In a step after a checkpoint, while one is written, in scoring, between results: a second run ends the work."""

    def work(patch: pytest.MonkeyPatch) -> None:
        if place.endswith("step_post_backward"):
            from lora3d_splat.plugin.model import Lora3DSplatModel

            whole_step = Lora3DSplatModel.step_post_backward
            patch.setattr(place, lambda self, step: die() if step == 7 else whole_step(self, step))
        else:
            patch.setattr(place, die)
        train(command("first"))

    killed(work)
    first = command("first").get_base_dir()
    assert not (first / "metrics.json").exists()
    checkpoints = sorted(path.name for path in first.rglob("*.ckpt"))
    expected = {"step_post_backward": SAVE_EVERY, "replace": None}.get(place.split(".")[-1], kept)
    assert checkpoints == ([] if expected is None else [f"step-{expected:09d}.ckpt"])
    trainer = train(command("second"))
    assert trainer._start_step == (0 if expected is None else expected + 1)
    whole(trainer.base_dir)
    assert trainer.step == STEPS - 1


def test_an_export_that_was_killed_leaves_nothing_half(command):
    """No file under a final name that is not whole; the same command writes all of them."""
    run = train(command("run")).base_dir

    def work(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("lora3d_splat.files.os.replace", die)
        export_source(run, run / "export", ("spz",))

    killed(work)
    assert not [path for path in (run / "export").iterdir() if not path.name.startswith(".")]
    export_source(run, run / "export", ("spz", "ply", "cameras"))
    names = {path.name for path in (run / "export").iterdir() if not path.name.startswith(".")}
    assert names == {"NOTICE.txt", "scene.spz", "splat.ply", "cameras.json"}
