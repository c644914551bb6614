"""The scene graph: which ordered pairs of views are predicted."""

from __future__ import annotations

from dataclasses import dataclass

from lora3d_splat.console import note
from lora3d_splat.errors import InputError
from lora3d_splat.pairs.complete import complete_pairs as complete_pairs
from lora3d_splat.pairs.window import window_pairs as window_pairs
from lora3d_splat.records import ImagePair


@dataclass(frozen=True)
class PairConfig:
    complete_up_to: int = 12
    """Up to this many views, every ordered pair is predicted."""
    window: int = 5
    """Above it, each view is paired with this many neighbours on either side, in the order of the photographs."""

    def __post_init__(self) -> None:
        if self.complete_up_to < 2 or self.window < 1:
            raise InputError(
                found=f"complete_up_to={self.complete_up_to}, window={self.window}",
                accepted="complete_up_to of at least 2 and a window of at least 1",
                remedy="start from complete_up_to=12 and window=5",
            )


def select_pairs(count: int, config: PairConfig | None = None) -> tuple[ImagePair, ...]:
    """The complete graph of a small set, else a closed sliding window; the latter is said in a note."""
    config = config or PairConfig()
    if count <= config.complete_up_to:
        return complete_pairs(count)
    pairs = window_pairs(count, config.window)
    everything = count * (count - 1)
    note(f"{count} views: {len(pairs)} pairs of neighbours in the order of the photographs, not all {everything}")
    return pairs
