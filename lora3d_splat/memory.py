"""The memory of the process: how much it took, and keeping what it freed so that it does not pay for pages twice."""

from __future__ import annotations

import ctypes
import resource
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


def peak_memory_bytes() -> dict[str, int]:
    """Largest memory so far by kind of device: `cpu` (resident size), and `cuda` where there is one."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak
