"""Pair predictions kept one by one, so that added photographs cost only their own pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lora3d_splat.artifacts import StageCache, Stored, digest
from lora3d_splat.console import stage
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.prediction import PredictionConfig, predict_pairs
from lora3d_splat.records import ImagePair, PairPrediction, View

STAGE = "pairs"


def cached_predictions(
    cache: StageCache,
    network: PointmapNetwork,
    network_key: str,
    views: Sequence[View],
    pairs: Sequence[ImagePair],
    config: PredictionConfig,
    title: str,
    recompute: bool = False,
) -> Stored[tuple[PairPrediction, ...]]:
    """Predictions of `pairs` in their order, of which only those not stored yet run through the network.

    `network_key` is the digest of the network with its adapter; images are told apart by their pixels, so renamed or
    reordered photographs find their pairs again.
    """
    images = [digest(view.image) for view in views]
    keys = {pair: digest(network_key, config.precision, images[pair.reference], images[pair.other]) for pair in pairs}
    found = {} if recompute else {pair: cache.load(STAGE, key) for pair, key in keys.items()}
    missing = [pair for pair in pairs if found.get(pair) is None]
    if missing:
        with stage(title, len(missing)) as advance:
            start = time.perf_counter()
            predictions = predict_pairs(network, views, missing, config, advance)
            each = (time.perf_counter() - start) / len(missing)
        found |= {item.pair: cache.store(STAGE, keys[item.pair], item, each) for item in predictions}
    stored = [found[pair] for pair in pairs]
    ordered = tuple(replace(entry.value, pair=pair) for entry, pair in zip(stored, pairs, strict=True))
    return Stored(ordered, sum(entry.seconds for entry in stored), not missing)
