"""Optimiser and learning-rate settings that nerfstudio's configuration can hold, and the clock they follow."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, Type  # noqa: UP035

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lora3d_splat.errors import InputError

EXTENT = 1.1
"""3D Gaussian Splatting's scene extent, 1.1 times the farthest camera's distance from the mean centre, which is 1
in the normalised frame."""

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(duration: str) -> float:
    """Seconds of a duration such as 90, 60s, 5m or 1.5h."""
    match = re.fullmatch(r"(\d+\.?\d*)\s*([smh]?)", duration.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"budget {duration!r}", "a duration such as 60s, 5m or 1h", "correct it or leave it out")
    return float(match[1]) * UNITS[match[2]]


class Progress:
    """How far a training has come, by its steps, or by the clock where a budget runs out first."""

    def __init__(self, steps: int, budget: float | None = None) -> None:
        self.steps = steps
        self.budget = budget
        self._start: float | None = None

    def share(self, step: int) -> float:
        """0 at the start, 1 at the end; the clock starts with the first question."""
        by_steps = min(step / max(self.steps, 1), 1.0)
        return by_steps if self.budget is None else max(by_steps, min(self._seconds() / self.budget, 1.0))

    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self.budget is not None and self._seconds() >= self.budget

    def _seconds(self) -> float:
        if self._start is None:
            self._start = time.perf_counter()
        return time.perf_counter() - self._start


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
    progress: Progress | None = None
    """of the training; set by the trainer where no `max_steps` is configured"""

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        progress = Progress(self.config.max_steps) if self.config.max_steps is not None else self.progress
        assert progress is not None, "the trainer fills in the length of the run"
        decay = math.log(self.config.lr_final / lr_init)
        return LambdaLR(optimizer, lambda step: math.exp(decay * progress.share(step)))


@dataclass
class SpanningConfig(SchedulerConfig):
    """An exponential decay tied to the progress of a training; the trainer makes it, configurations do not hold it."""

    decay: ExponentialConfig = field(default_factory=ExponentialConfig)
    """what was configured"""
    progress: Progress = field(default_factory=lambda: Progress(1))
    """of the training"""

    def setup(self, **_: Any) -> Exponential:
        """The scheduler."""
        scheduler = Exponential(self.decay)
        scheduler.progress = self.progress
        return scheduler


@dataclass
class FusedAdamConfig(AdamOptimizerConfig):
    """Adam in one pass over the parameters, several times faster on a CPU."""

    _target: Type = torch.optim.Adam  # noqa: UP006
    """target class to instantiate"""
    fused: bool = True
    """torch's fused implementation."""


def splat_optimizers() -> dict[str, dict[str, Any]]:
    """InstantSplat's learning rates: ten times 3D Gaussian Splatting's for colour, scale and rotation."""
    constant = {"features_dc": 0.025, "features_rest": 0.00125, "opacities": 0.05, "scales": 0.05, "quats": 0.01}
    return {
        "means": _group(1.6e-4 * EXTENT, ExponentialConfig(lr_final=1.6e-6 * EXTENT, max_steps=30_000)),
        **{name: _group(rate) for name, rate in constant.items()},
        "camera_opt": _group(1e-3, ExponentialConfig(lr_final=1e-5)),
    }


def _group(rate: float, scheduler: ExponentialConfig | None = None) -> dict[str, Any]:
    return {"optimizer": FusedAdamConfig(lr=rate, eps=1e-15), "scheduler": scheduler}
