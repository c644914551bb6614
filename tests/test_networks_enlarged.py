"""Convolving an enlarged map before it is enlarged gives what its definition says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dust3r_recipe import TINY_DPT, random_view, recipe_network
from torch import Tensor

from lora3d_splat.networks.dpt import Dpt
from lora3d_splat.networks.enlarged import BAND, banded, convolve_enlarged
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import PredictionConfig, PredictionPass, predict_pairs

SIZES = ((1, 1), (1, 5), (2, 3), (BAND, 2 * BAND), (BAND + 1, 3 * BAND - 1))


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return F.conv2d(large, weight, bias, padding=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_the_order_makes_no_difference(size, has_bias):
    """Maps smaller and larger than a band, borders included, against float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, *size, generator=generator), torch.randn(5, 3, 3, 3, generator=generator)
    bias = torch.randn(5, generator=generator) if has_bias else None
    exact = by_definition(x.double(), weight.double(), None if bias is None else bias.double())
    found = convolve_enlarged(x, weight, bias)
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)
    scale = torch.tensor([[2.0, 0, 0, 0, -1.0]])
    then = convolve_enlarged(x, weight, bias, lambda band: F.linear(band, scale))
    torch.testing.assert_close(then[:, 0].double(), 2 * exact[:, 0] - exact[:, 4], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, BAND, 3 * BAND + 2])
def test_shares_of_the_middle_tap_are_those_of_the_interpolation(size):
    """Put together, the bands are the matrix that doubles a line of `size` values."""
    line = torch.rand(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    padded = F.pad(line, (1, BAND * len(banded(size)) + 1 - size))
    doubled = torch.cat([band[:, 1] @ padded[BAND * k : BAND * (k + 1) + 2] for k, band in enumerate(banded(size))])
    expected = F.interpolate(line[None, None], size=2 * size, mode="linear", align_corners=True)[0, 0]
    torch.testing.assert_close(doubled[: 2 * size], expected)


def test_what_pairs_share_is_computed_once_and_changes_nothing(monkeypatch):
    """Three views, six pairs: the shared part runs once per view and head, or, without memory for it, per pair."""
    network, pairs = recipe_network(TINY_DPT), complete_pairs(3)
    views = [random_view(index, (32, 48)) for index in range(3)]
    counted: list[int] = []
    finest = Dpt.finest

    def counting(self: Dpt, tokens: Tensor, rows: int, columns: int) -> Tensor:
        counted.append(len(tokens))
        return finest(self, tokens, rows, columns)

    monkeypatch.setattr(Dpt, "finest", counting)
    shared = predict_pairs(network, views, pairs)
    assert sum(counted) == 2 * 3
    counted.clear()
    run = PredictionPass(network, views, PredictionConfig(memory=0))
    alone = {item.pair: item for item in run.predict(pairs)}
    assert sum(counted) == 2 * 6
    for item in shared:
        torch.testing.assert_close(item.points_other, alone[item.pair].points_other, atol=1e-5, rtol=1e-5)


def test_gradients_take_the_plain_way():
    """The head that is fine-tuned through is the one that is predicted with, up to rounding."""
    dpt = recipe_network(TINY_DPT).downstream_head1.dpt
    tokens = [torch.randn(1, 12, width, generator=torch.Generator().manual_seed(1)) for width in (64, 48, 48, 48)]
    tracked = [part.requires_grad_() for part in tokens]
    with_gradients = dpt(tracked, 3, 4)
    with_gradients.sum().backward()
    assert all(part.grad is not None and bool(part.grad.any()) for part in tracked)
    with torch.no_grad():
        torch.testing.assert_close(dpt(tokens, 3, 4), with_gradients.detach(), atol=1e-5, rtol=1e-5)
