"""Running range kernels on a small thread pool.

Kernels release the GIL and work on a range of Gaussians or tiles, so plain Python threads scale. numba's own
``parallel=True`` is not used: its OpenMP layer aborts when a process that used it forks, as data loaders do.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lora3d_splat.errors import InputError

CORES_PER_TORCH_THREAD = 4

_pool: ThreadPoolExecutor | None = None
_pool_threads = 0
_requested_threads: int | None = None


def available_cores() -> int:
    """Number of cores this process may run on: its affinity, not the size of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(threads: int | None) -> None:
    """Fix the number of threads of the CPU rasteriser; None returns to one per available core."""
    global _requested_threads
    if threads is not None and threads < 1:
        raise InputError(
            found=f"threads={threads}",
            accepted="a positive number of threads, or None for one per available core",
            remedy="pass None unless other work shares the machine",
        )
    _requested_threads = threads


def get_num_threads() -> int:
    """Number of threads that the next kernel may use."""
    return _requested_threads or available_cores()


def spare_cores_for_kernels() -> None:
    """From now on torch computes on a quarter of the cores, one at least, and the kernels on all of them.

    After each of its operations torch's OpenMP threads spin for milliseconds, on cores that the kernels wait for: a
    training step on two cores took 1.5 times as long. OMP_WAIT_POLICY=passive ends the spinning, but is read when torch
    is loaded; where it is set, nothing changes.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        torch.set_num_threads(min(torch.get_num_threads(), max(1, get_num_threads() // CORES_PER_TORCH_THREAD)))


def run_ranges(kernel: Callable[..., Any], count: int, grain: int, *arguments: Any) -> None:
    """Call ``kernel(start, stop, *arguments)`` on consecutive ranges of ``grain`` items until ``count`` are done.

    The ranges do not depend on the number of threads, so a kernel that keeps partial sums per range is reproducible.
    """
    threads = min(get_num_threads(), -(-count // grain))
    ticket = itertools.count()

    def drain() -> None:
        # next() on itertools.count holds the GIL: an atomic counter.
        while (start := next(ticket) * grain) < count:
            kernel(start, min(start + grain, count), *arguments)

    helpers = [_threads(threads - 1).submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        for helper in helpers:
            helper.result()


def _threads(wanted: int) -> ThreadPoolExecutor:
    """The pool, grown when more threads are asked for than before."""
    global _pool, _pool_threads
    if _pool is None or _pool_threads < wanted:
        if _pool is not None:
            _pool.shutdown(wait=False)
        _pool, _pool_threads = ThreadPoolExecutor(wanted, thread_name_prefix="rasterize"), wanted
    return _pool


def _forget_pool() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _pool, _pool_threads
    _pool, _pool_threads = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
