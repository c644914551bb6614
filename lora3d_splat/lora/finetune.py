"""Fine-tuning the adapter on the network's own trusted predictions (LoRA3D, section on efficient fine-tuning)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora3d_splat.batching import group_by
from lora3d_splat.console import Advance
from lora3d_splat.errors import InputError
from lora3d_splat.lora.adapter import LoraConfig, adapter_parameters, inject, is_adapted
from lora3d_splat.lora.loss import LabelBatch, confidence_loss
from lora3d_splat.lora.resume import TrainingState, load_training, save_training
from lora3d_splat.networks import network_digest
from lora3d_splat.networks.base import EncodedViews, PairOutput, PointmapNetwork
from lora3d_splat.prediction import encode_views, network_device
from lora3d_splat.records import PseudoLabels, View
from lora3d_splat.watch import watcher


@dataclass(frozen=True)
class FinetuneConfig:
    rank: int = 16
    """Rank of the adapter."""
    lora_alpha: float = 16.0
    """The adapter's update is scaled by lora_alpha / rank."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW at the first step."""
    final_learning_rate: float = 1e-5
    """Learning rate at the last step; a cosine leads from one to the other."""
    weight_decay: float = 0.0
    """Decay of the adapter's weights."""
    batch_size: int = 2
    """Pairs per step."""
    epochs: int = 10
    """Passes over all pairs."""
    alpha: float = 0.2
    """Reward for confidence in the loss; a pixel's best confidence is alpha / error."""
    seed: int = 0
    """Seed of the adapter's start and of the order of the pairs."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 1 or not 0 < self.final_learning_rate <= self.learning_rate:
            raise InputError(
                found=f"batch_size={self.batch_size}, epochs={self.epochs}, "
                f"learning rates {self.learning_rate} to {self.final_learning_rate}",
                accepted="at least one pair per step, one epoch, and a positive learning rate that does not grow",
                remedy="start from batch_size=2, epochs=10, 1e-3 to 1e-5",
            )


@dataclass(frozen=True)
class FinetuneResult:
    """How the fine-tuning went; the adapter itself is in the network."""

    losses: tuple[float, ...]
    """mean loss of each epoch"""
    seconds: float
    """wall seconds of training, those before an interruption included"""


def finetune(
    network: PointmapNetwork,
    views: Sequence[View],
    labels: Sequence[PseudoLabels],
    config: FinetuneConfig | None = None,
    advance: Advance | None = None,
    checkpoint: Path | None = None,
) -> FinetuneResult:
    """Fit an adapter (injected where there is none) to pseudo labels, in place, on the network's device.

    Deterministic by `config.seed`. With `checkpoint`, the state is kept there after every epoch, and a rerun with the
    same inputs continues from it to the same result. `advance` counts pairs, len(labels) * epochs in all. Raises
    InputError when no label has a valid pixel.
    """
    config = config or FinetuneConfig()
    usable = [label for label in labels if bool(label.valid_reference.any() or label.valid_other.any())]
    if not usable:
        raise InputError("pseudo labels without a trusted pixel", "at least one trusted pixel", "lower the cut-off")
    if not is_adapted(network):
        inject(network, LoraConfig(config.rank, config.lora_alpha, config.seed))
    parameters = [parameter for _, parameter in adapter_parameters(network)]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    fingerprint = _fingerprint(network, views, usable, config)
    state = load_training(checkpoint, fingerprint, network, optimizer) or TrainingState(fingerprint, [], 0.0)
    _report(advance, len(labels) * len(state.losses))
    while len(state.losses) < config.epochs:
        start = time.perf_counter()
        loss = _epoch(network, views, usable, optimizer, config, len(state.losses), advance)
        watcher().loss(len(state.losses), loss)
        state = TrainingState(fingerprint, [*state.losses, loss], state.seconds + time.perf_counter() - start)
        _report(advance, len(labels) - len(usable))
        if checkpoint is not None:
            save_training(checkpoint, state, network, optimizer)
    return FinetuneResult(tuple(state.losses), state.seconds)


def _epoch(
    network: PointmapNetwork,
    views: Sequence[View],
    labels: Sequence[PseudoLabels],
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    epoch: int,
    advance: Advance | None,
) -> float:
    """One pass over all pairs; returns the mean loss."""
    batches = list(_shuffled_batches(views, labels, config, epoch))
    total, device = 0.0, network_device(network)
    for index, batch in enumerate(batches):
        rate = _learning_rate(config, epoch * len(batches) + index, config.epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = confidence_loss(_predict(network, views, batch), LabelBatch.stack(batch, device), config.alpha)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        _report(advance, len(batch))
    return total / len(labels)


def _predict(network: PointmapNetwork, views: Sequence[View], batch: Sequence[PseudoLabels]) -> PairOutput:
    """Decode the pairs of a batch with gradients; an image that occurs twice is encoded once."""
    indices = sorted({index for label in batch for index in (label.pair.reference, label.pair.other)})
    encoded = encode_views(network, views, indices)
    reference = EncodedViews.stack([encoded[label.pair.reference] for label in batch])
    return network.decode(reference, EncodedViews.stack([encoded[label.pair.other] for label in batch]))


def _shuffled_batches(
    views: Sequence[View], labels: Sequence[PseudoLabels], config: FinetuneConfig, epoch: int
) -> Iterator[list[PseudoLabels]]:
    """Batches of pairs of equal shapes in an order that depends on the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch)

    def shuffled(count: int) -> list[int]:
        return torch.randperm(count, generator=generator).tolist()

    order = [labels[index] for index in shuffled(len(labels))]
    groups = group_by(order, lambda label: (views[label.pair.reference].size, views[label.pair.other].size))
    batches = [
        group[start : start + config.batch_size]
        for _, group in groups
        for start in range(0, len(group), config.batch_size)
    ]
    return (batches[index] for index in shuffled(len(batches)))


def _learning_rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Cosine from the first step's rate to the last step's."""
    share = 0.5 * (1 + math.cos(math.pi * step / max(steps - 1, 1)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def _fingerprint(
    network: PointmapNetwork, views: Sequence[View], labels: Sequence[PseudoLabels], config: FinetuneConfig
) -> str:
    """What the result depends on, so that a checkpoint of other inputs is not continued."""
    state = hashlib.blake2b(f"{network_digest(network)} {astuple(config)}".encode(), digest_size=16)
    for view in views:
        state.update(f"{view.digest} {view.size}".encode())
    for label in labels:
        state.update(f"{label.pair}".encode())
        for tensor in (label.points_reference, label.valid_reference, label.points_other, label.valid_other):
            state.update(_bytes(tensor))
    return state.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _report(advance: Advance | None, pairs: int) -> None:
    if advance is not None and pairs:
        advance(pairs)
