"""The scene graph: every pair of a small set; windows, likeness and budgets for large ones; always connected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.pairs import PairConfig, PairCost, complete_pairs, retrieval_pairs, select_pairs, window_pairs
from lora3d_splat.pairs.budget import budget_pairs
from lora3d_splat.pairs.connect import maximum_tree
from lora3d_splat.records import ImagePair

GIB = 1 << 30


def likeness(count: int, seed: int = 0, clusters: int = 1) -> Tensor:
    """Cosines of random unit vectors; several clusters are as unlike as can be."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 8, generator=generator)
    vectors = torch.cat([torch.eye(clusters)[torch.arange(count) % clusters] * 20, vectors], dim=1)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def is_sound(pairs: tuple[ImagePair, ...], count: int) -> bool:
    """Connected, both orders of every pair, none twice, none of a view with itself."""
    edges = {(pair.reference, pair.other) for pair in pairs}
    reached, waiting = {0}, [0]
    while waiting:
        near = {b for a, b in edges if a == waiting[-1]} - reached
        waiting.pop()
        waiting.extend(near)
        reached |= near
    symmetric = all((b, a) in edges and a != b for a, b in edges)
    return len(edges) == len(pairs) and symmetric and reached == set(range(count))


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


@pytest.mark.parametrize(("count", "seed", "clusters"), [(2, 0, 1), (3, 1, 1), (17, 2, 1), (30, 3, 3), (40, 4, 7)])
@pytest.mark.parametrize("graph", ["auto", "complete", "window", "retrieval", "budget"])
def test_every_graph_is_connected_and_symmetric(graph, count, seed, clusters):
    """Whatever the photographs look like, also where they fall apart into groups that have nothing in common."""
    cost = PairCost(bytes=GIB / 100, seconds=1.0)
    config = PairConfig(graph, neighbours=2, memory=(2 * count + 20) / 100)
    pairs = select_pairs(count, config, lambda: likeness(count, seed, clusters), lambda: cost)
    assert is_sound(pairs, count)


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_retrieval_takes_the_most_alike(neighbours):
    """Every view is paired with the ones it looks most like."""
    similarity = likeness(20, 5)
    pairs = retrieval_pairs(similarity, neighbours)
    nearest = similarity.fill_diagonal_(-2).topk(min(neighbours, 19)).indices.tolist()
    assert {ImagePair(view, other) for view, row in enumerate(nearest) for other in row} <= set(pairs)


def test_budgets_are_kept_and_larger_ones_only_add():
    """From the bare tree to the complete graph: never more than allowed, as many as fit, each part of the next."""
    count, similarity = 12, likeness(12, 6)
    previous: set[ImagePair] = set()
    for limit in range(2 * (count - 1), count * (count - 1) + 4):
        pairs = budget_pairs(similarity, limit)
        assert len(pairs) == min(limit - limit % 2, count * (count - 1))
        assert is_sound(pairs, count)
        assert previous <= set(pairs)
        previous = set(pairs)


def test_no_spanning_tree_is_better():
    """Exchanging any edge of the tree for another that reconnects it does not make it more alike."""
    similarity = likeness(9, 7)
    tree = maximum_tree(similarity)
    for cut in tree:
        rest = [edge for edge in tree if edge != cut]
        side = {cut[0]}
        for _ in rest:
            side |= {b for a, b in rest if a in side} | {a for a, b in rest if b in side}
        across = [similarity[a, b] for a in side for b in set(range(9)) - side]
        assert similarity[cut] == max(across)


@pytest.mark.parametrize(
    ("config", "most", "told"),
    [
        (PairConfig("budget", memory=1.0, minutes=10.0), 100, "as many as memory (1 GiB) allows"),
        (PairConfig("budget", memory=4.0, minutes=1.0), 120, "as many as time (1 min) allows"),
        (PairConfig("budget", memory=4.0), 380, "380 pairs, which take 3.8 GiB and about 3.2 min, of 380 in all"),
    ],
)
def test_the_tighter_limit_counts_and_one_line_says_so(config, most, told, capsys):
    """One GiB holds 100 pairs and one minute 120; 20 views have 380."""
    cost = PairCost(bytes=GIB / 100, seconds=0.5)
    pairs = select_pairs(20, config, lambda: likeness(20), lambda: cost)
    said = capsys.readouterr().out
    assert len(pairs) == most
    assert told in said
    assert said.count("\n") == 1


def test_a_budget_that_cannot_connect_the_views_is_an_error():
    """Twenty views need 38 ordered pairs; the message says what helps."""
    config = PairConfig("budget", memory=0.3)
    with pytest.raises(InputError, match=r"at least 38 pairs.*raise the memory"):
        select_pairs(20, config, lambda: likeness(20), lambda: PairCost(GIB / 100, 1.0))


def test_graphs_by_likeness_need_a_network():
    with pytest.raises(InputError, match=r"retrieval.*complete or window"):
        select_pairs(20, PairConfig("retrieval"))


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"memory": 0.0}, {"minutes": -1.0}, {"complete_up_to": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match="accepted"):
        PairConfig(**wrong)


def test_settings_are_checked():
    """A window of nothing is refused with a remedy."""
    with pytest.raises(InputError, match="window of at least 1"):
        PairConfig(window=0)
