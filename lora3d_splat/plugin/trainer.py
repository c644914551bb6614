"""nerfstudio's trainer on the device there is, with rates that span the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Type  # noqa: UP035

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

    def setup_optimizers(self) -> Optimizers:
        """The configured optimisers, open-ended decays set to the length of this run."""
        steps = self.config.max_num_iterations
        optimizers = {
            name: {**group, "scheduler": _spanning(group["scheduler"], steps)}
            for name, group in self.config.optimizers.items()
        }
        return Optimizers(optimizers, self.pipeline.get_param_groups())


def _spanning(scheduler: object, steps: int) -> object:
    if isinstance(scheduler, ExponentialConfig) and scheduler.max_steps is None:
        return replace(scheduler, max_steps=steps)
    return scheduler
