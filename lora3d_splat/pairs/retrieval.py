"""Pairs of views that look alike, for sets in no particular order."""

from __future__ import annotations

from torch import Tensor

from lora3d_splat.pairs.connect import both_orders, by_closeness, maximum_tree
from lora3d_splat.records import ImagePair


def retrieval_pairs(similarity: Tensor, neighbours: int) -> tuple[ImagePair, ...]:
    """Both orders of each view and its `neighbours` most similar ones by `similarity` (V, V), made connected.

    The edges of the tree of greatest similarity are always part of it, so that every view reaches every other.
    """
    near = [found for rank, found in by_closeness(similarity) if rank <= neighbours]
    return both_orders([*maximum_tree(similarity), *near])
