"""From decoder tokens to points and confidence: the regression heads, by the name a checkpoint gives them.

A head maps the list of L + 1 token tensors of one view (encoder output, residual streams, normed last layer) to raw
channels (B, C, H, W); `points_and_confidence` turns those into what the network says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.errors import CheckpointError, MissingPartError


class LinearHead(nn.Module):
    """One linear layer on the last tokens, each token giving the channels of its own patch of pixels."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(width, channels * patch * patch)

    def forward(self, tokens: list[Tensor], rows: int, columns: int) -> Tensor:
        """(B, rows * columns, width) -> (B, channels, rows * patch, columns * patch)"""
        grid = self.proj(tokens[-1]).transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(grid, self.patch)


HEADS: dict[str, type[nn.Module]] = {"linear": LinearHead}
"""head_type of a checkpoint -> class. The convolutional heads 'dpt' and 'catmlp+dpt' belong here too."""

PLANNED_HEADS = ("dpt", "catmlp+dpt")


def require_head(head_type: str) -> type[nn.Module]:
    """The head's class; raises MissingPartError for known heads without implementation, CheckpointError for others."""
    if head_type in HEADS:
        return HEADS[head_type]
    found, accepted = f"a network with the head '{head_type}'", f"networks with the head {', '.join(HEADS)}"
    if head_type in PLANNED_HEADS:
        raise MissingPartError(found, accepted, "use dust3r-512-linear or compact; this head is not implemented yet")
    raise CheckpointError(found, accepted, "check that the checkpoint is of the DUSt3R family")


def points_and_confidence(
    raw: Tensor, depth_mode: tuple[Any, ...], conf_mode: tuple[Any, ...] | None
) -> dict[str, Tensor]:
    """Raw (B, 3 or 4, H, W) -> "points" (B, H, W, 3) and "conf" (B, H, W), all ones where there is no such channel."""
    points = _reshape_depth(raw[:, :3].permute(0, 2, 3, 1), depth_mode[0])
    confidence = torch.ones_like(raw[:, 0]) if conf_mode is None else _bounded_confidence(raw[:, 3], *conf_mode)
    return {"points": points, "conf": confidence}


def _reshape_depth(points: Tensor, mode: str) -> Tensor:
    """Keep the direction and map the distance n to exp(n) - 1, n^2, or itself."""
    if mode == "linear":
        return points
    distance = points.norm(dim=-1, keepdim=True)
    direction = points / distance.clamp(min=1e-8)
    return direction * (torch.expm1(distance) if mode == "exp" else distance.square())


def _bounded_confidence(raw: Tensor, mode: str, low: float, high: float) -> Tensor:
    if mode == "sigmoid":
        return low + (high - low) * torch.sigmoid(raw)
    grown = raw.exp()
    return low + (grown.clamp(max=high - low) if math.isfinite(high) else grown)
