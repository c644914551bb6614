"""Pair predictions kept one by one, so that added photographs cost only their own pairs.

What would take too much memory stays on disk and is mapped where it is used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from lora3d_splat.artifacts import StageCache, Stored, digest
from lora3d_splat.console import note, stage
from lora3d_splat.mapped_prediction import MappedPrediction
from lora3d_splat.prediction import GIB, PredictionPass, prediction_bytes
from lora3d_splat.records import ImagePair, PairPrediction
from lora3d_splat.watch import watcher

STAGE = "pairs"


def cached_predictions(
    cache: StageCache,
    network_key: str,
    run: PredictionPass,
    pairs: Sequence[ImagePair],
    title: str,
    recompute: bool = False,
) -> Stored[tuple[PairPrediction, ...]]:
    """Predictions of `pairs` in their order, of which only those not stored yet run through the network.

    `network_key` is the digest of the network with its adapter; images are told apart by their pixels, so renamed or
    reordered photographs find their pairs again. Predictions beyond the memory of the pass's settings are
    `MappedPrediction`s, all of them.
    """
    images = [digest(view.image) for view in run.views]
    keys = {pair: digest(network_key, run.precision, images[pair.reference], images[pair.other]) for pair in pairs}
    size = prediction_bytes(run.views, pairs)
    in_memory = size <= run.config.memory * GIB
    if not in_memory:
        note(f"{title}: {size / GIB:.1f} GiB are more than the {run.config.memory:g} GiB of memory; they stay on disk")
    found: dict[ImagePair, Stored[PairPrediction]] = {}

    def keep(pair: ImagePair, entry: Stored[PairPrediction]) -> None:
        kept = replace(entry.value, pair=pair) if in_memory else MappedPrediction(pair, cache.path(STAGE, keys[pair]))
        watcher().predicted(replace(entry.value, pair=pair))
        found[pair] = Stored(cast(PairPrediction, kept), entry.seconds, entry.reused)

    for pair, key in () if recompute else keys.items():
        if (entry := cache.load(STAGE, key)) is not None:
            keep(pair, entry)
    missing = [pair for pair in pairs if pair not in found]
    if missing:
        with stage(title, len(missing)) as advance:
            for item, seconds in _timed(run.predict(missing, advance)):
                keep(item.pair, cache.store(STAGE, keys[item.pair], item, seconds))
    ordered = tuple(found[pair].value for pair in pairs)
    return Stored(ordered, sum(entry.seconds for entry in found.values()), not missing)


def _timed(items: Iterator[PairPrediction]) -> Iterator[tuple[PairPrediction, float]]:
    """Each item with the seconds that it took to come, the consumer's own time left out."""
    start = time.perf_counter()
    for item in items:
        yield item, time.perf_counter() - start
        start = time.perf_counter()
