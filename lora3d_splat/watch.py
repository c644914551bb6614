"""Looking on while a calibration runs: the stages tell the current watcher what they have; usually nobody watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line's help must not wait for torch
    from torch import Tensor

    from lora3d_splat.records import CalibrationPass, PairPrediction, View


class Watcher:
    """Told of everything that can be looked at; this one ignores it all. Called in the thread that computes."""

    def photographs(self, views: Sequence[View]) -> None:
        """The views that take part, in the order that all indices mean."""

    def progress(self, title: str, done: int, total: int, seconds: float) -> None:
        """So many units of a stage are done after so many seconds."""

    def predicted(self, prediction: PairPrediction) -> None:
        """One pair more has its pointmaps."""

    def moved(self, name: str, T_world_camera: Tensor, focal: Tensor, loss: float) -> None:
        """Cameras (V, 4, 4) and focals (V,) in network pixels after a step of an alignment, in a frame of its own.

        V is less than the number of views where the alignment has left some out.
        """

    def aligned(self, each: CalibrationPass) -> None:
        """An alignment has ended."""

    def loss(self, epoch: int, value: float) -> None:
        """The mean loss of a finished epoch of the fine-tuning, counted from 0."""


_NOBODY = Watcher()
_current = _NOBODY


def watcher() -> Watcher:
    """Who watches now."""
    return _current


@contextmanager
def watching(who: Watcher) -> Iterator[None]:
    """Let `who` watch what happens inside the block."""
    global _current
    before, _current = _current, who
    try:
        yield
    finally:
        _current = before
