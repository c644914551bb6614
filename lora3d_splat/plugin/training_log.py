"""The curve of PSNR while a training runs, in memory for the viewer and in training.csv for the report."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from lora3d_splat.report.run_results import CURVE_COLUMNS

STEPS_PER_WRITE = 10
"""Steps between two writes; fetching every number as it comes would make a GPU wait."""


class TrainingLog:
    """Collects, and appends to its file now and then; a crash loses a few steps at most."""

    def __init__(self) -> None:
        self.step, self.psnr = -1, float("nan")
        """the last training picture that was fetched"""
        self.heldout_step, self.heldout_psnr = -1, float("nan")
        """the last look at the held-out views"""
        self._path: Path | None = None
        self._start = time.perf_counter()
        self._waiting: list[tuple[int, float, Tensor]] = []

    def open(self, path: Path) -> None:
        """Start a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(CURVE_COLUMNS) + "\n", encoding="utf-8")
        self._path, self._start = path, time.perf_counter()

    def trained(self, step: int, psnr: Tensor) -> None:
        """The PSNR () of the picture of a training step."""
        self._waiting.append((step, time.perf_counter() - self._start, psnr.detach()))
        if len(self._waiting) >= STEPS_PER_WRITE:
            self.flush()

    def looked(self, step: int, heldout_psnr: float) -> None:
        """The mean PSNR of the held-out views after a step."""
        self.flush()
        self.heldout_step, self.heldout_psnr = step, heldout_psnr
        self._append([f"{step},{time.perf_counter() - self._start:.3f},,{heldout_psnr:.4f}"])

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._waiting:
            return
        values = torch.stack([psnr for *_, psnr in self._waiting]).tolist()
        steps, seconds = [step for step, *_ in self._waiting], [passed for _, passed, _ in self._waiting]
        self.step, self.psnr = steps[-1], values[-1]
        self._waiting = []
        self._append([f"{a},{b:.3f},{c:.4f}," for a, b, c in zip(steps, seconds, values, strict=True)])

    def _append(self, lines: list[str]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write("\n".join(lines) + "\n")
