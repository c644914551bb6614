"""The scene graph: every pair of a small set, a closed window of a large one."""

from __future__ import annotations

import pytest

from lora3d_splat.errors import InputError
from lora3d_splat.pairs import PairConfig, complete_pairs, select_pairs, window_pairs


@pytest.mark.parametrize("count", [2, 3, 10])
def test_complete_graph_has_every_ordered_pair_once(count):
    """count * (count - 1) different pairs, none of a view with itself."""
    pairs = complete_pairs(count)
    assert len(set(pairs)) == len(pairs) == count * (count - 1)
    assert all(pair.reference != pair.other for pair in pairs)


@pytest.mark.parametrize(("count", "window"), [(13, 1), (20, 5), (5, 4), (4, 10)])
def test_window_is_symmetric_closed_and_local(count, window):
    """Both orders of each pair, ring distance at most the window, the same number of partners for every view."""
    pairs = {(pair.reference, pair.other) for pair in window_pairs(count, window)}
    partners = min(2 * window, count - 1)
    assert all((j, i) in pairs and min((i - j) % count, (j - i) % count) <= window for i, j in pairs)
    assert all(sum(i == view for i, _ in pairs) == partners for view in range(count))
    assert (0, count - 1) in pairs, "the ring is closed"


def test_selection_changes_at_the_limit():
    """Twelve views are complete; thirteen have fewer pairs than the complete graph."""
    assert select_pairs(12) == complete_pairs(12)
    assert select_pairs(13, PairConfig(window=2)) == window_pairs(13, 2)


def test_settings_are_checked():
    """A window of nothing is refused with a remedy."""
    with pytest.raises(InputError, match="window of at least 1"):
        PairConfig(window=0)
