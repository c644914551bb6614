"""Pairs kept out of the fine-tuning, so that its effect can be judged on pairs it never saw."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lora3d_splat.records import ImagePair

Edge = tuple[int, int]


def leave_out_pairs(
    pairs: Sequence[ImagePair], fraction: float, seed: int = 0
) -> tuple[tuple[ImagePair, ...], tuple[ImagePair, ...]]:
    """Split ordered pairs into (training, left out), both orders of two views on the same side.

    About `fraction` of the unordered pairs, and at least one where there are four views or more, are left out; the
    training pairs still connect every two views that all pairs connect. Fewer than four views leave nothing out.
    """
    edges = sorted({_edge(pair) for pair in pairs})
    if len({view for edge in edges for view in edge}) < 4:
        return tuple(pairs), ()
    wanted = max(1, round(fraction * len(edges)))
    kept, chosen = set(edges), set[Edge]()
    for edge in random.Random(seed).sample(edges, len(edges)):
        if len(chosen) < wanted and _connected(edge, kept - {edge}):
            kept.discard(edge)
            chosen.add(edge)
    training = tuple(pair for pair in pairs if _edge(pair) in kept)
    return training, tuple(pair for pair in pairs if _edge(pair) in chosen)


def _edge(pair: ImagePair) -> Edge:
    return min(pair.reference, pair.other), max(pair.reference, pair.other)


def _connected(ends: Edge, edges: set[Edge]) -> bool:
    """Whether a path of `edges` leads from one end to the other."""
    reached, waiting = {ends[0]}, [ends[0]]
    while waiting:
        view = waiting.pop()
        near = {b if a == view else a for a, b in edges if view in (a, b)}
        waiting.extend(near - reached)
        reached |= near
    return ends[1] in reached
