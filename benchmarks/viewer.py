"""What an open viewer costs a training: seconds per step without a visitor and with an idle one.

    python benchmarks/viewer.py RUN

RUN is a finished run of `ns-train lora3d-splat`, which gives scene and settings. One training with the viewer's server
is timed; a page is opened (headless Chromium) and closed again every so many steps, so that whatever else the machine
does falls on both alike. `--no-viewer` times the same training without any server. Visitors usually draw with another
machine's graphics card; this one has but the training's own cores, so its window is small and its priority the lowest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import yaml
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

WARM_UP = 10
KINDS = ("without a visitor", "idle visitor")


@dataclass
class Arguments:
    run: tyro.conf.Positional[Path]
    """A finished run folder."""
    steps: int = 40
    """Steps timed in each block."""
    blocks: int = 2
    """Blocks of each kind, in turns."""
    viewer: bool = True
    """Open the viewer's server; without it the plain training is timed."""
    sharing: Literal["spare", "nice", "equal"] = "spare"
    """The browser's claim to the cores: what is left over, the lowest ordinary priority, or the training's own."""
    port: int = 7311
    chromium: str = shutil.which("chromium") or "chromium"


def main(arguments: Arguments) -> None:
    config = yaml.load((arguments.run / "config.yml").read_text(), Loader=yaml.Loader)
    config.vis, config.viewer.websocket_port = ("viewer" if arguments.viewer else "tensorboard"), arguments.port
    config.timestamp = "benchmark"
    config.max_num_iterations = WARM_UP + arguments.steps * arguments.blocks * (2 if arguments.viewer else 1)
    config.logging.local_writer.enable = False
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    clock = Clock(arguments, trainer.viewer_state)
    scoring = TrainingCallbackLocation.AFTER_TRAIN
    trainer.callbacks = [each for each in trainer.callbacks if scoring not in each.where_to_run]
    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], clock.step))
    torch.manual_seed(0)
    trainer.train()
    clock.leave()
    clock.tell()


class Clock:
    """Wall time and the process's own work from step to step, the viewer's renderings included."""

    def __init__(self, arguments: Arguments, viewer: Any) -> None:
        self.arguments, self.viewer = arguments, viewer
        self.times: tuple[list[float], list[float]] = ([], [])
        self.work: tuple[list[float], list[float]] = ([], [])
        self.last, self.last_work, self.visitor = 0.0, 0.0, None

    def step(self, step: int) -> None:
        """Called before every step."""
        now, work, number = time.perf_counter(), time.process_time(), step - WARM_UP
        if number > 0:
            self.times[self._kind(number - 1)].append(now - self.last)
            self.work[self._kind(number - 1)].append(work - self.last_work)
        if number >= 0 and self._kind(number) != (self.visitor is not None):
            self.leave() if self.visitor else self.enter()
        self.last, self.last_work = time.perf_counter(), time.process_time()

    def tell(self) -> None:
        for what, measured in (("wall", self.times), ("CPU", self.work)):
            for kind, seconds in zip(KINDS, measured, strict=True):
                if seconds:
                    mean, median = statistics.mean(seconds), statistics.median(seconds)
                    print(f"{what}, {kind}: {len(seconds)} steps, mean {mean:.4f} s, median {median:.4f} s")
            if all(measured):
                without, with_one = (statistics.median(self._block_means(seconds)) for seconds in measured)
                print(f"{what}, an idle visitor: {with_one / without - 1:+.1%} per step (medians of the blocks' means)")

    def enter(self) -> None:
        options = ["--headless=new", "--no-sandbox", f"--user-data-dir={tempfile.mkdtemp()}", "--window-size=320,240"]
        address = f"http://localhost:{self.arguments.port}"
        self.visitor = subprocess.Popen(
            [self.arguments.chromium, *options, address], stderr=subprocess.DEVNULL, preexec_fn=self._step_back
        )
        while not self.viewer.viser_server.get_clients():
            time.sleep(0.1)
        time.sleep(3.0)

    def _step_back(self) -> None:
        """In the browser's process, before it starts."""
        if self.arguments.sharing == "spare":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        elif self.arguments.sharing == "nice":
            os.nice(19)

    def leave(self) -> None:
        if self.visitor is not None:
            self.visitor.terminate()
            self.visitor.wait()
            self.visitor = None

    def _block_means(self, seconds: list[float]) -> list[float]:
        """One number a block: single steps would hide a rendering every so many steps."""
        size = self.arguments.steps
        return [statistics.mean(seconds[start : start + size]) for start in range(0, len(seconds), size)]

    def _kind(self, number: int) -> int:
        return number // self.arguments.steps % 2 if self.arguments.viewer else 0


if __name__ == "__main__":
    main(tyro.cli(Arguments))
