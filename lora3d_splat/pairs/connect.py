"""What graphs over a similarity of views have in common: a spanning tree, and edges by how close their ends are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lora3d_splat.records import ImagePair

Edge = tuple[int, int]
"""Two different views, the smaller index first."""


def maximum_tree(similarity: Tensor) -> list[Edge]:
    """The V - 1 edges that connect all views with the greatest sum of similarity (V, V), by Prim's algorithm."""
    count = len(similarity)
    inside = torch.zeros(count, dtype=torch.bool)
    best, partner = similarity[0].clone(), torch.zeros(count, dtype=torch.long)
    inside[0] = True
    edges: list[Edge] = []
    for _ in range(count - 1):
        view = int(best.masked_fill(inside, -torch.inf).argmax())
        edges.append(edge(view, int(partner[view])))
        inside[view] = True
        closer = similarity[view] > best
        best, partner = torch.where(closer, similarity[view], best), partner.masked_fill(closer, view)
    return edges


def by_closeness(similarity: Tensor) -> list[tuple[int, Edge]]:
    """All edges as (rank, edge), closest first: rank r means that one end is the other's r-th nearest view, from 1.

    Ranks treat views alike: taking all edges up to a rank gives every view at least as many partners.
    """
    count = len(similarity)
    order = similarity.clone().fill_diagonal_(torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(count).expand(count, -1))
    mutual = torch.minimum(ranks, ranks.T)
    first, second = torch.triu_indices(count, count, 1)
    keys = (mutual[first, second], -similarity[first, second], first, second)
    found = sorted(zip(*(key.tolist() for key in keys), strict=True))
    return [(rank, (a, b)) for rank, _, a, b in found]


def both_orders(edges: Iterable[Edge]) -> tuple[ImagePair, ...]:
    """The ordered pairs of these edges, by reference and then by other view."""
    both = {pair for a, b in edges for pair in ((a, b), (b, a))}
    return tuple(ImagePair(reference, other) for reference, other in sorted(both))


def edge(a: int, b: int) -> Edge:
    """The edge between two views."""
    return min(a, b), max(a, b)
