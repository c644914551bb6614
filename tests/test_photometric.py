"""The compiled L1 + SSIM against pytorch_msssim and against finite differences."""

from __future__ import annotations

import pytest
import torch

from lora3d_splat.photometric import photo_loss
from lora3d_splat.photometric.loss import _torch_loss
from lora3d_splat.rasterize import set_num_threads


def pictures(height: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A rendering that needs a gradient, and a photograph like it."""
    generator = torch.Generator().manual_seed(height)
    photo = torch.rand(height, width, 3, generator=generator, dtype=torch.float64)
    rendered = (photo + 0.2 * torch.randn(photo.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return rendered.to(dtype).requires_grad_(), photo.to(dtype)


@pytest.mark.parametrize("size", [(11, 11), (23, 40), (61, 33)])
@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_value_and_gradient_equal_torch(size: tuple[int, int], weight: float):
    """Expected: pytorch_msssim's value within 1e-6 and its gradient within 1e-5 relative."""
    rendered, photo = pictures(*size, torch.float32)
    mine = photo_loss(rendered, photo, weight)
    mine.backward()
    got, rendered.grad = rendered.grad, None
    theirs = _torch_loss(rendered, photo, weight)
    theirs.backward()
    assert float(mine) == pytest.approx(float(theirs), abs=1e-6)
    assert (got - rendered.grad).norm() < 1e-5 * rendered.grad.norm()


def test_gradient_equals_finite_differences():
    """Expected: gradcheck passes in float64."""
    rendered, photo = pictures(13, 12, torch.float64)
    assert torch.autograd.gradcheck(lambda x: photo_loss(x, photo, 0.3), rendered, eps=1e-6, atol=1e-7)


def test_equal_pictures_have_no_loss_and_small_ones_no_ssim():
    """Expected: 0 for a picture and itself; L1 alone below the window's size."""
    rendered, photo = pictures(40, 30, torch.float32)
    assert float(photo_loss(photo, photo, 0.2)) == pytest.approx(0.0, abs=1e-6)
    small, other = rendered[:10], photo[:10]
    assert torch.equal(photo_loss(small, other, 0.2), (small - other).abs().mean())


def test_result_does_not_depend_on_the_number_of_threads():
    """Expected: equal bit for bit."""
    rendered, photo = pictures(90, 70, torch.float32)
    gradients = []
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            gradients.append(torch.autograd.grad(photo_loss(rendered, photo, 0.2), rendered)[0])
    finally:
        set_num_threads(None)
    assert torch.equal(*gradients)
