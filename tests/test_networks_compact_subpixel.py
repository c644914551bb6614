"""Matches to a fraction of a pixel: exact on known maps, still where pictures show nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from lora3d_splat.networks.compact_layers import Window, cell_centres
from lora3d_splat.networks.compact_subpixel import patch_bends, sharpened

HEIGHT, WIDTH = 96, 128
GRID = (HEIGHT // 4, WIDTH // 4)
UNIT = 2 / WIDTH  # places of one pixel


def waves(places: torch.Tensor, count: int = 40) -> torch.Tensor:
    """A smooth texture, known everywhere: (..., 2) places -> (...) grey values in about [-0.6, 0.6]."""
    generator = torch.Generator().manual_seed(1)
    turn = 2 * math.pi * torch.rand(count, generator=generator)
    pace = (4 + 12 * torch.rand(count, generator=generator)) * math.pi
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    angle = places[..., :1] * (pace * turn.cos()) + places[..., 1:] * (pace * turn.sin()) + phase
    return angle.sin().sum(-1) / count**0.5 / 2.5


def pixels() -> torch.Tensor:
    """(H, W, 2) places of pixels."""
    return cell_centres(HEIGHT, WIDTH, torch.device("cpu")).view(HEIGHT, WIDTH, 2)


def guessed(true: torch.Tensor, error: float, trust: float = 0.8) -> Window:
    """Matches `error` pixels from the true places (1, N, 2), in random directions."""
    torch.manual_seed(2)
    off = F.normalize(torch.randn_like(true), dim=-1) * error * UNIT
    level = torch.ones(true.shape[:2])
    return Window(true + off, 1.5 * UNIT * level, 0.9 * level, trust * level)


def pictures(A: torch.Tensor, shift: torch.Tensor, gain: float = 1.0, offset: float = 0.0):
    """The texture, and the same where what was at x is at A x + shift: (1, 1, H, W) each; and true places of cells."""
    own = waves(pixels())
    other = gain * waves((pixels() - shift) @ torch.linalg.inv(A).T) + offset
    centres = cell_centres(*GRID, torch.device("cpu"))
    return (own[None, None], other[None, None]), (centres @ A.T + shift)[None]


def inner(places: torch.Tensor) -> torch.Tensor:
    """Whether places (1, N, 2) lie well within the picture."""
    return (places[..., 0].abs() < 1 - 8 * UNIT) & (places[..., 1].abs() < HEIGHT / WIDTH - 8 * UNIT)


UPRIGHT = torch.eye(2)
TURNED = torch.tensor([[1.05, -0.18], [0.15, 0.95]])


@pytest.mark.parametrize(("A", "gain", "offset"), [(UPRIGHT, 1.0, 0.0), (UPRIGHT, 0.6, 0.2), (TURNED, 1.0, 0.0)])
def test_a_match_a_pixel_off_is_put_right(A, gain, offset):
    shift = torch.tensor([3.3 * UNIT, -1.7 * UNIT])
    (own, other), true = pictures(A, shift, gain, offset)
    start = guessed(true, 1.2)
    back = guessed(((cell_centres(*GRID, own.device) - shift) @ torch.linalg.inv(A).T)[None], 1.2)
    found = sharpened((start, back), (own, other), (GRID, GRID))[0]
    inside = inner(true) & inner(cell_centres(*GRID, own.device)[None])
    error = (found.place - true).norm(dim=-1)[inside] / UNIT
    assert error.median() < 0.1
    assert (error < 0.3).float().mean() > 0.95
    assert found.spread[inside].median() < 0.3 * start.spread[0, 0]
    assert torch.allclose(found.trust[inside], start.trust[inside], atol=0.05)


def test_both_sides_are_moved():
    shift = torch.tensor([2.4 * UNIT, 0.6 * UNIT])
    (own, other), true = pictures(UPRIGHT, shift)
    back = (cell_centres(*GRID, own.device) - shift)[None]
    found = sharpened((guessed(true, 1.0), guessed(back, 1.0)), (own, other), (GRID, GRID))[1]
    error = (found.place - back).norm(dim=-1)[inner(back) & inner(cell_centres(*GRID, own.device)[None])] / UNIT
    assert error.median() < 0.1


def test_where_nothing_is_to_be_seen_a_match_stays_and_is_hardly_trusted():
    blank = torch.full((1, 1, HEIGHT, WIDTH), 0.3)
    start = guessed(cell_centres(*GRID, blank.device)[None], 1.0)
    found = sharpened((start, start), (blank, blank), (GRID, GRID))[0]
    assert torch.allclose(found.place, start.place, atol=1e-6)
    assert torch.allclose(found.spread, start.spread, rtol=1e-3)
    assert (found.trust < 0.1 * start.trust).all()


def test_along_an_edge_a_match_stays():
    stripes = (pixels()[..., 0] * 25).sin()[None, None] * 0.5  # upright edges
    true = cell_centres(*GRID, stripes.device)[None]
    start = guessed(true, 1.0)
    found = sharpened((start, start), (stripes, stripes), (GRID, GRID))[0]
    inside = inner(true)
    assert ((found.place - true)[inside][:, 0].abs() / UNIT).median() < 0.1
    assert torch.allclose(found.place[inside][:, 1], start.place[inside][:, 1], atol=0.2 * UNIT)
    assert (found.spread[inside] > 0.5 * start.spread[inside]).all()


def test_another_picture_is_not_trusted():
    own, other = waves(pixels()), waves(pixels().flip(-1) + 0.37)
    start = guessed(cell_centres(*GRID, own.device)[None], 0.5)
    found = sharpened((start, start), (own[None, None], other[None, None]), (GRID, GRID))[0]
    assert found.trust.median() < 0.5 * start.trust.median()


def test_neighbours_say_how_a_patch_is_bent():
    centres = cell_centres(*GRID, torch.device("cpu"))
    window = guessed((centres @ TURNED.T + 0.1)[None], 0.1)
    bend = patch_bends(centres, window, GRID)[inner(centres[None])]
    assert (bend - TURNED).abs().mean() < 0.05
    folded = guessed((centres * torch.tensor([-1.0, 1.0]))[None], 0.0)
    assert torch.allclose(patch_bends(centres, folded, GRID), UPRIGHT.expand(1, len(centres), 2, 2))
