"""Random Gaussian scenes for the tests of the rasteriser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

TRAINED = ("means", "quats", "scales", "opacities", "colors", "viewmats")


@dataclass(frozen=True)
class Scene:
    """Gaussians, one or more cameras and the settings of one call."""

    tensors: dict[str, Tensor]
    width: int
    height: int
    settings: dict[str, Any] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Fresh leaf tensors; values always pass through float32 so that every dtype sees the same numbers."""
        return {name: tensor.float().to(dtype).requires_grad_(name in TRAINED) for name, tensor in self.tensors.items()}

    def with_settings(self, **settings: Any) -> Scene:
        """The same scene rendered otherwise."""
        return replace(self, settings={**self.settings, **settings})


def make_scene(
    seed: int,
    count: int = 250,
    size: tuple[int, int] = (80, 64),
    splat_pixels: tuple[float, float] = (0.8, 4.0),
    opacity: tuple[float, float] = (0.1, 0.9),
    cameras: int = 1,
    sh: bool = True,
    **settings: Any,
) -> Scene:
    """Gaussians spread over the image of the first camera, between depth 2 and 6, with random rotations."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width, height = size
    focal = 1.1 * width
    K = torch.tensor([[focal, 0, 0.52 * width], [0, 0.97 * focal, 0.47 * height], [0, 0, 1]], dtype=torch.float64)
    depth = uniform(2, 6, count)
    pixels = torch.stack([uniform(-4, width + 4, count), uniform(-4, height + 4, count), torch.ones(count)], -1)
    points = depth[:, None] * (pixels.double() @ torch.inverse(K).T)
    view = rigid(torch.tensor([0.05, -0.08, 0.03], dtype=torch.float64), torch.tensor([0.1, -0.05, 0.2]).double())
    means = (points - view[:3, 3]) @ view[:3, :3]
    views = [view]
    for _ in range(cameras - 1):
        views.append(rigid(0.05 * normal(3), 0.1 * normal(3)) @ view)
    scales = (depth / focal * uniform(*splat_pixels, count))[:, None] * torch.exp(0.4 * normal(count, 3))
    colors = 0.3 * normal(count, 16, 3) if sh else uniform(0, 1, count, 3)
    tensors = {
        "means": means,
        "quats": torch.nn.functional.normalize(normal(count, 4), dim=-1),
        "scales": scales,
        "opacities": uniform(*opacity, count),
        "colors": colors,
        "viewmats": torch.stack(views),
        "Ks": K.expand(cameras, 3, 3).clone(),
    }
    return Scene(tensors, width, height, {"sh_degree": 3 if sh else None, **settings})


def rigid(rotation_vector: Tensor, translation: Tensor) -> Tensor:
    """4 x 4 rigid map of a rotation vector (radians) and a translation."""
    x, y, z = rotation_vector.tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.matrix_exp(generator)
    T[:3, 3] = translation
    return T
