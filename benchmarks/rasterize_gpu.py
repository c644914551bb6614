"""Compare the CPU rasteriser with gsplat on a CUDA device, image by image and gradient by gradient.

python benchmarks/rasterize_gpu.py                   scenes c, a and b of benchmarks/rasterize.py; gsplat's milliseconds
python benchmarks/rasterize_gpu.py --device cpu      the CPU with itself: every difference is 0
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rasterize import SCENES, room
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.rasterize import get_rules, rasterization

SETTINGS: dict[str, dict[str, Any]] = {
    "classic": {},
    "antialiased": {"rasterize_mode": "antialiased"},
    "packed": {"packed": True},
    "absgrad": {"absgrad": True, "render_mode": "RGB"},
    "packed absgrad": {"packed": True, "absgrad": True, "render_mode": "RGB"},
    "sparse": {"packed": True, "sparse_grad": True},
}
"""What differs from `packed=False`, colours and expected depth."""
CUDA_ONLY = ("sparse_grad",)
"""Settings that the CPU refuses; its gradients are compared with theirs made dense."""


def render(scene: dict[str, Tensor], size: tuple[int, int], device: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The image, its alphas and the gradients to every input but the intrinsics, on the CPU."""
    leaves = {name: tensor.clone().to(device).requires_grad_(name != "Ks") for name, tensor in scene.items()}
    chosen = {"sh_degree": 3, "render_mode": "RGB+ED", "packed": False, **settings}
    if not device.startswith("cuda"):
        chosen = {name: value for name, value in chosen.items() if name not in CUDA_ONLY}
    image, alphas, meta = rasterization(**leaves, width=size[0], height=size[1], **chosen)
    meta["means2d"].retain_grad()
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(1)).to(image)
    ((image * weights).sum() + alphas.sum()).backward()
    found = {"image": image, "alphas": alphas}
    found |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if chosen.get("absgrad"):
        found["absgrad"] = unpacked(meta["means2d"].absgrad, meta, (len(scene["viewmats"]), len(scene["means"])))
    return {name: tensor.detach().to_dense().cpu().double() for name, tensor in found.items()}


def unpacked(values: Tensor, meta: dict[str, Any], shape: tuple[int, int]) -> Tensor:
    """(C, N, 2) from what may be one row for every Gaussian that a camera sees."""
    if values.dim() == 3:
        return values
    whole = values.new_zeros(*shape, values.shape[-1])
    whole[meta["camera_ids"].long(), meta["gaussian_ids"].long()] = values
    return whole


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """Mean and largest difference of the image, relative L2 difference of every gradient."""
    gap = (ours["image"] - theirs["image"]).abs()
    parts = [f"image {float(gap.mean()):.1e} mean {float(gap.max()):.1e} max"]
    for name in ours:
        if name not in ("image", "alphas"):
            off = (ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-30)
            parts.append(f"{name} {float(off):.1e}")
    return ", ".join(parts)


def milliseconds(scene: dict[str, Tensor], size: tuple[int, int], device: str, runs: int) -> tuple[float, float]:
    """Median of the forward and of the backward call."""
    leaves = {name: tensor.clone().to(device).requires_grad_(name != "Ks") for name, tensor in scene.items()}
    forward, backward = [], []

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    for _ in range(runs):
        start = now()
        image, _, _ = rasterization(**leaves, width=size[0], height=size[1], sh_degree=3, render_mode="RGB+ED")
        middle = now()
        image.backward(torch.ones_like(image))
        forward.append(middle - start)
        backward.append(now() - middle)
    return statistics.median(forward), statistics.median(backward)


def main() -> None:
    """Print one line per scene and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="of the other rasteriser")
    parser.add_argument("--scenes", default="cab", help="letters of the scenes")
    parser.add_argument("--runs", type=int, default=20, help="timed calls")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device answers; run it on a machine with one, or with --device cpu to try the script")
    note(f"rules of gsplat {get_rules().release}; {options.device} against cpu; gradients: relative L2 difference")
    for letter in options.scenes:
        count, *size = SCENES[letter]
        scene = room(count, *size)
        for name, settings in SETTINGS.items():
            ours = render(scene, tuple(size), "cpu", settings)
            theirs = render(scene, tuple(size), options.device, settings)
            note(f"{letter} {name:<14} {compare(ours, theirs)}")
        forward, backward = milliseconds(scene, tuple(size), options.device, options.runs)
        note(f"{letter} {options.device}: {forward:.2f} + {backward:.2f} ms, median of {options.runs}")


if __name__ == "__main__":
    main()
