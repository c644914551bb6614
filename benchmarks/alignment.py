"""Seconds and errors of the alignment on exact synthetic predictions, with and without confident gross outliers.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py

All ordered pairs at 160x112; centre error over the camera extent after Sim(3), largest rotation error, focal and median
depth errors relative to the truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from analytic_scene import errors, make_scene, predict
from rich.table import Table

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.console import CONSOLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--outliers", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--noise", type=float, default=0.01, help="relative noise of the predicted points")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("views", "outliers", "alignment", "seconds", "CPU s", "centre", "rotation deg", "focal", "depth")
    for count in options.views:
        scene = make_scene(count, size=(112, 160))
        for outliers in options.outliers:
            predictions = predict(scene, outliers=outliers, noise=options.noise)
            for robust in ("none", "geman-mcclure"):
                began, worked = time.perf_counter(), time.process_time()
                aligned, _ = align(predictions, AlignmentConfig(robust=robust), views=scene.views)
                seconds, work = time.perf_counter() - began, time.process_time() - worked
                found = [f"{value:.2e}" for value in errors(scene, aligned).values()]
                table.add_row(str(count), f"{outliers:.0%}", robust, f"{seconds:.1f}", f"{work:.1f}", *found)
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
