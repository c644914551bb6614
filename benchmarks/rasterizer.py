"""Time the CPU rasteriser on a room seen by three cameras and rendered from a fourth, beside the torch reference.

python benchmarks/rasterizer.py                 scenes a and c, one and two threads
python benchmarks/rasterizer.py --runs 30 --no-reference
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.rasterize import rasterization, set_num_threads, warmup
from lora3d_splat.rasterize.reference import rasterization as reference_rasterization

SCENES = {"a": (50_000, 512, 384), "c": (20_000, 256, 192)}
"""Gaussians, width, height."""

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


def reference_milliseconds(scene: dict[str, Tensor], width: int, height: int) -> float:
    """Forward and backward of the torch reference on a 64 x 48 crop and the splats seen there, scaled to all pixels.

    The reference compares every pixel with every Gaussian and cannot hold the whole image.
    """
    crop_width, crop_height = 64, 48
    crop = {name: tensor for name, tensor in scene.items()}
    crop["Ks"] = scene["Ks"].clone()
    crop["Ks"][:, 0, 2] -= (width - crop_width) / 2
    crop["Ks"][:, 1, 2] -= (height - crop_height) / 2
    _, _, meta = rasterization(**crop, width=crop_width, height=crop_height, sh_degree=3)
    seen = meta["radii"][0] > 0
    crop = {name: tensor[seen] if name not in ("viewmats", "Ks") else tensor for name, tensor in crop.items()}
    forward, backward = time_calls(reference_rasterization, crop, crop_width, crop_height, runs=2)
    return (min(forward) + min(backward)) * (width * height) / (crop_width * crop_height)


def main() -> None:
    """Print one line per scene and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed calls per line")
    parser.add_argument("--scenes", default="ac", help="letters of the scenes")
    parser.add_argument("--no-reference", action="store_true", help="leave out the slow torch reference")
    options = parser.parse_args()
    start = time.perf_counter()
    warmup()
    note(f"kernels ready after {time.perf_counter() - start:.1f} s")
    note("scene  threads   forward min / median ms   backward min / median ms   reference / kernels")
    for name in options.scenes:
        count, width, height = SCENES[name]
        scene = room(count, width, height)
        for threads in (1, 2):
            set_num_threads(threads)
            torch.set_num_threads(threads)
            forward, backward = time_calls(rasterization, scene, width, height, options.runs)
            ratio = "-"
            if not options.no_reference:
                ratio = f"{reference_milliseconds(scene, width, height) / (min(forward) + min(backward)):.0f}x"
            note(
                f"{name:>5}  {threads:>7}   {min(forward):>12.1f} / {statistics.median(forward):<8.1f}"
                f"   {min(backward):>13.1f} / {statistics.median(backward):<8.1f}   {ratio:>19}"
            )


if __name__ == "__main__":
    main()
