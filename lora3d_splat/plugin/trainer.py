"""nerfstudio's trainer on the device there is, with rates that span the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Type  # noqa: UP035

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer

from lora3d_splat.console import end_in_sentences, interrupted, note
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.plugin.optimisation import ExponentialConfig, Progress, SpanningConfig, seconds_of
from lora3d_splat.plugin.resume import unfinished_checkpoint


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the program with one sentence, where nerfstudio would print the place in the code."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(interrupted()) from None


@dataclass
class Lora3DTrainerConfig(TrainerConfig):
    """Training of `lora3d-splat`."""

    _target: Type = field(default_factory=lambda: Lora3DTrainer)  # noqa: UP006
    """target class to instantiate"""
    preview: bool = True
    """Show the calibration in the viewer's page while it runs; only where a viewer is asked for."""
    budget: str | None = None
    """Time for the joint optimisation, such as 60s or 5m: rates fall with the clock, and training ends when it is up or
    after the number of steps, whichever comes first. Calibration and scoring are not counted."""
    resume: bool = True
    """Go on from the last checkpoint of a run of the same command that was broken off."""

    def set_experiment_name(self) -> None:
        """nerfstudio's, the folder of the photographs; a video's own name."""
        data = self.pipeline.datamanager.data
        if self.experiment_name is None and data is not None and data.is_file():
            self.experiment_name = data.stem
        super().set_experiment_name()


class Lora3DTrainer(Trainer):
    """nerfstudio's trainer; `cuda` without a CUDA device means the CPU."""

    config: Lora3DTrainerConfig

    def __init__(self, config: Lora3DTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        end_in_sentences()
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            note("no CUDA device answers: training on the CPU")
            config.machine.device_type = "cpu"
        if config.machine.device_type == "cpu":
            keep_freed_memory()
        self.progress = Progress(config.max_num_iterations, seconds_of(config.budget) if config.budget else None)
        super().__init__(config, local_rank, world_size)
        self._preview = ExitStack()

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """nerfstudio's; until the pipeline is built, the viewer's port belongs to the preview of the calibration."""
        with ending_on_interrupt(), self._preview:
            if self.config.preview and self.config.is_viewer_enabled() and self.local_rank == 0:
                self._open_preview()
            super().setup(test_mode)

    def setup_optimizers(self) -> Optimizers:
        """The configured optimisers, open-ended decays set to the length of this run.

        nerfstudio asks for them when the pipeline is built and the viewer is not, so the preview ends here.
        """
        self._preview.close()
        optimizers = {
            name: {**group, "scheduler": _spanning(group["scheduler"], self.progress)}
            for name, group in self.config.optimizers.items()
        }
        return Optimizers(optimizers, self.pipeline.get_param_groups())

    def save_checkpoint(self, step: int) -> None:
        """nerfstudio's file, but whole or absent; what it replaces goes only when it is there."""
        if self.local_rank != 0:
            return
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        # Not beside the checkpoints: nerfstudio takes every file there for one.
        temporary = self.base_dir / f".{path.name}.{os.getpid()}"
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(self._state(step), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()

    def train(self) -> None:
        """nerfstudio's; a run that was broken off does the steps that were left."""
        if self._resumed is not None:
            self.config.max_num_iterations = max(0, self.config.max_num_iterations - self._start_step)
            self.step = self._start_step - 1
            writer.GLOBAL_BUFFER["step"] = self.step  # its last line asks for it also where no step is left
        with ending_on_interrupt():
            super().train()

    @property
    def last_step(self) -> int:
        """The number of the last step."""
        done = 0 if self._resumed is not None else self._start_step
        return done + self.progress.steps - 1

    def _load_checkpoint(self) -> None:
        self._resumed: Path | None = None
        given = self.config.load_dir or self.config.load_checkpoint
        if self.config.resume and given is None:
            self._resumed = unfinished_checkpoint(self.base_dir, self.config.relative_model_dir.name)
        if self._resumed is not None:
            note(f"going on from {self._resumed} (--resume False starts afresh)")
            self.config.load_checkpoint = self._resumed
        super()._load_checkpoint()
        self.config.load_checkpoint = None if self._resumed is not None else self.config.load_checkpoint

    def _state(self, step: int) -> dict[str, object]:
        """What nerfstudio's checkpoints hold."""
        return {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }

    def _open_preview(self) -> None:
        """Start the preview and keep its port for the viewer, so that the page that is open connects again."""
        from nerfstudio.viewer_legacy.server.viewer_utils import get_free_port

        from lora3d_splat.preview.server import previewing

        viewer = self.config.viewer
        port = viewer.websocket_port or get_free_port(viewer.websocket_port_default)
        afterwards = "The viewer of the training takes over this page as soon as there are Gaussians."
        preview = self._preview.enter_context(previewing(port, afterwards, viewer.websocket_host))
        viewer.websocket_port = preview.port


def _spanning(scheduler: object, progress: Progress) -> object:
    if isinstance(scheduler, ExponentialConfig) and scheduler.max_steps is None:
        return SpanningConfig(decay=scheduler, progress=progress)
    return scheduler
