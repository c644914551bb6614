"""All pairs through a network: each image is encoded once a pass, pairs of equal shapes are decoded in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.batching import fitting_batch, group_by, in_batches
from lora3d_splat.console import Advance
from lora3d_splat.errors import InputError
from lora3d_splat.networks.base import EncodedViews, PairOutput, PointmapNetwork
from lora3d_splat.pairs import PairCost, complete_pairs
from lora3d_splat.precision import Precision, arithmetic, choose_precision
from lora3d_splat.records import ImagePair, PairPrediction, View

Result = TypeVar("Result")
GIB = 1 << 30
PREDICTED_BYTES_PER_PIXEL = 16
"""of a prediction: a point and a confidence in float32, for every pixel of both views"""


@dataclass(frozen=True)
class PredictionConfig:
    batch_size: int | None = None
    """Pairs decoded at once; None fits it to the image size and the memory. Halved when memory runs out."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of a network's trunk; auto is bfloat16 for large networks on hardware that is faster with it."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, then faster; pays for many pairs on a GPU."""
    memory: float = 2.0
    """GiB of predictions kept in memory; where all take more, they lie on disk and are mapped when they are used.
    As much again may hold what the pairs of a view have in common."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}", "a positive number, or None", "leave it at None")
        if self.memory < 0:
            raise InputError(f"memory={self.memory} GiB", "zero or more", "start from 2")


class PredictionPass:
    """One pass of a network over views: whatever is asked of it, each image is encoded at most once.

    Runs on the network's own device. The network must not change during the pass.
    """

    def __init__(self, network: PointmapNetwork, views: Sequence[View], config: PredictionConfig | None = None) -> None:
        self.network, self.views, self.config = network, views, config or PredictionConfig()
        self.device = network_device(network)
        self.precision: Precision = choose_precision(self.config.precision, network)  # type: ignore[arg-type]
        self._encode, self._decode, self._decode_both = network.encode, network.decode, decoder_of_both(network)
        if self.config.compile:
            self._encode, self._decode = torch.compile(network.encode), torch.compile(network.decode)
            self._decode_both = self._decode_both and torch.compile(self._decode_both)
        self._encoded: dict[int, EncodedViews] = {}
        self._shared_bytes = 0

    def encoded(self, indices: Iterable[int]) -> dict[int, EncodedViews]:
        """The named views encoded, as batches of one."""
        missing = sorted(set(indices) - self._encoded.keys())
        self._encoded |= encode_each(self._encode_and_share, self.views, missing, self.device)
        return self._encoded

    def similarity(self) -> Tensor:
        """(V, V) float32 in [-1, 1]: cosines between the views' mean tokens, less what all views have in common."""
        encoded = self.encoded(range(len(self.views)))
        pooled = torch.stack([encoded[index].tokens[0].float().mean(0) for index in range(len(self.views))]).cpu()
        unit = F.normalize(pooled - pooled.mean(0), dim=1)
        return unit @ unit.T

    def predict(self, pairs: Sequence[ImagePair], advance: Advance | None = None) -> Iterator[PairPrediction]:
        """Predictions as they are decoded, grouped by image size; float32 on the CPU. `advance` counts pairs.

        Raises InputError when not even one pair fits into memory.
        """
        encoded = self.encoded(chain.from_iterable((pair.reference, pair.other) for pair in pairs))

        sizes = group_by(self._together(pairs), lambda together: self._shapes(together[0]))
        for shapes, group in sizes:
            size = self.config.batch_size or fitting_batch(shapes, self.device)
            size = max(1, size // max(map(len, group)))
            for batch, predictions in in_batches(group, size, lambda part: self._decoded(part, encoded)):
                yield from predictions
                if advance is not None:
                    advance(sum(map(len, batch)))

    def _shapes(self, pair: ImagePair) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.views[pair.reference].size, self.views[pair.other].size

    def _together(self, pairs: Sequence[ImagePair]) -> list[tuple[ImagePair, ...]]:
        """Pairs that are decoded at once: the two orders of one, where the network knows how to."""
        if self._decode_both is None:
            return [(pair,) for pair in pairs]
        return [tuple(couple) for couple in couples(pairs)]

    def _decoded(
        self, batch: Sequence[tuple[ImagePair, ...]], encoded: dict[int, EncodedViews]
    ) -> list[PairPrediction]:
        """Of pairs of equal shapes, the first of each in its order and, where it is asked for, in the other."""
        first = [together[0] for together in batch]
        reference, other = stack_pairs(encoded, first)
        if any(len(together) > 1 for together in batch):
            outputs = self._quietly(self._decode_both, reference, other)  # type: ignore[arg-type]
        else:
            outputs = (self._quietly(self._decode, reference, other),)
        return [
            _prediction(pair, outputs[pair.reference != together[0].reference], row)
            for row, together in enumerate(batch)
            for pair in together
        ]

    def cost(self) -> PairCost:
        """Bytes of a mean pair's prediction, and the seconds that one pair takes now."""
        count = len(self.views)
        total = prediction_bytes(self.views, complete_pairs(count))
        seconds = 0.0
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            list(self.predict([ImagePair(0, 1), ImagePair(1, 0)]))
            seconds = (time.perf_counter() - start) / 2
        return PairCost(total / (count * (count - 1)), seconds)

    def _encode_and_share(self, images: Tensor) -> EncodedViews:
        """With what the pairs of a view share, for as many views as memory is granted for."""
        encoded = self._quietly(self._encode, images)
        share = getattr(self.network, "share", None)
        if share is None or self._shared_bytes >= self.config.memory * GIB:
            return encoded
        encoded = self._quietly(share, encoded)
        self._shared_bytes += 0 if encoded.detail is None else encoded.detail.nbytes
        return encoded

    def _quietly(self, work: Callable[..., Result], *inputs: object) -> Result:
        """Without gradients, in the pass's arithmetic."""
        with torch.inference_mode(), arithmetic(self.precision, self.device):
            return work(*inputs)


def predict_pairs(
    network: PointmapNetwork,
    views: Sequence[View],
    pairs: Sequence[ImagePair],
    config: PredictionConfig | None = None,
    advance: Advance | None = None,
) -> tuple[PairPrediction, ...]:
    """Predictions for `pairs`, in their order and in memory, by one pass; errors as those of `PredictionPass`."""
    found = {item.pair: item for item in PredictionPass(network, views, config).predict(pairs, advance)}
    return tuple(found[pair] for pair in pairs)


def encode_views(network: PointmapNetwork, views: Sequence[View], indices: Sequence[int]) -> dict[int, EncodedViews]:
    """Each of the named views encoded, as batches of one on the network's device; equal sizes share a batch."""
    return encode_each(network.encode, views, indices, network_device(network))


def encode_each(
    encode: Callable[[Tensor], EncodedViews], views: Sequence[View], indices: Sequence[int], device: torch.device
) -> dict[int, EncodedViews]:
    """The same with any encoder of image tensors."""
    encoded: dict[int, EncodedViews] = {}
    for size, group in group_by(indices, lambda index: views[index].size):
        for batch, tokens in in_batches(
            group,
            fitting_batch((size,), device),
            lambda part: encode(images_tensor([views[index] for index in part], device)),
        ):
            encoded.update((index, tokens.select(torch.tensor([k], device=device))) for k, index in enumerate(batch))
    return encoded


def images_tensor(views: Sequence[View], device: torch.device | str = "cpu") -> Tensor:
    """(B, 3, H, W) float32 in [-1, 1] from views of one size."""
    stacked = torch.from_numpy(np.stack([view.image for view in views])).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def couples(pairs: Sequence[ImagePair]) -> list[list[ImagePair]]:
    """The pairs by the views that they are of, whatever their order."""
    return [couple for _, couple in group_by(pairs, lambda pair: frozenset((pair.reference, pair.other)))]


def stack_pairs(encoded: dict[int, EncodedViews], pairs: Sequence[ImagePair]) -> tuple[EncodedViews, EncodedViews]:
    """References and other views of pairs of equal shapes, as two batches."""
    sides = ([encoded[pair.reference] for pair in pairs], [encoded[pair.other] for pair in pairs])
    return EncodedViews.stack(sides[0]), EncodedViews.stack(sides[1])


def decoder_of_both(
    network: PointmapNetwork,
) -> Callable[[EncodedViews, EncodedViews], tuple[PairOutput, PairOutput]] | None:
    """What decodes both orders of pairs at once, where a network has it: cheaper, or better, than one by one."""
    return getattr(network, "decode_both", None)


def network_device(network: PointmapNetwork) -> torch.device:
    """The device that the network's weights lie on."""
    parameter = next(iter(network.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def prediction_bytes(views: Sequence[View], pairs: Iterable[ImagePair]) -> int:
    """Size of the predictions of these pairs."""
    pixels = [height * width for height, width in (view.size for view in views)]
    return PREDICTED_BYTES_PER_PIXEL * sum(pixels[pair.reference] + pixels[pair.other] for pair in pairs)


def _prediction(pair: ImagePair, output: PairOutput, index: int) -> PairPrediction:
    """One pair of a decoded batch, copied: it must not keep the batch alive, and autograd may meet it later."""
    maps = (output.points_reference, output.confidence_reference, output.points_other, output.confidence_other)
    with torch.inference_mode(False):
        return PairPrediction(pair, *(part[index].to("cpu", torch.float32, copy=True) for part in maps))
