"""The scene graph: which ordered pairs of views are predicted. Every graph is connected and holds both orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.errors import InputError
from lora3d_splat.pairs.budget import PairCost as PairCost
from lora3d_splat.pairs.budget import affordable_pairs, budget_pairs
from lora3d_splat.pairs.complete import complete_pairs as complete_pairs
from lora3d_splat.pairs.retrieval import retrieval_pairs as retrieval_pairs
from lora3d_splat.pairs.window import window_pairs as window_pairs
from lora3d_splat.records import ImagePair

GIB = 1 << 30


@dataclass(frozen=True)
class PairConfig:
    graph: Literal["auto", "complete", "window", "retrieval", "budget"] = "auto"
    """Which pairs: all of them; neighbours in the order of the photographs; views that look alike; as many as memory
    and minutes allow, those that look most alike first. auto is complete for small sets and window for larger ones."""
    complete_up_to: int = 12
    """auto: up to this many views, every ordered pair is predicted."""
    window: int = 5
    """window: each view is paired with this many neighbours on either side."""
    neighbours: int = 8
    """retrieval: each view is paired with this many views that look most like it."""
    memory: float = 4.0
    """budget: GiB that the predictions of all pairs may take, in memory or in the cache."""
    minutes: float | None = None
    """budget: how long predicting all pairs once may take; None sets no limit."""

    def __post_init__(self) -> None:
        counts = {
            "complete_up_to": (self.complete_up_to, 2),
            "window": (self.window, 1),
            "neighbours": (self.neighbours, 1),
        }
        for name, (value, least) in counts.items():
            if value < least:
                raise InputError(f"{name}={value}", f"a {name} of at least {least}", "leave it at its default")
        if self.memory <= 0 or (self.minutes is not None and self.minutes <= 0):
            raise InputError(
                found=f"a budget of memory={self.memory}, minutes={self.minutes}",
                accepted="positive numbers, or no limit to the minutes",
                remedy="start from memory=4",
            )


def select_pairs(
    count: int,
    config: PairConfig | None = None,
    similarity: Callable[[], Tensor] | None = None,
    cost: Callable[[], PairCost] | None = None,
) -> tuple[ImagePair, ...]:
    """The pairs of `count` views that the settings ask for; anything but the complete graph is said in a note.

    `similarity` (V, V) is asked for by the graphs retrieval and budget, `cost` by budget. Raises InputError where
    they are missing, or where a budget is too small to connect the views.
    """
    config = config or PairConfig()
    graph = config.graph
    if graph == "auto":
        graph = "complete" if count <= config.complete_up_to else "window"
    if graph == "complete":
        return complete_pairs(count)
    if graph == "window":
        pairs, told = window_pairs(count, config.window), "pairs of neighbours in the order of the photographs"
    elif similarity is None or (graph == "budget" and cost is None):
        raise InputError(f"the graph {graph!r} without a network", "complete or window", "give the views' similarity")
    elif graph == "retrieval":
        pairs, told = retrieval_pairs(similarity(), config.neighbours), "pairs of views that look alike"
    else:
        assert cost is not None
        pairs, told = _within_budget(similarity(), cost(), config)
    note(f"{count} views: {len(pairs)} {told}, of {count * (count - 1)} in all")
    return pairs


def _within_budget(similarity: Tensor, cost: PairCost, config: PairConfig) -> tuple[tuple[ImagePair, ...], str]:
    """The pairs, and how they came about."""
    seconds = None if config.minutes is None else 60 * config.minutes
    limit, reason = affordable_pairs(cost, config.memory * GIB, seconds)
    pairs = budget_pairs(similarity, limit)
    size, time = f"{len(pairs) * cost.bytes / GIB:.1f} GiB", f"{len(pairs) * cost.seconds / 60:.1f} min"
    if limit >= len(similarity) * (len(similarity) - 1):
        return pairs, f"pairs, which take {size} and about {time}"
    allowed = f"{config.memory:g} GiB" if reason == "memory" else f"{config.minutes:g} min"
    return pairs, f"pairs, as many as {reason} ({allowed}) allows: {size} and about {time}"
