"""All ordered pairs of a few images through a full-size network, against a naive run in the same process.

    OMP_NUM_THREADS=2 python benchmarks/prediction.py [--pieces] [--naive-pairs N] [--compile] [--device cuda]

DUSt3R 512 with the DPT head, weights by the recipe of the tests; complete graph of 4 images of 512x384. The naive run
decodes one pair after another, encodes both images of each, and computes attention (unfused) and the head as they are
defined, in float32. Differences are relative to the naive points (median over pixels, and largest over the norm).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import torch.nn.functional as F
from dust3r_recipe import FULL, random_view, recipe_tensor
from rich.table import Table
from torch import Tensor

from lora3d_splat.console import CONSOLE, note
from lora3d_splat.hardware import cpu_flags
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.networks import build_network
from lora3d_splat.networks.dpt import Dpt, Fusion, double
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.precision import CPU_FLAGS
from lora3d_splat.prediction import PredictionConfig, PredictionPass, images_tensor
from lora3d_splat.records import ImagePair, PairPrediction, View

Answers = dict[ImagePair, tuple[Tensor, Tensor]]
Result = TypeVar("Result")


def full_size_network(head: str) -> torch.nn.Module:
    """DUSt3R as published, with weights by the recipe."""
    with torch.device("meta"):
        network = build_network("dust3r", **FULL, head_type=head)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter
        tensors = pool.map(recipe_tensor.__wrapped__, shapes, shapes.values())
        network.load_state_dict(dict(zip(shapes, tensors, strict=True)), assign=True)
    return network.requires_grad_(False)


def unfused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As it is defined: the matrix of all weights."""
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v


def defined_fusion(self: Fusion, z: Tensor, finer: Tensor | None = None) -> Tensor:
    """As it is defined: the convolution last."""
    z = z if finer is None else z + self.resConfUnit1(finer)
    return self.out_conv(double(self.resConfUnit2(z)))


def defined_head(self: Dpt, tokens: list[Tensor], rows: int, columns: int, finest: Tensor | None = None) -> Tensor:
    """As it is defined: everything for every pair, enlarged maps convolved at their size."""
    grids = [part.transpose(1, 2).unflatten(2, (rows, columns)) for part in tokens]
    levels = [reassemble(grid) for reassemble, grid in zip(self.act_postprocess, grids, strict=True)]
    s0, s1, s2, s3 = (layer(level) for layer, level in zip(self.scratch.layer_rn, levels, strict=True))
    z = self.scratch.refinenet4(s3)[..., :rows, :columns]
    return self.head(self.scratch.refinenet1(self.scratch.refinenet2(self.scratch.refinenet3(z, s2), s1), s0))


@contextmanager
def naively() -> Iterator[None]:
    """Inside it the network computes what its definition says, step by step."""
    with (
        patch.object(F, "scaled_dot_product_attention", unfused_attention),
        patch.object(Fusion, "forward", defined_fusion),
        patch.object(Dpt, "forward", defined_head),
        torch.inference_mode(),
    ):
        yield


def naive_run(network: torch.nn.Module, views: list[View], pairs: list[ImagePair], device: str) -> Answers:
    """One pair after another."""
    answers = {}
    for pair in pairs:
        images = [{"img": images_tensor([views[index]], device)} for index in (pair.reference, pair.other)]
        first, second = network(*images)
        answers[pair] = (first["pts3d"][0].cpu(), second["pts3d_in_other_view"][0].cpu())
    return answers


def fast_run(network: torch.nn.Module, views: list[View], pairs: list[ImagePair], config: PredictionConfig) -> Answers:
    """As the program does it."""
    found: Iterator[PairPrediction] = PredictionPass(network, views, config).predict(pairs)  # type: ignore[arg-type]
    return {item.pair: (item.points_reference, item.points_other) for item in found}


def pieces(
    network: torch.nn.Module, views: list[View], pairs: list[ImagePair], config: PredictionConfig
) -> tuple[Answers, float, float]:
    """One image encoded and one pair decoded, added up to all images and pairs."""
    run = PredictionPass(network, views, config)  # type: ignore[arg-type]

    def decode_first() -> Answers:
        return {item.pair: (item.points_reference, item.points_other) for item in run.predict(pairs[:1])}

    _, *encoding = timed(lambda: run.encoded([pairs[0].reference]))
    run.encoded([pairs[0].other])
    answers, *decoding = timed(decode_first)
    wall, cpu = (len(views) * e + len(pairs) * d for e, d in zip(encoding, decoding, strict=True))
    return answers, wall, cpu


def timed(run: Callable[[], Result]) -> tuple[Result, float, float]:
    """The result, wall seconds, and processor seconds of all threads."""
    began, worked = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - began, time.process_time() - worked


def difference(answers: Answers, truth: Answers) -> str:
    """Median and largest error of the points both have."""
    pairs = [pair for pair in truth if pair in answers]
    found, exact = (
        torch.cat([part.reshape(-1, 3) for pair in pairs for part in each[pair]]) for each in (answers, truth)
    )
    error, size = (found - exact).norm(dim=-1), exact.norm(dim=-1)
    return f"{float((error / size).median()):.1e}, {float(error.max() / size.median()):.1e}"


def peak(device: str) -> str:
    """Largest memory so far."""
    if device.startswith("cuda"):
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def hardware() -> str:
    """The processor, and which instructions for bfloat16 it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = [flag for flag in CPU_FLAGS if flag in cpu_flags()]
    return f"{model}, {torch.get_num_threads()} threads, bfloat16 by {', '.join(found) or 'nothing'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512), help="height and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--naive-pairs", type=int, help="time only so many naive pairs, and scale")
    parser.add_argument("--pieces", action="store_true", help="time one image, one pair, one naive pair, and add up")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--head", default="dpt")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--compile", action="store_true", help="compile the fast runs; the first, untimed one warms up")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    views = [random_view(index, tuple(options.size)) for index in range(options.images)]
    pairs = list(complete_pairs(options.images))
    network = full_size_network(options.head).to(options.device)
    note(hardware() if options.device == "cpu" else torch.cuda.get_device_name())
    note(f"{len(pairs)} ordered pairs of {options.images} images; weights loaded, peak {peak(options.device)}")
    runs: dict[str, tuple[Answers, float, float, str]] = {}
    for precision in options.precisions:
        config = PredictionConfig(options.batch_size, precision, options.compile)
        if options.compile or options.device != "cpu":
            fast_run(network, views, pairs, config)
        if options.pieces:
            found = pieces(network, views, pairs, config)
        else:
            found = timed(lambda c=config: fast_run(network, views, pairs, c))
        runs[precision] = (*found, peak(options.device))
        wall, cpu = runs[precision][1:3]
        rate = len(pairs) / wall
        note(f"{precision}: {wall:.2f} s, {cpu:.1f} CPU s, {rate:.2f} pairs/s, peak so far {peak(options.device)}")
    chosen = pairs[: 1 if options.pieces else options.naive_pairs]
    with naively():
        if options.device != "cpu":
            naive_run(network, views, pairs[:1], options.device)
        truth, seconds, work = timed(lambda: naive_run(network, views, chosen, options.device))
    if len(chosen) < len(pairs):
        note(f"naive: {len(chosen)} pairs took {seconds:.1f} s, {work:.1f} CPU s; scaled to {len(pairs)} pairs")
    seconds, work = (value * len(pairs) / len(chosen) for value in (seconds, work))
    table = Table("run", "seconds", "CPU s", "times faster", "by CPU s", "peak so far", "median, largest difference")
    for name, (answers, wall, cpu, memory) in runs.items():
        ratios = f"{seconds / wall:.2f}", f"{work / cpu:.2f}"
        table.add_row(name, f"{wall:.2f}", f"{cpu:.1f}", *ratios, memory, difference(answers, truth))
    table.add_row("naive", f"{seconds:.2f}", f"{work:.1f}", "1", "1", peak(options.device), "")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
