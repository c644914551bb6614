"""What a dataparser cannot see but its datamanager can: the device, and whether a training run is being set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class RunContext:
    """Set by our datamanager around the construction of the dataparser; the default serves other methods."""

    device_type: str | None = None
    """None: judge by what torch finds"""
    training: bool = False
    """True in `ns-train`, False in the tools that load a finished run"""


_CURRENT: ContextVar[RunContext | None] = ContextVar("lora3d_run", default=None)


def run_context() -> RunContext:
    """The context of the run being set up."""
    return _CURRENT.get() or RunContext()


@contextmanager
def running(context: RunContext) -> Iterator[None]:
    """Make `context` the current one inside the block."""
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)
