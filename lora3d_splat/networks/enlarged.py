"""A 3x3 convolution of an enlarged map, computed before the enlargement: a quarter of the products.

Both are linear. A 3x3 convolution is nine 1x1 convolutions, shifted and added, and 1x1 convolutions commute with an
interpolation. So the nine products are taken on the small map, and enlarging, shifting and adding them are two narrow
banded matrices, one down the columns and one along the rows. Bands of rows stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 8
"""Rows, and columns, of the small map that are enlarged at once."""


def convolve_enlarged(
    x: Tensor, weight: Tensor, bias: Tensor | None, then: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """conv3x3 (padding 1) of `x` (B, C, h, w) doubled in size, bilinear with aligned corners -> (B, D, 2h, 2w).

    `then` maps bands (..., D) to (..., D'), such as an activation with what follows it, before they are put together.
    No gradients; the result lies in channels-last memory.
    """
    batch, _, rows, columns = x.shape
    down, across = banded(rows).to(x), banded(columns).to(x)
    padded = _padded(x, len(down), len(across))
    # One matrix (C, 3 D) for each row of the kernel.
    taps = weight.permute(2, 1, 3, 0).flatten(2).contiguous()
    out: Tensor | None = None
    for image in range(batch):
        for band in range(len(down)):
            part = padded[image, BAND * band : BAND * (band + 1) + 2]
            tall = _enlarge_rows(part, taps, down[band])
            wide = _enlarge_columns(tall, across, weight.shape[0])
            wide = wide if bias is None else wide.add_(bias)
            wide = wide if then is None else then(wide)
            out = x.new_empty(batch, 2 * rows, 2 * columns, wide.shape[-1]) if out is None else out
            place = out[image, 2 * BAND * band : 2 * BAND * (band + 1)]
            place.copy_(wide[: len(place), : 2 * columns])
    assert out is not None
    return out.permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def banded(size: int) -> Tensor:
    """(bands, 2 BAND, 3, BAND + 2) float64: from `size` small positions to twice as many, for three taps.

    Entry [k, i, t, j] is the share that position BAND k + j - 1 of the small map has in what tap t of the kernel sees
    from position 2 BAND k + i of the large one; nothing where either lies outside of its map.
    """
    bands = -(-size // BAND)
    large = torch.arange(2 * size, dtype=torch.float64)
    place = large * (size - 1) / (2 * size - 1)
    share = (1 - (place[:, None] - torch.arange(size)).abs()).clamp_min(0)  # 2 size, size
    seen = F.pad(share, (1, bands * BAND + 1 - size, 1, 2 * BAND * bands + 1 - 2 * size))
    shifted = torch.stack([seen[tap : tap + 2 * BAND * bands] for tap in range(3)], dim=1)
    shifted[2 * size :] = 0
    blocks = [shifted[2 * BAND * k : 2 * BAND * (k + 1), :, BAND * k : BAND * (k + 1) + 2] for k in range(bands)]
    return torch.stack(blocks)


def _padded(x: Tensor, down: int, across: int) -> Tensor:
    """(B, BAND down + 2, BAND across + 2, C): one line of zeros before, and as many after as whole bands need."""
    last = x.permute(0, 2, 3, 1)
    return F.pad(last, (0, 0, 1, BAND * across + 1 - x.shape[3], 1, BAND * down + 1 - x.shape[2]))


def _enlarge_rows(part: Tensor, taps: Tensor, share: Tensor) -> Tensor:
    """Products of a band (BAND + 2, W, C) with all taps, its rows doubled -> (2 BAND, W, 3 D)"""
    flat = part.flatten(0, 1)
    products = flat.new_empty(3, len(flat), taps.shape[2])
    for tap in range(3):
        torch.mm(flat, taps[tap], out=products[tap])
    joined = share.flatten(1) @ products.view(3 * (BAND + 2), -1)
    return joined.view(2 * BAND, part.shape[1], -1)


def _enlarge_columns(tall: Tensor, across: Tensor, width: int) -> Tensor:
    """(2 BAND, W, 3 D) -> (2 BAND, 2 BAND bands, D)"""
    lines = tall.reshape(2 * BAND, -1, width)  # a column's three taps one after another
    share = across.transpose(2, 3).flatten(2)  # bands, 2 BAND, (BAND + 2) * 3
    out = tall.new_empty(2 * BAND, len(across), 2 * BAND, width)
    for band, matrix in enumerate(share):
        start = 3 * BAND * band
        out[:, band] = torch.matmul(matrix, lines[:, start : start + 3 * (BAND + 2)])
    return out.flatten(1, 2)
