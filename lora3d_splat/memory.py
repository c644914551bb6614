"""Keep freed memory in the process, so that long CPU work does not pay for the same pages again and again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""
GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory and never hand it back; True where that was possible.

    By default every large tensor is mapped and unmapped on its own, and each 4 KiB page of it is faulted in and cleared
    anew. On a virtual machine whose host takes free pages away this cost more than the arithmetic of a training step.
    Only glibc has this switch; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, GROWTH_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
