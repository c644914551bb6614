"""Whether the network may be used at all: asked before every download."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

VARIABLES = ("LORA3D_SPLAT_OFFLINE", "HF_HUB_OFFLINE")
"""environment variables that forbid it; the second is the model hub's own"""

_FORBIDDEN: ContextVar[bool] = ContextVar("lora3d_offline", default=False)


def is_offline() -> bool:
    """True inside `offline(True)`, and where an environment variable says anything but 0, false, no or nothing."""
    set_by_user = (os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no") for name in VARIABLES)
    return _FORBIDDEN.get() or any(set_by_user)


@contextmanager
def offline(forbidden: bool) -> Iterator[None]:
    """Forbid the network inside the block; `False` leaves things as they are."""
    token = _FORBIDDEN.set(_FORBIDDEN.get() or forbidden)
    try:
        yield
    finally:
        _FORBIDDEN.reset(token)
