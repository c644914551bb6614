"""The cheaper way through the DPT head: what pairs share, and the enlargement as a banded matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dust3r_recipe import TINY_DPT, random_view, recipe_network
from torch import Tensor

from lora3d_splat.networks.dpt import Dpt
from lora3d_splat.networks.enlarged import BAND, banded
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import PredictionConfig, PredictionPass, predict_pairs


@pytest.mark.parametrize("size", [1, 2, 7, BAND, 3 * BAND + 2])
def test_shares_of_the_middle_tap_are_those_of_the_interpolation(size):
    """Put together, the bands are the matrix that doubles a line of `size` values."""
    line = torch.rand(size, generator=torch.Generator().manual_seed(size)).double()
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
