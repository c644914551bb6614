"""The layout in which training batches mix orientations: every image is stored with width >= height.

Portrait images are stored transposed (rows and columns swapped, nothing mirrored); their true shape says so. They are
turned upright before they are embedded, and their maps are transposed back, so that pixel (i, j) of a map belongs to
pixel (i, j) of the stored image. Vectors stay as they are: points of a portrait image are those of its upright camera.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lora3d_splat.errors import InputError

Maps = dict[str, Tensor]


def is_portrait(true_shape: Tensor) -> Tensor:
    """(B,) bool for true shapes (B, 2) of (height, width); a square counts as landscape."""
    return true_shape[:, 0] > true_shape[:, 1]


def embed_stored(
    embed: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, true_shape: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and positions of stored images (B, 3, H, W), each embedded upright; all have the same number of tokens."""
    portrait = is_portrait(true_shape).to(images.device)
    if not bool(portrait.any()):
        return embed(images)
    upright, turned = embed(images), embed(images.transpose(2, 3))
    choose = portrait[:, None, None]
    return torch.where(choose, turned[0], upright[0]), torch.where(choose, turned[1], upright[1])


def stored_maps(
    maps: Callable[[list[Tensor], tuple[int, int]], Maps], stream: list[Tensor], true_shape: Tensor
) -> Maps:
    """Evaluate the images of each orientation on their real grid, and bring all maps into the stored layout."""
    short, long = int(true_shape.min()), int(true_shape.max())
    if bool((true_shape.amin(1) != short).any()) or bool((true_shape.amax(1) != long).any()):
        raise InputError(
            found=f"images of the shapes {true_shape.unique(dim=0).tolist()} in one batch",
            accepted="one shape and its transpose",
            remedy="group the images by shape",
        )
    portrait = is_portrait(true_shape).to(stream[0].device)
    parts: list[Any] = []
    for chosen, size in ((~portrait, (short, long)), (portrait, (long, short))):
        if bool(chosen.any()):
            part = maps([tokens[chosen] for tokens in stream], size)
            turned = {key: value.transpose(1, 2) for key, value in part.items()} if size[0] > size[1] else part
            parts.append((chosen.nonzero()[:, 0], turned))
    order = torch.cat([indices for indices, _ in parts]).argsort()
    return {key: torch.cat([part[key] for _, part in parts])[order] for key in parts[0][1]}
