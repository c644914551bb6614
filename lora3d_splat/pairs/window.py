"""Pairs of neighbours in the order of the photographs, for sets too large for every pair."""

from __future__ import annotations

from lora3d_splat.records import ImagePair


def window_pairs(count: int, window: int) -> tuple[ImagePair, ...]:
    """Both orders of every two views at most `window` apart on the ring of views (the last neighbours the first)."""
    near = {(i, (i + step) % count) for i in range(count) for step in range(1, min(window, count - 1) + 1)}
    both = near | {(j, i) for i, j in near}
    return tuple(ImagePair(i, j) for i, j in sorted(both) if i != j)
