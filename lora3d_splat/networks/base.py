"""The protocol that every pointmap network meets; all stages after it are written against this file alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EncodedViews:
    """What a network keeps of B equally sized images after encoding; enough to decode any pair of them."""

    size: tuple[int, int]
    """(H, W) of the images in pixels"""
    tokens: Tensor
    """(B, N, E)"""
    positions: Tensor
    """(B, N, 2) integer (row, column) of each token"""
    detail: Tensor | None = None
    """(B, ...) whatever else a network keeps: finer features, or what all pairs of a view share"""

    def select(self, indices: Tensor) -> EncodedViews:
        """The views at `indices` (K,), repeats allowed."""
        detail = None if self.detail is None else self.detail[indices]
        return EncodedViews(self.size, self.tokens[indices], self.positions[indices], detail)

    @staticmethod
    def stack(parts: list[EncodedViews]) -> EncodedViews:
        """Concatenate batches of equal image size; details go where some have none."""
        details = [part.detail for part in parts if part.detail is not None]
        return EncodedViews(
            parts[0].size,
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat(details) if len(details) == len(parts) else None,
        )


@dataclass(frozen=True)
class PairOutput:
    """Decoded pairs; all points in the reference camera's frame (OpenCV axes), network units; confidence raw."""

    points_reference: Tensor
    """(B, H1, W1, 3)"""
    confidence_reference: Tensor
    """(B, H1, W1), >= 1"""
    points_other: Tensor
    """(B, H2, W2, 3)"""
    confidence_other: Tensor
    """(B, H2, W2), >= 1"""


@runtime_checkable
class PointmapNetwork(Protocol):
    """A torch module that predicts pointmaps for image pairs."""

    name: str
    licence: str
    """licence of the weights, as printed to the user"""
    patch_size: int
    """image sides must be multiples of this"""
    long_side: int
    """default long side of the images it was trained for, pixels"""
    lora_targets: tuple[str, ...]
    """last components of the names of the linear layers that LoRA adapts"""
    confidence_floor: float
    """log-confidence below which a pixel takes no part in alignment (LoRA3D: 0.5 for DUSt3R); 0 for a network that does
    not judge itself, all of whose pixels count alike"""
    confidence_cutoff: float | None
    """calibrated log-confidence above which a pixel is trusted (LoRA3D: 1.5 for DUSt3R); None = judge by rank"""

    def encode(self, images: Tensor) -> EncodedViews:
        """Encode (B, 3, H, W) images with values in [-1, 1]."""
        ...

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        """Decode B ordered pairs; the two sides may differ in image size."""
        ...

    # What the stages use of torch.nn.Module.

    def to(self, device: torch.device) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...
