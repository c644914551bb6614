"""The Gaussians' running average over the last steps: each step, of one photograph, undoes a little of the others.

Averaged weights are better than the last ones wherever the learning rate stays high (Polyak and Juditsky 1992).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import ParameterDict


@dataclass
class AveragingConfig:
    """Scoring and keeping the running average of the Gaussians in place of the last step's."""

    enabled: bool = True
    """Average; False keeps the Gaussians of the last step."""
    decay: float = 0.99
    """Share of the average that a step leaves; young averages forget faster, with (1 + n) / (10 + n) after n steps."""


class RunningAverage:
    """Of a set of parameters whose number may change; then, and with new values from elsewhere, it begins anew."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.forget()

    def forget(self) -> None:
        """Begin anew with the next step."""
        self._values: dict[str, Tensor] = {}
        self._steps = 0

    @torch.no_grad()
    def take(self, params: ParameterDict) -> None:
        """Take the parameters of a step into the average."""
        if not self._values:
            self._values = {name: value.detach().clone() for name, value in params.items()}
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        for name, value in params.items():
            self._values[name].lerp_(value.detach(), 1 - decay)
        self._steps += 1

    @contextmanager
    def shown(self, params: ParameterDict) -> Iterator[None]:
        """The average in the parameters' place, for a while."""
        last = {name: value.data for name, value in params.items()}
        self.keep(params)
        try:
            yield
        finally:
            for name, value in params.items():
                value.data = last[name]

    def keep(self, params: ParameterDict) -> None:
        """The average in the parameters' place, for good; nothing where no step was taken."""
        for name, value in self._values.items():
            params[name].data = value.clone()
