"""What the raw channels of a head mean: points, confidence, and local descriptors with a confidence of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Mode = tuple[Any, ...]
"""(name, lower bound, upper bound)"""


def points_and_confidence(raw: Tensor, depth_mode: Mode, conf_mode: Mode | None) -> dict[str, Tensor]:
    """Raw (B, 3 or 4, H, W) -> "points" (B, H, W, 3) and, where there is such a channel, "conf" (B, H, W)."""
    maps = {"points": _reshape_depth(raw[:, :3].permute(0, 2, 3, 1), depth_mode[0])}
    return maps if conf_mode is None else maps | {"conf": _bounded(raw[:, 3], *conf_mode)}


def descriptors(raw: Tensor, width: int, mode: Mode | None) -> dict[str, Tensor]:
    """Raw (B, K or K + 1, H, W) -> "desc" (B, H, W, K) of length 1 and, from a last channel, "desc_conf" (B, H, W)."""
    vectors = raw[:, :width].permute(0, 2, 3, 1)
    maps = {"desc": vectors / vectors.norm(dim=-1, keepdim=True)}
    own = mode is not None and raw.shape[1] > width
    return maps | {"desc_conf": _bounded(raw[:, width], *mode)} if own else maps  # type: ignore[misc]


def _reshape_depth(points: Tensor, mode: str) -> Tensor:
    """Keep the direction and map the distance n to exp(n) - 1, n^2, or itself."""
    if mode == "linear":
        return points
    distance = points.norm(dim=-1, keepdim=True)
    direction = points / distance.clamp(min=1e-8)
    return direction * (torch.expm1(distance) if mode == "exp" else distance.square())


def _bounded(raw: Tensor, mode: str, low: float, high: float) -> Tensor:
    if mode == "sigmoid":
        return low + (high - low) * torch.sigmoid(raw)
    grown = raw.exp()
    return low + (grown.clamp(max=high - low) if math.isfinite(high) else grown)
