"""Time the CPU rasteriser on a room seen by three cameras and rendered from a fourth, beside plain torch.

python benchmarks/rasterize.py                   scenes c, a and b, one and two threads, compile times, memory
python benchmarks/rasterize.py --runs 30 --no-torch --no-compile
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.rasterize import get_rules, rasterization, set_num_threads, spare_cores_for_kernels, warmup
from lora3d_splat.rasterize.autograd import array, build_lists, tile_grid
from lora3d_splat.rasterize.numerics import ALPHA_MIN, TILE, TRANSMITTANCE_MIN
from lora3d_splat.rasterize.reference import project, shade

SCENES = {"a": (50_000, 512, 384), "b": (100_000, 512, 384), "c": (20_000, 256, 192)}
"""Gaussians, width, height."""

PROTOTYPE = {
    ("a", 1): (30.2, 43.1), ("a", 2): (17.5, 25.1),
    ("b", 1): (59.4, 91.8), ("b", 2): (35.1, 49.9),
    ("c", 1): (10.1, 14.5), ("c", 2): (6.9, 10.3),
}  # fmt: skip
"""Forward and backward ms of the study before this rasteriser, on another server (minima of 15 calls)."""

TILES_AT_ONCE = 64

BALLS = (((-0.8, 0.3, 2.6), 0.5), ((0.5, 0.5, 2.2), 0.4), ((0.9, -0.4, 3.0), 0.45))
FLOOR = 1.2


def surface_depth(origin: Tensor, rays: Tensor) -> Tensor:
    """Distance along rays (z = 1) to the nearest of a wavy wall, a floor and three balls."""
    t = (4 - origin[2]) / rays[:, 2]
    for _ in range(8):
        hit = origin + t[:, None] * rays
        t = 4 + 0.3 * torch.sin(2 * hit[:, 0]) * torch.cos(1.5 * hit[:, 1]) - origin[2]
    below = rays[:, 1] > 1e-6
    t = torch.where(below, torch.minimum(t, (FLOOR - origin[1]) / rays[:, 1].clamp(min=1e-6)), t)
    for centre, radius in BALLS:
        offset = origin - torch.tensor(centre)
        a, b = rays.square().sum(1), rays @ offset
        root = b * b - a * (offset.square().sum() - radius * radius)
        t = torch.where(root > 0, torch.minimum(t, (-b - root.clamp(min=0).sqrt()) / a), t)
    return t


def room(count: int, width: int, height: int) -> dict[str, Tensor]:
    """Gaussians of 1 to 2 pixel footprints on the room's surfaces, opacity 0.1 to 0.9, degree 3; inputs of one call."""
    generator = torch.Generator().manual_seed(0)
    focal = 0.9 * width
    means, depths = [], []
    for view in range(3):
        part = count // 3 + (count % 3 if view == 2 else 0)
        pixels = torch.rand(part, 2, generator=generator) * torch.tensor([width, height])
        rays = torch.cat([(pixels - torch.tensor([width, height]) / 2) / focal, torch.ones(part, 1)], 1)
        origin = torch.tensor([0.25 * (view - 1), 0.05 * view, 0.0])
        t = surface_depth(origin, rays)
        means.append(origin + t[:, None] * rays)
        depths.append(t)
    depth = torch.cat(depths)
    footprint = depth / focal * (1 + torch.rand(count, generator=generator))
    view = torch.eye(4)
    angle = torch.tensor(0.1)
    view[0, 0], view[0, 2], view[2, 0], view[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    view[:3, 3] = -view[:3, :3] @ torch.tensor([0.1, 0.05, -0.1])
    return {
        "means": torch.cat(means),
        "quats": torch.randn(count, 4, generator=generator),
        "scales": footprint[:, None] * torch.exp(0.3 * torch.randn(count, 3, generator=generator)),
        "opacities": 0.1 + 0.8 * torch.rand(count, generator=generator),
        "colors": torch.randn(count, 16, 3, generator=generator) * torch.tensor([0.6] + 15 * [0.1])[:, None],
        "viewmats": view[None],
        "Ks": torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]),
    }


def time_calls(
    render: Callable, scene: dict[str, Tensor], width: int, height: int, runs: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each forward and backward call, with gradients to every input but the intrinsics."""
    leaves = {name: tensor.clone().requires_grad_(name != "Ks") for name, tensor in scene.items()}
    forward, backward = [], []
    for _ in range(runs):
        start = time.perf_counter()
        image, _, _ = render(**leaves, width=width, height=height, sh_degree=3, render_mode="RGB+ED")
        middle = time.perf_counter()
        image.backward(torch.ones_like(image))
        end = time.perf_counter()
        forward.append(1e3 * (middle - start))
        backward.append(1e3 * (end - middle))
        for leaf in leaves.values():
            leaf.grad = None
    return forward, backward


def padded_tiles(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, sh_degree: int, render_mode: str,
) -> tuple[Tensor, None, None]:  # fmt: skip
    """The same image by plain torch and autograd: the list of every tile padded to a common length, all pixels at once.

    Lists come from the compiled kernels, which favours it.
    """
    rules = get_rules()
    splats = project(
        means, quats, scales, opacities, viewmats[0], Ks[0], width, height, 0.3, 0.01, 1e10, 0.0, False, rules
    )
    colours = shade(means, viewmats[0], colors, sh_degree)
    values = torch.cat([colours, splats.depths[:, None]], 1)
    rows = (splats.means2d, splats.conics, opacities, colours, splats.depths, splats.radii)
    lists = build_lists(*(array(t) for t in rows), rules.square_radius, width, height)
    tiles_x, tiles = tile_grid(width, height)
    offsets, ranks = torch.from_numpy(lists.offsets), torch.from_numpy(lists.order[lists.ranks]).long()
    grid = torch.arange(TILE) + 0.5
    pixels = torch.stack([grid.repeat(TILE), grid.repeat_interleave(TILE)], -1)
    parts = []
    for first in range(0, tiles, TILES_AT_ONCE):
        chosen = torch.arange(first, min(first + TILES_AT_ONCE, tiles))
        corner = torch.stack([chosen % tiles_x, chosen // tiles_x], -1) * TILE
        lengths = offsets[chosen + 1] - offsets[chosen]
        slots = torch.arange(max(int(lengths.max()), 1))
        used = slots < lengths[:, None]
        index = ranks[(offsets[chosen][:, None] + slots).clamp(max=len(ranks) - 1)]
        delta = splats.means2d[index][:, :, None] - (corner[:, None, None] + pixels)
        a, b, c = (splats.conics[index][..., None, k] for k in range(3))
        dx, dy = delta.unbind(-1)
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacities[index][..., None] * torch.exp(-sigma)).clamp(max=rules.alpha_max)
        alpha = torch.where(used[..., None] & (sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
        after = torch.cumprod(1 - alpha, dim=1)
        alpha = torch.where(after > TRANSMITTANCE_MIN, alpha, 0.0)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
        parts.append(torch.einsum("tkp,tkv->tpv", alpha * before, values[index]))
    image = torch.cat(parts).reshape(tiles // tiles_x, tiles_x, TILE, TILE, 4).transpose(1, 2)
    return image.reshape(1, -1, tiles_x * TILE, 4)[:, :height, :width], None, None


def compile_seconds() -> tuple[float, float]:
    """Seconds of `warmup` in fresh processes: with an empty kernel cache, then with the cache it left."""
    program = (
        "import time; from lora3d_splat.rasterize import warmup; s = time.perf_counter(); warmup();"
        "print(time.perf_counter() - s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", program]
        runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    cold, cached = (float(run.stdout) for run in runs)
    return cold, cached


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: list[float]) -> str:
    """Minimum and median."""
    return f"{min(values):7.1f} /{statistics.median(values):7.1f}"


def main() -> None:
    """Print one line per scene and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed calls per line")
    parser.add_argument("--scenes", default="cab", help="letters of the scenes")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="numbers of threads")
    parser.add_argument("--torch-scenes", default="a", help="letters of the scenes that plain torch renders too")
    parser.add_argument("--no-torch", action="store_true", help="leave out plain torch (2.5 GB on scene a)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compile times")
    options = parser.parse_args()
    if not options.no_compile:
        cold, cached = compile_seconds()
        note(f"kernels: {cold:.1f} s compiled at the first use, {cached:.1f} s from the cache afterwards")
    before = peak_megabytes()
    warmup()
    note(f"memory: {before:.0f} MB with torch imported, {peak_megabytes():.0f} MB with the kernels; rules of gsplat "
         f"{get_rules().release}")  # fmt: skip
    note("milliseconds, minimum / median      forward           backward     prototype's minima    peak MB")
    scenes = {name: room(*SCENES[name]) for name in options.scenes}
    iterations: dict[tuple[str, int], float] = {}
    for name, scene in scenes.items():
        count, width, height = SCENES[name]
        for threads in options.threads:
            use_threads(threads)
            spare_cores_for_kernels()  # as in a training
            forward, backward = time_calls(rasterization, scene, width, height, options.runs)
            iterations[name, threads] = min(forward) + min(backward)
            figures = "{:6.1f} +{:6.1f}".format(*PROTOTYPE[name, threads]) if (name, threads) in PROTOTYPE else "-"
            note(
                f"{name} {count // 1000:>4}k {width}x{height} {threads} thr  {spread(forward)}  {spread(backward)}  "
                f"{figures:>18}  {peak_megabytes():>8.0f}"
            )
    for name in "" if options.no_torch else options.torch_scenes:
        _, width, height = SCENES[name]
        scene = room(*SCENES[name])
        image, _, _ = rasterization(**scene, width=width, height=height, sh_degree=3, render_mode="RGB+D")
        with torch.no_grad():
            gap = (padded_tiles(**scene, width=width, height=height, sh_degree=3, render_mode="RGB+D")[0] - image).abs()
        note(f"plain torch, scene {name}: mean difference of the images {float(gap.mean()):.1e}")
        for threads in options.threads:
            use_threads(threads)
            forward, backward = time_calls(padded_tiles, scene, width, height, runs=3)
            ratio = (min(forward) + min(backward)) / iterations[name, threads]
            note(
                f"{name} plain torch       {threads} thr  {spread(forward)}  {spread(backward)}  "
                f"{ratio:>14.0f}x the time  {peak_megabytes():>6.0f}"
            )


def use_threads(threads: int) -> None:
    """Let kernels and torch use so many threads."""
    set_num_threads(threads)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
