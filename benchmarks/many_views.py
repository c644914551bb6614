"""Seconds per pair and peak resident memory for few and for many photographs, with the bundled network.

    python benchmarks/many_views.py [--views 12 200] [--graph budget] [--gib 2] [--align]

Synthetic photographs of 224x224 pixels on a ring around a table. Each row is a process of its own: the peak is that
process's largest resident set, mapped files included. Predictions pass through the stage cache, as in a calibration.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from lora3d_splat.alignment import align
from lora3d_splat.artifacts import StageCache
from lora3d_splat.console import CONSOLE
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.networks import load_network, network_digest
from lora3d_splat.pair_cache import cached_predictions
from lora3d_splat.pairs import PairConfig, select_pairs
from lora3d_splat.prediction import GIB, PredictionConfig, PredictionPass, prediction_bytes
from lora3d_splat.records import PixelAffine, View
from lora3d_splat.synthetic.cameras import look_at
from lora3d_splat.synthetic.demo_scene import FOV, STYLE, demo_world
from lora3d_splat.synthetic.render import cast
from lora3d_splat.synthetic.textures import atlas

TARGET = np.array([-0.02, 0.08, 0.84])


def ring(count: int, size: int) -> tuple[View, ...]:
    """Views once around the table, rising and falling, close to it where there are few of them on a short arc."""
    world, focal = demo_world(), size / 2 / np.tan(np.radians(FOV) / 2)
    step = np.radians(min(7.0, 360 / count))
    views = []
    for number in range(count):
        angle, wave = step * number, 0.9 * number
        eye = np.add(TARGET, (1.35 * np.sin(angle), -1.35 * np.cos(angle), 0.55 + 0.12 * np.sin(wave)))
        image, _ = cast(world, atlas(STYLE), look_at(eye, TARGET, 0.0), focal, (size, size), samples=1)
        name = f"{number:03d}.png"
        views.append(View(name, Path(name), size, size, image, PixelAffine(1, 1, 0, 0), str(number)))
    return tuple(views)


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int, options: argparse.Namespace) -> dict[str, float | str]:
    """Predict (and align) in this process."""
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    views = ring(count, options.size)
    network = load_network("compact", "cpu")
    run = PredictionPass(network, views, PredictionConfig(memory=options.memory))
    row: dict[str, float | str] = {"before MiB": peak_mib()}
    began = time.perf_counter()
    config = PairConfig(options.graph if count > 12 else "complete", memory=options.gib)
    pairs = select_pairs(count, config, run.similarity, run.cost)
    row |= {"pairs": len(pairs), "graph s": time.perf_counter() - began}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        began, worked = time.perf_counter(), time.process_time()
        predictions = cached_predictions(StageCache(Path(folder)), network_digest(network), run, pairs, "prediction")
        wall, work = time.perf_counter() - began, time.process_time() - worked
        row |= {
            "ms/pair": 1000 * wall / len(pairs),
            "CPU ms/pair": 1000 * work / len(pairs),
            "GiB": prediction_bytes(views, pairs) / GIB,
            "lies": "memory" if prediction_bytes(views, pairs) <= options.memory * GIB else "disk",
            "peak MiB": peak_mib(),
        }
        if options.align:
            began = time.perf_counter()
            scene, _ = align(predictions.value, views=views, confidence_floor=network.confidence_floor)
            row |= {"align s": time.perf_counter() - began, "placed": sum(scene.registered), "align MiB": peak_mib()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, nargs="+", default=[12, 200], help="numbers of photographs, one row each")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--graph", default="budget", help="scene graph of more than 12 photographs")
    parser.add_argument("--gib", type=float, default=2.0, help="GiB of predictions that the graph may have")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB of predictions kept in memory")
    parser.add_argument("--align", action="store_true", help="align them too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary cache lies")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options)))
        return
    rows = []
    for count in options.views:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(count)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append({"views": count, **json.loads(output.splitlines()[-1])})
        for name in ("ms/pair", "CPU ms/pair"):
            rows[-1][f"ratio of {name}"] = rows[-1][name] / rows[0][name]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
