"""Every ordered pair of views."""

from __future__ import annotations

from lora3d_splat.records import ImagePair


def complete_pairs(count: int) -> tuple[ImagePair, ...]:
    """All count * (count - 1) ordered pairs, by reference and then by other view."""
    return tuple(ImagePair(i, j) for i in range(count) for j in range(count) if i != j)
