"""Matches of the compact network to a fraction of a pixel: what surrounds a cell is found again on the other picture.

Features place a match within a good pixel, the same way wrong for neighbours; the pictures themselves know a tenth of
one. So the patch around every cell is laid on its match, bent as neighbouring matches are, and moved until the grey
values agree up to gain and offset (Lucas and Kanade, IJCAI 1981; the constant derivatives of Baker and Matthews, IJCV
2004). The match and its spread are the prior: where a patch shows nothing, or an edge along which it may slide, the
match stays where it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.networks.compact_layers import Window, cell_centres

RADIUS = 3
"""pixels from the middle of a patch to its border"""
ROUNDS = 4
LONGEST_STEP = 1.5
"""pixels per round"""
REACH = 2
"""neighbours on each side that say how a patch is bent"""
EVENNESS = 0.5
"""how strongly a patch is held to be upright, in squared distances of neighbouring cells"""
MOST_GROWTH = 4.0
"""of a patch's area, either way; beyond, it is taken for upright"""
LEAST_CONTRAST = 0.02
"""standard deviation of grey values, in [-1, 1], below which a patch is scaled up no more"""
LEAST_NOISE = 0.02
"""variance of grey values of unit contrast that is never undercut"""
INDEPENDENT = 0.25
"""share of a patch's pixels that err on their own"""
LIKENESS = (0.4, 0.8)
"""correlation of the two patches below which a match is not trusted, and above which it is"""


@torch.no_grad()
def sharpened(
    windows: tuple[Window, Window], pictures: tuple[Tensor, Tensor], grids: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[Window, Window]:
    """The matches of either view's cells, moved to where the pictures (B, 1, H, W) agree, with what spread is left."""
    return (
        _sharpened(windows[0], *pictures, grids[0]),
        _sharpened(windows[1], pictures[1], pictures[0], grids[1]),
    )


def _sharpened(window: Window, own: Tensor, other: Tensor, grid: tuple[int, int]) -> Window:
    """The same of the cells of the picture `own`."""
    centres = cell_centres(*grid, own.device)
    bend = patch_bends(centres, window, grid)
    x, y = torch.meshgrid(*[torch.arange(-RADIUS, RADIUS + 1.0, device=own.device)] * 2, indexing="xy")
    offsets = torch.stack([x, y], dim=-1).flatten(0, 1)
    share = (-1.1 * offsets.square().sum(-1) / RADIUS**2).exp()
    share = share / share.sum()
    start, size = _pixels(centres, own).expand(len(own), -1, -1)[:, :, None] + offsets, max(other.shape[-2:])
    template, contrast = _levelled(_sampled(own, start)[:, 0], share)
    slope = _sampled(_slopes(own), start).permute(0, 2, 3, 1) / contrast[..., None]
    slope = (slope - (slope * share[:, None]).sum(2, keepdim=True)) @ inverse(bend)
    pull = (slope * share[:, None]).transpose(2, 3)
    H = pull @ slope * (INDEPENDENT * len(offsets))
    patch = (bend @ offsets.T).transpose(2, 3)
    matched = _pixels(window.place, other)
    spread = window.spread[..., None] * size / 2
    place, prior = matched, torch.eye(2, device=own.device) / spread[..., None].square()
    for _ in range(ROUNDS):
        difference = _levelled(_sampled(other, place[:, :, None] + patch)[:, 0], share)[0] - template
        noise = (difference.square() * share).sum(-1).clamp(min=LEAST_NOISE)[..., None]
        g = (pull @ difference[..., None])[..., 0] * (INDEPENDENT * len(offsets)) / noise
        P = H / noise[..., None] + prior
        step = -(inverse(P) @ (g + (place - matched) / spread.square())[..., None])[..., 0]
        place = place + step * (LONGEST_STEP / step.norm(dim=-1, keepdim=True).clamp(min=LONGEST_STEP))
    found = _levelled(_sampled(other, place[:, :, None] + patch)[:, 0], share)[0]
    alike = ((found * template * share).sum(-1) - LIKENESS[0]) / (LIKENESS[1] - LIKENESS[0])
    left = inverse(P).diagonal(dim1=-2, dim2=-1).mean(-1).sqrt() * 2 / size
    return Window(_places(place, other), left, window.mass, window.trust * alike.clamp(0.05, 1))


def patch_bends(centres: Tensor, window: Window, grid: tuple[int, int]) -> Tensor:
    """(B, N, 2, 2): how places of matches change with cell centres (N, 2), by least squares over neighbours."""
    moments = torch.cat([torch.ones_like(window.trust)[..., None], centres.expand_as(window.place), window.place], -1)
    moments = (moments[..., :, None] * moments[..., None, :3]).flatten(2) * window.trust[..., None]
    maps = F.pad(moments.transpose(1, 2).unflatten(2, grid), [REACH] * 4)
    means = F.avg_pool2d(maps, 2 * REACH + 1, 1).flatten(2).transpose(1, 2).unflatten(2, (5, 3))
    means = means / means[..., :1, :1].clamp(min=1e-6)
    products = means[..., 1:, 1:] - means[..., 1:, :1] * means[..., :1, 1:]
    upright = torch.eye(2, device=centres.device)
    hold = EVENNESS * (2 / max(grid)) ** 2 * upright
    bend = (products[..., 2:, :] + hold) @ inverse(products[..., :2, :] + hold)
    area = bend.det()[..., None, None]
    return torch.where((area > 1 / MOST_GROWTH) & (area < MOST_GROWTH), bend, upright)


def inverse(matrices: Tensor) -> Tensor:
    """Of (..., 2, 2), written out: of so many small ones, a solver spends its time on calls."""
    a, b, c, d = matrices.flatten(-2).unbind(-1)
    return torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[..., None, None]


def _levelled(patches: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (..., P) of mean 0 and variance 1, weighted by `share` (P,), and what they were divided by (..., 1)."""
    level = patches - (patches * share).sum(-1, keepdim=True)
    contrast = (level.square() * share).sum(-1, keepdim=True).sqrt().clamp(min=LEAST_CONTRAST)
    return level / contrast, contrast


def _slopes(pictures: Tensor) -> Tensor:
    """(B, 2, H, W) derivatives by x and y."""
    framed = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    x, y = framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2], framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]
    return torch.cat([x, y], dim=1) / 2


def _sampled(maps: Tensor, pixels: Tensor) -> Tensor:
    """(B, C, N, P) values of maps (B, C, H, W) at pixels (B, N, P, 2)."""
    size = pixels.new_tensor([maps.shape[-1], maps.shape[-2]])
    return F.grid_sample(maps, 2 * pixels / size - 1, padding_mode="border", align_corners=False)


def _pixels(places: Tensor, pictures: Tensor) -> Tensor:
    """Pixels, the first one's centre at 0.5, of places as in `cell_centres`."""
    return (places * max(pictures.shape[-2:]) + places.new_tensor([pictures.shape[-1], pictures.shape[-2]])) / 2


def _places(pixels: Tensor, pictures: Tensor) -> Tensor:
    """The inverse of `_pixels`."""
    return (2 * pixels - pixels.new_tensor([pictures.shape[-1], pictures.shape[-2]])) / max(pictures.shape[-2:])
