"""nerfstudio's trainer on the device there is, with rates that span the run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal, Type  # noqa: UP035

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from lora3d_splat.console import note
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.plugin.optimisation import ExponentialConfig


@dataclass
class Lora3DTrainerConfig(TrainerConfig):
    """Training of `lora3d-splat`."""

    _target: Type = field(default_factory=lambda: Lora3DTrainer)  # noqa: UP006
    """target class to instantiate"""
    preview: bool = True
    """Show the calibration in the viewer's page while it runs; only where a viewer is asked for."""


class Lora3DTrainer(Trainer):
    """nerfstudio's trainer; `cuda` without a CUDA device means the CPU."""

    config: Lora3DTrainerConfig

    def __init__(self, config: Lora3DTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            note("no CUDA device answers: training on the CPU")
            config.machine.device_type = "cpu"
        if config.machine.device_type == "cpu":
            keep_freed_memory()
        super().__init__(config, local_rank, world_size)
        self._preview = ExitStack()

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """nerfstudio's; until the pipeline is built, the viewer's port belongs to the preview of the calibration."""
        with self._preview:
            if self.config.preview and self.config.is_viewer_enabled() and self.local_rank == 0:
                self._open_preview()
            super().setup(test_mode)

    def setup_optimizers(self) -> Optimizers:
        """The configured optimisers, open-ended decays set to the length of this run.

        nerfstudio asks for them when the pipeline is built and the viewer is not, so the preview ends here.
        """
        self._preview.close()
        steps = self.config.max_num_iterations
        optimizers = {
            name: {**group, "scheduler": _spanning(group["scheduler"], steps)}
            for name, group in self.config.optimizers.items()
        }
        return Optimizers(optimizers, self.pipeline.get_param_groups())

    def _open_preview(self) -> None:
        """Start the preview and keep its port for the viewer, so that the page that is open connects again."""
        from nerfstudio.viewer_legacy.server.viewer_utils import get_free_port

        from lora3d_splat.preview.server import previewing

        viewer = self.config.viewer
        port = viewer.websocket_port or get_free_port(viewer.websocket_port_default)
        afterwards = "The viewer of the training takes over this page as soon as there are Gaussians."
        preview = self._preview.enter_context(previewing(port, afterwards))
        viewer.websocket_port = preview.port


def _spanning(scheduler: object, steps: int) -> object:
    if isinstance(scheduler, ExponentialConfig) and scheduler.max_steps is None:
        return replace(scheduler, max_steps=steps)
    return scheduler
