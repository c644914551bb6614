"""kill -9 in training, while a checkpoint is written, in scoring, in export: the same command afterwards finishes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("nerfstudio")

from kill_scenarios import EXPORT, PLACES, SAVE_EVERY, STEPS, run_folder

LAST = STEPS - 1
KEPT = {"a step": SAVE_EVERY, "writing a checkpoint": None, "scoring": LAST, "writing results": LAST}
"""The step of the checkpoint that was there after the kill."""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of all scenarios, and what was seen."""
    folder = tmp_path_factory.mktemp("kill")
    program = Path(__file__).with_name("kill_scenarios.py")
    done = subprocess.run([sys.executable, str(program), str(folder)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("place", PLACES)
def test_training_goes_on_where_it_was_killed(scenarios, place: str):
    """Killed there, a run has no scores and only whole checkpoints; the same command goes on behind the last."""
    folder, found = scenarios[0] / place.replace(" ", "-"), scenarios[1][place]
    kept = KEPT[place]
    assert found["signal"] == signal.SIGKILL
    assert not found["scored"]
    assert found["checkpoints"] == ([] if kept is None else [f"step-{kept:09d}.ckpt"])
    assert found["again"] == 0
    assert found["started_at"] == (0 if kept is None else kept + 1)
    run = run_folder(folder, "second")
    assert json.loads((run / "metrics.json").read_text())["protocol"]["steps"] == STEPS
    for path in (folder / "outputs").rglob("*.ckpt"):
        torch.load(path, map_location="cpu", weights_only=True)
    for path in (folder / "outputs").rglob("*.json"):
        json.loads(path.read_text())


def test_a_killed_export_leaves_nothing_half(scenarios):
    """No file under a final name before; all of them after the same command."""
    found = scenarios[1][EXPORT]
    assert (found["signal"], found["half"], found["again"]) == (signal.SIGKILL, [], 0)
    assert found["whole"] == ["NOTICE.txt", "cameras.json", "scene.spz", "splat.ply"]
