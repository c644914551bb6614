"""Analytic gradients of the CPU kernels against finite differences, everything in float64."""

from __future__ import annotations

import pytest
import torch
from rasterize_scenes import TRAINED, Scene, make_scene

from lora3d_splat.rasterize import rasterization
from lora3d_splat.rasterize.reference import rasterization as reference_rasterization

TINY = {"count": 6, "size": (20, 18), "splat_pixels": (2.0, 5.0), "opacity": (0.2, 0.8)}
CASES = {
    "harmonics and expected depth": make_scene(21, **TINY, render_mode="RGB+ED"),
    "antialiased, two cameras": make_scene(
        22, **TINY, sh=False, cameras=2, rasterize_mode="antialiased", render_mode="RGB"
    ),
}


def weighted_sums(render, scene: Scene, *parameters: torch.Tensor) -> torch.Tensor:
    """Three random weighted sums of all image and alpha values: as sensitive as the images, far fewer outputs."""
    image, alphas, _ = render(
        **dict(zip(TRAINED, parameters, strict=True)), Ks=scene.tensors["Ks"], width=scene.width, height=scene.height,
        **scene.settings,
    )  # fmt: skip
    values = torch.cat([image.flatten(), alphas.flatten()])
    weights = torch.randn(3, values.numel(), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return weights @ values


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("render", [rasterization, reference_rasterization], ids=["kernels", "reference"])
def test_float64_gradcheck(render, name: str):
    """Expected: every partial derivative equals its central difference."""
    scene = CASES[name]
    leaves = scene.leaves(torch.float64)
    parameters = [leaves[parameter] for parameter in TRAINED]
    assert torch.autograd.gradcheck(
        lambda *p: weighted_sums(render, scene, *p), parameters, eps=1e-6, atol=1e-5, rtol=1e-4
    )


def test_absgrad_sums_absolute_gradients_of_single_pixels():
    """Expected: the sum over pixels of |d pixel / d means2d|, which for one pixel is the plain gradient's magnitude."""
    scene = make_scene(23, count=8, size=(16, 12), splat_pixels=(2, 4), sh=False)
    tensors = {name: tensor.float() for name, tensor in scene.tensors.items()}
    tensors["means"].requires_grad_()
    wanted = 0.0
    for row in range(scene.height):
        for column in range(scene.width):
            image, _, meta = rasterization(**tensors, width=scene.width, height=scene.height)
            wanted = wanted + torch.autograd.grad(image[0, row, column].sum(), meta["means2d"])[0].abs()
    image, _, meta = rasterization(**tensors, width=scene.width, height=scene.height, absgrad=True)
    image.sum().backward()
    torch.testing.assert_close(meta["means2d"].absgrad, wanted, rtol=1e-4, atol=1e-5)
