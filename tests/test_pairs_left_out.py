"""Which pairs the fine-tuning never sees."""

from __future__ import annotations

import pytest

from lora3d_splat.pairs.complete import complete_pairs
from lora3d_splat.pairs.left_out import leave_out_pairs
from lora3d_splat.records import ImagePair


def edges(pairs: tuple[ImagePair, ...]) -> set[frozenset[int]]:
    return {frozenset((pair.reference, pair.other)) for pair in pairs}


@pytest.mark.parametrize("count", [4, 5, 7, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_complete_graph_gives_about_the_fraction(count: int, seed: int) -> None:
    """Both orders stay together, nothing is lost or doubled, and the share is as asked up to rounding."""
    pairs = complete_pairs(count)
    training, left_out = leave_out_pairs(pairs, 0.18, seed)
    assert set(training) | set(left_out) == set(pairs)
    assert len(training) + len(left_out) == len(pairs)
    assert not edges(training) & edges(left_out)
    assert len(edges(left_out)) == max(1, round(0.18 * len(edges(pairs))))


def test_bridges_are_never_left_out() -> None:
    """On a chain of views every edge is a bridge, so nothing can be left out whatever is asked."""
    chain = tuple(ImagePair(*pair) for i in range(5) for pair in ((i, i + 1), (i + 1, i)))
    assert leave_out_pairs(chain, 0.5) == (chain, ())


def test_a_ring_spares_exactly_one_edge() -> None:
    """After one edge of a ring is gone, the others are bridges."""
    ring = tuple(ImagePair(*pair) for i in range(6) for pair in ((i, (i + 1) % 6), ((i + 1) % 6, i)))
    assert len(edges(leave_out_pairs(ring, 0.9)[1])) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_few_views_leave_nothing_out(count: int) -> None:
    assert leave_out_pairs(complete_pairs(count), 0.18) == (complete_pairs(count), ())


def test_the_choice_is_reproducible() -> None:
    assert leave_out_pairs(complete_pairs(8), 0.2, 3) == leave_out_pairs(complete_pairs(8), 0.2, 3)
