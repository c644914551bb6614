"""A pointmap network that knows the scene: exact pointmaps up to chosen errors, with a layer for LoRA to adapt.

Photographs are plain pictures whose red value names the view, so that the network can look the truth up.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import invert_rigid, rigid, so3_exp, transform_points
from lora3d_splat.networks.base import EncodedViews, PairOutput

WIDTH, HEIGHT = 64, 48
FOCAL = 60.0
STEP = 8
"""Red levels between two views."""


def true_pose(view: int) -> Tensor:
    """T_world_camera on an arc around a point three units ahead."""
    angle = torch.tensor([0.03 * math.sin(view), 0.12 * (view - 3), 0.0], dtype=torch.float64)
    rotation = so3_exp(angle)
    target = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)
    return rigid(rotation, target - rotation @ target + 0.1 * torch.tensor([0.0, math.cos(view), 0.0]).double())


def true_depth(view: int) -> Tensor:
    """(H, W) a smooth depth of about three units with relief."""
    v, u = torch.meshgrid(torch.arange(HEIGHT) / HEIGHT, torch.arange(WIDTH) / WIDTH, indexing="ij")
    return 3.0 + 0.8 * torch.sin(5 * u + view) + 0.6 * torch.cos(4 * v - view)


def write_photographs(folder: Path, views: range | list[int]) -> list[Path]:
    """One PNG per view, of exactly the network's size."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for view in views:
        pixels = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        pixels[..., 0] = STEP * view + 4
        paths.append(folder / f"{view:02d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


class OracleNetwork(nn.Module):
    """Meets PointmapNetwork; `decoded` counts the pairs that ran through it, `bias` is an error that LoRA can mend."""

    name, licence = "oracle", "Apache-2.0"
    patch_size, long_side = 16, WIDTH
    lora_targets = ("qkv",)
    confidence_floor, confidence_cutoff = 0.5, None
    decoded = 0

    def __init__(self, noise: float = 0.01, outliers: float = 0.1, bias: float = 0.05) -> None:
        super().__init__()
        self.noise, self.outliers, self.bias = noise, outliers, bias
        self.qkv = nn.Linear(4, 1)
        nn.init.zeros_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)

    def encode(self, images: Tensor) -> EncodedViews:
        view = (((images[:, 0].mean(dim=(1, 2)) + 1) * 127.5 - 4) / STEP).round()
        tokens = torch.stack([view, torch.ones_like(view), view.sin(), view.cos()], dim=-1)[:, None]
        return EncodedViews((images.shape[2], images.shape[3]), tokens, torch.zeros(len(images), 1, 2).long())

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        type(self).decoded += len(reference.tokens)
        pairs = [(int(a), int(b)) for a, b in zip(reference.tokens[:, 0, 0], other.tokens[:, 0, 0], strict=True)]
        first = torch.stack([self._points(a, a, (a, b)) for a, b in pairs])
        second = torch.stack([self._points(b, a, (a, b)) for a, b in pairs])
        stretch = self._stretch(reference, other)
        confidence = torch.full(first.shape[:-1], 1 + math.exp(1.0))
        return PairOutput(first, confidence, second * stretch, confidence)

    def _stretch(self, reference: EncodedViews, other: EncodedViews) -> Tensor:
        """An error of the other view's points that depends on the pair, and what the layer makes of it."""
        away = (reference.tokens[:, 0, 0] - other.tokens[:, 0, 0]).sign()
        learnt = self.qkv(other.tokens[:, 0] - reference.tokens[:, 0])[:, 0]
        return (1 + self.bias * away + 0.1 * learnt)[:, None, None, None]

    def _points(self, view: int, frame: int, pair: tuple[int, int]) -> Tensor:
        """True points (H, W, 3) of a view in the frame of another, in the pair's own unit, with noise and outliers."""
        camera = unproject(true_depth(view), FOCAL, torch.tensor([WIDTH / 2, HEIGHT / 2]))
        T_frame_view = (invert_rigid(true_pose(frame)) @ true_pose(view)).float()
        points = transform_points(T_frame_view, camera.reshape(-1, 3)).reshape(camera.shape)
        generator = torch.Generator().manual_seed(1000 * pair[0] + 10 * pair[1] + (view == frame))
        points = points * (1 + self.noise * torch.randn(HEIGHT, WIDTH, 1, generator=generator))
        wrong = torch.rand(HEIGHT, WIDTH, 1, generator=generator) < self.outliers
        points = torch.where(wrong, points + torch.randn(points.shape, generator=generator), points)
        return points * (0.5 + 0.1 * (pair[0] % 3))
