"""Masks in training and scoring: where a pixel does not count, a rendering is taken to be right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def counted_pixels(batch: dict[str, Any], device: torch.device | str) -> Tensor | None:
    """(H, W, 1) bool, which pixels of the photograph count; None where all do."""
    mask = batch.get("mask")
    return None if mask is None else mask.to(device).bool()


def overlook(rendered: Tensor, photo: Tensor, counted: Tensor | None) -> Tensor:
    """The rendering (H, W, 3) with the photograph in place of what does not count: no loss and no gradient there."""
    return rendered if counted is None else torch.where(counted, rendered, photo)
