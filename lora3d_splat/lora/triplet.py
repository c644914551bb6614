"""The triplet-consistency loss (Test3R, NeurIPS 2025): two partners must not change what a reference view looks like.

No alignment and no pseudo labels take part. Each map is divided by its mean distance first: a prediction's scale is
arbitrary, and without that the loss would fall by shrinking everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.networks.base import PairOutput
from lora3d_splat.records import ImagePair

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class Triplet:
    """A reference view and two partners, by their indices."""

    reference: int
    first: int
    second: int


def can_form_triplets(pairs: Sequence[ImagePair]) -> bool:
    """Whether any view is the reference of at least two pairs."""
    references = [pair.reference for pair in pairs]
    return len(set(references)) < len(references)


def draw_triplets(pairs: Sequence[ImagePair], generator: torch.Generator) -> list[Triplet]:
    """Triplets in which every ordered pair occurs once, with its partners matched at random.

    The last one of an odd number of partners meets one that has had its turn; views with one partner give none.
    """
    partners: dict[int, list[int]] = {}
    for pair in pairs:
        partners.setdefault(pair.reference, []).append(pair.other)
    found = []
    for reference, others in partners.items():
        order = [others[k] for k in torch.randperm(len(others), generator=generator).tolist()]
        order += order[:1] * (len(order) % 2)
        found += [Triplet(reference, a, b) for a, b in zip(order[::2], order[1::2], strict=True) if a != b]
    return found


def triplet_loss(first: PairOutput, second: PairOutput, counted: Tensor) -> Tensor:
    """Mean L1 distance per coordinate between the reference maps of two batches of pairs with the same references.

    Both maps (B, H, W, 3) are compared in the reference camera's frame, each over its own mean distance; `counted`
    (B, H, W) bool names the pixels that count.
    """
    gap = (_normalised(first.points_reference, counted) - _normalised(second.points_reference, counted)).abs()
    return gap.sum() / (3 * counted.sum()).clamp(min=1)


def _normalised(points: Tensor, counted: Tensor) -> Tensor:
    """Points over their mean distance; those that do not count become zero before any arithmetic touches them."""
    kept = torch.where(counted[..., None], points, 0.0)
    total, count = torch.linalg.vector_norm(kept, dim=-1).sum(dim=(1, 2)), counted.sum(dim=(1, 2)).clamp(min=1)
    return kept / (total / count).clamp(min=SMALLEST_SCALE)[:, None, None, None]
