"""Work in batches that fit memory: a first guess from what is free, and half of it whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from lora3d_splat.console import warn
from lora3d_splat.errors import InputError

PIXELS_PER_BATCH = {"cpu": 1_500_000, "cuda": 12_000_000}
"""Image pixels, both sides together, beyond which a larger decoding step is no faster."""
WORKING_BYTES_PER_PIXEL = 2600
"""Working memory of a decoding step per image pixel, for the network that needs most (a DPT head in float32)."""
ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "alloc_failed", "out of memory")
"""How allocators that raise a plain RuntimeError say it: PyTorch's on the CPU, oneDNN's, cuBLAS's and CUDA's."""

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


def fitting_batch(sizes: Sequence[tuple[int, int]], device: torch.device) -> int:
    """How many items, each made of images of these (H, W), to try at once."""
    pixels = min(
        PIXELS_PER_BATCH.get(device.type, PIXELS_PER_BATCH["cpu"]), free_bytes(device) // WORKING_BYTES_PER_PIXEL
    )
    return max(1, pixels // sum(height * width for height, width in sizes))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # another system, which says it otherwise
        return 1 << 62


def in_batches(
    items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """(batch, run(batch)) over all items; where memory runs out the batch is halved, for the rest of the items too.

    Raises InputError when not even one item fits.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        result = _attempt(run, batch)
        if result is None:
            size = len(batch) // 2
            warn(f"out of memory: continuing with batches of {size}")
            continue
        start += len(batch)
        yield batch, result


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in ALLOCATION_FAILURES)


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """(key, items of that key) in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def _attempt(run: Callable[[Sequence[Item]], Result], batch: Sequence[Item]) -> Result | None:
    """None where memory ran out; the error is gone on return, and with it the frames that hold what was allocated."""
    try:
        return run(batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise InputError(
                found="images too large for the memory of the device",
                accepted="images of which one pair fits into memory",
                remedy="lower the long side of the images, or use --device cpu",
            ) from error
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None
