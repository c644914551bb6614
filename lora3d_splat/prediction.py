"""All pairs through a network: each image is encoded once, pairs of equal shapes are decoded in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.console import Advance, warn
from lora3d_splat.errors import InputError
from lora3d_splat.networks.base import EncodedViews, PairOutput, PointmapNetwork
from lora3d_splat.records import ImagePair, PairPrediction, View

PIXELS_PER_BATCH = {"cpu": 1_500_000, "cuda": 12_000_000}
"""image pixels, both sides together, that one decoding step takes at first"""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PredictionConfig:
    batch_size: int | None = None
    """Pairs decoded at once; None fits it to the image size and the device. Halved when memory runs out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network's trunk; bfloat16 is faster on recent GPUs and slightly less accurate."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}", "a positive number, or None", "leave it at None")


def predict_pairs(
    network: PointmapNetwork,
    views: Sequence[View],
    pairs: Sequence[ImagePair],
    config: PredictionConfig | None = None,
    advance: Advance | None = None,
) -> tuple[PairPrediction, ...]:
    """Predictions for `pairs`, in their order, as float32 on the CPU; runs on the network's own device.

    `advance` counts decoded pairs. Raises InputError when not even one pair fits into memory.
    """
    config = config or PredictionConfig()
    device = network_device(network)
    results: dict[ImagePair, PairPrediction] = {}
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")
    with torch.inference_mode(), half:
        encoded = encode_views(network, views, sorted(set(chain.from_iterable((p.reference, p.other) for p in pairs))))
        for shapes, group in group_by(pairs, lambda pair: (views[pair.reference].size, views[pair.other].size)):
            size = config.batch_size or _fitting_batch(shapes, device)
            for batch, predictions in in_batches(group, size, lambda part: _decode(network, encoded, part)):
                results.update(zip(batch, predictions, strict=True))
                if advance is not None:
                    advance(len(batch))
    return tuple(results[pair] for pair in pairs)


def encode_views(network: PointmapNetwork, views: Sequence[View], indices: Sequence[int]) -> dict[int, EncodedViews]:
    """Each of the named views encoded, as batches of one on the network's device; equal sizes share a pass."""
    device = network_device(network)
    encoded: dict[int, EncodedViews] = {}

    def encode(part: Sequence[int]) -> EncodedViews:
        return network.encode(images_tensor([views[index] for index in part], device))

    for size, group in group_by(indices, lambda index: views[index].size):
        for batch, tokens in in_batches(group, _fitting_batch((size,), device), encode):
            encoded.update((index, tokens.select(torch.tensor([k], device=device))) for k, index in enumerate(batch))
    return encoded


def images_tensor(views: Sequence[View], device: torch.device | str = "cpu") -> Tensor:
    """(B, 3, H, W) float32 in [-1, 1] from views of one size."""
    stacked = torch.from_numpy(np.stack([view.image for view in views])).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def network_device(network: PointmapNetwork) -> torch.device:
    """The device that the network's weights lie on."""
    parameter = next(iter(network.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def group_by(items: Iterable[Item], key: Callable[[Item], object]) -> list[tuple[object, list[Item]]]:
    """(key, items of that key) in order of first appearance."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def in_batches(
    items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """(batch, run(batch)) over all items; where memory runs out the batch is halved, for the rest of the items too."""
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            result = run(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise InputError(
                    found="images too large for the memory of the device",
                    accepted="images of which one pair fits into memory",
                    remedy="lower the long side of the images, or use --device cpu",
                ) from error
            size = len(batch) // 2
            torch.cuda.empty_cache()
            warn(f"out of memory: continuing with batches of {size}")
            continue
        start += len(batch)
        yield batch, result


def _decode(
    network: PointmapNetwork, encoded: dict[int, EncodedViews], batch: Sequence[ImagePair]
) -> list[PairPrediction]:
    reference = EncodedViews.stack([encoded[pair.reference] for pair in batch])
    output = network.decode(reference, EncodedViews.stack([encoded[pair.other] for pair in batch]))
    return [_prediction(pair, output, index) for index, pair in enumerate(batch)]


def _prediction(pair: ImagePair, output: PairOutput, index: int) -> PairPrediction:
    """One pair of a decoded batch, copied: it must not keep the batch alive, and autograd may meet it later."""
    maps = (output.points_reference, output.confidence_reference, output.points_other, output.confidence_other)
    with torch.inference_mode(False):
        return PairPrediction(pair, *(part[index].to("cpu", torch.float32, copy=True) for part in maps))


def _fitting_batch(sizes: object, device: torch.device) -> int:
    pixels = sum(height * width for height, width in sizes)  # type: ignore[attr-defined]
    return max(1, PIXELS_PER_BATCH.get(device.type, PIXELS_PER_BATCH["cpu"]) // pixels)
