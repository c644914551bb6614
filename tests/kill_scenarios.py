"""Runs trainings and an export, kills them, gives the same command again; prints what was there in between as JSON.

A program of its own: everything is imported once, and every child is forked before any thread has started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plugin_run import run_config, train
from plugin_scene import fake_self_calibration, write_photographs

import lora3d_splat.plugin.pipeline
from lora3d_splat.plugin.model import Lora3DSplatModel
from lora3d_splat.run_export import export_source
from method_configs.lora3d_splat import _specification

STEPS, SAVE_EVERY, DIES_IN = 14, 5, 7
PLACES = {
    "a step": "lora3d_splat.plugin.model.Lora3DSplatModel.step_post_backward",
    "writing a checkpoint": "lora3d_splat.plugin.trainer.os.replace",
    "scoring": "lora3d_splat.plugin.pipeline.score_views",
    "writing results": "lora3d_splat.plugin.run_files.write_scene_json",
}
EXPORT = "export"


def die(*_: object, **__: object) -> None:
    """As `kill -9` does: no handler runs, no file is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[pytest.MonkeyPatch], object]) -> int:
    """Do the work in a child process; returns its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            with pytest.MonkeyPatch.context() as patch:
                work(patch)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def command(folder: Path, timestamp: str, patch: pytest.MonkeyPatch):
    """The configuration of the command that a user would repeat; only the time of the run differs."""
    fake_self_calibration(patch, folder / "calibration")
    config = run_config(folder, max_num_iterations=STEPS, steps_per_save=SAVE_EVERY, timestamp=timestamp)
    config.logging.local_writer.enable = True  # it has something to say even where no step is left
    return config


def killed_training(folder: Path, place: str) -> Callable[[pytest.MonkeyPatch], object]:
    """A training that dies there."""

    def work(patch: pytest.MonkeyPatch) -> None:
        whole = Lora3DSplatModel.step_post_backward
        if place == "a step":
            patch.setattr(PLACES[place], lambda self, step: die() if step == DIES_IN else whole(self, step))
        else:
            patch.setattr(PLACES[place], die)
        train(command(folder, "first", patch))

    return work


def run_folder(folder: Path, name: str) -> Path:
    """Of a run of the command."""
    return next(path for path in (folder / "outputs").rglob(name) if path.is_dir())


def training_scenario(folder: Path, place: str) -> dict[str, object]:
    """Kill, look, repeat."""
    write_photographs(folder / "photos", 4)
    status = in_child(killed_training(folder, place))
    first = run_folder(folder, "first")
    seen = {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "checkpoints": sorted(path.name for path in first.rglob("*.ckpt")),
        "scored": (first / "metrics.json").exists(),
    }

    def again(patch: pytest.MonkeyPatch) -> None:
        trainer = train(command(folder, "second", patch))
        (folder / "started_at").write_text(str(trainer._start_step))

    return {**seen, "again": in_child(again), "started_at": int((folder / "started_at").read_text())}


def export_scenario(run: Path) -> dict[str, object]:
    """An export that dies before its first file has its name, and another."""

    def work(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("lora3d_splat.files.os.replace", die)
        export_source(run, run / "export", ("spz",))

    status = in_child(work)
    half = sorted(path.name for path in (run / "export").iterdir() if not path.name.startswith("."))
    again = in_child(lambda _: export_source(run, run / "export", ("spz", "ply", "cameras")))
    whole = sorted(path.name for path in (run / "export").iterdir() if not path.name.startswith("."))
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return {"signal": killed, "half": half, "again": again, "whole": whole}


def main(folder: Path) -> None:
    _specification()
    assert lora3d_splat.plugin.pipeline
    found = {place: training_scenario(folder / place.replace(" ", "-"), place) for place in PLACES}
    found[EXPORT] = export_scenario(run_folder(folder / "scoring", "second"))
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
