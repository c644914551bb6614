"""Seconds and peak memory of a whole self-calibration with a full-size network: predict, align, LoRA, predict.

    python benchmarks/self_calibration.py --device cuda              # 10 images of 512x384, 90 pairs, 450 steps
    python benchmarks/self_calibration.py --small --images 4         # the same path with a tiny network, on a CPU

The network has the weights of the tests' recipe, whose pointmaps agree with nothing; alignment and pseudo labels
therefore take exact pointmaps of a synthetic scene of the same size, with 1 % of noise and 10 % of gross outliers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from analytic_scene import make_scene, predict
from dust3r_recipe import TINY_DPT, recipe_network
from prediction import full_size_network, hardware, peak
from rich.table import Table

from lora3d_splat.alignment import align
from lora3d_splat.console import CONSOLE, note
from lora3d_splat.lora.finetune import FinetuneConfig, finetune
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import PredictionConfig, predict_pairs
from lora3d_splat.pseudo_labels import make_pseudo_labels

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, help="height and width; 384 512, or 48 64 with --small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", default="bfloat16", help="of predictions and of LoRA")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="a tiny network")
    options = parser.parse_args()
    keep_freed_memory()
    size = tuple(options.size or ((48, 64) if options.small else (384, 512)))
    network = (recipe_network(TINY_DPT) if options.small else full_size_network("dpt")).to(options.device)
    scene, pairs = make_scene(options.images, size=size), list(complete_pairs(options.images))
    exact = predict(scene, pairs, outliers=0.1, noise=0.01)
    note(torch.cuda.get_device_name() if options.device.startswith("cuda") else hardware())
    config = PredictionConfig(None, options.precision, options.compile)
    table, whole = Table("stage", "seconds", "peak so far"), time.perf_counter()

    def stage(name: str, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = work()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        table.add_row(name, f"{time.perf_counter() - began:.1f}", peak(options.device))
        return result

    stage(f"predict {len(pairs)} pairs", lambda: predict_pairs(network, scene.views, pairs, config))
    aligned, confidence = stage("align", lambda: align(exact, views=scene.views))
    labels = stage("pseudo labels", lambda: make_pseudo_labels(scene.views, aligned, confidence, cutoff=1.5))
    settings = FinetuneConfig(epochs=options.epochs, precision=options.precision)
    steps = -(-len(labels) // settings.batch_size) * settings.epochs
    taught = stage(f"LoRA, {steps} steps", lambda: finetune(network, scene.views, labels, settings))
    stage("predict again", lambda: predict_pairs(network, scene.views, pairs, config))
    table.add_row("all", f"{time.perf_counter() - whole:.1f}", peak(options.device))
    CONSOLE.print(table)
    note(f"mean loss of each epoch: {' '.join(f'{loss:.4f}' for loss in taught.losses)}")


if __name__ == "__main__":
    main()
