"""Optimiser and learning-rate settings that nerfstudio's configuration can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Type  # noqa: UP035

from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

EXTENT = 1.1
"""3D Gaussian Splatting's scene extent, 1.1 times the farthest camera's distance from the mean centre, which is 1
in the normalised frame."""


@dataclass
class ExponentialConfig(SchedulerConfig):
    """Exponential decay of a learning rate.

    nerfstudio's own puts numpy numbers into the checkpoint, which torch >= 2.6 refuses to load; this one keeps floats.
    """

    _target: Type = field(default_factory=lambda: Exponential)  # noqa: UP006
    """target class to instantiate"""
    lr_final: float = 1e-6
    """Learning rate after `max_steps`."""
    max_steps: int | None = None
    """Steps until `lr_final`; None: the length of the training run."""


class Exponential(Scheduler):
    """lr(step) = lr_init^(1 - t) * lr_final^t with t = step / max_steps."""

    config: ExponentialConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        steps = self.config.max_steps
        assert steps is not None, "the trainer fills in the length of the run"
        decay = math.log(self.config.lr_final / lr_init)
        return LambdaLR(optimizer, lambda step: math.exp(decay * min(step / steps, 1.0)))


def splat_optimizers() -> dict[str, dict[str, Any]]:
    """InstantSplat's learning rates: ten times 3D Gaussian Splatting's for colour, scale and rotation."""
    constant = {"features_dc": 0.025, "features_rest": 0.00125, "opacities": 0.05, "scales": 0.05, "quats": 0.01}
    return {
        "means": _group(1.6e-4 * EXTENT, ExponentialConfig(lr_final=1.6e-6 * EXTENT, max_steps=30_000)),
        **{name: _group(rate) for name, rate in constant.items()},
        "camera_opt": _group(1e-4, ExponentialConfig(lr_final=1e-6)),
    }


def _group(rate: float, scheduler: ExponentialConfig | None = None) -> dict[str, Any]:
    return {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": scheduler}
