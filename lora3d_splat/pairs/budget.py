"""The densest graph that memory and time allow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.pairs.connect import both_orders, by_closeness, maximum_tree
from lora3d_splat.records import ImagePair


@dataclass(frozen=True)
class PairCost:
    """What one ordered pair costs."""

    bytes: float
    """of its prediction"""
    seconds: float
    """of predicting it"""


def affordable_pairs(cost: PairCost, limit_bytes: float, limit_seconds: float | None) -> tuple[int, str]:
    """How many ordered pairs fit, and what they are limited by."""
    by_memory = int(limit_bytes / cost.bytes)
    if limit_seconds is None or by_memory <= (by_time := int(limit_seconds / cost.seconds)):
        return by_memory, "memory"
    return by_time, "time"


def budget_pairs(similarity: Tensor, limit: int) -> tuple[ImagePair, ...]:
    """At most `limit` ordered pairs over `similarity` (V, V): a spanning tree, then edges from the closest on.

    Every two views are connected; a larger limit never loses a pair, and one of V (V - 1) is the complete graph.
    Raises InputError where not even the tree fits.
    """
    tree = maximum_tree(similarity)
    if limit < 2 * len(tree):
        raise InputError(
            found=f"a budget of {limit} pairs for {len(similarity)} views",
            accepted=f"at least {2 * len(tree)} pairs, which just connect them",
            remedy="raise the memory or the minutes of the pairs, or give fewer photographs",
        )
    kept = set(tree)
    further = (found for _, found in by_closeness(similarity) if found not in kept)
    return both_orders([*tree, *(found for _, found in zip(range(limit // 2 - len(tree)), further))])  # noqa: B905
