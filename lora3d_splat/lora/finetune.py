"""Fine-tuning the adapter without ground truth: on the network's own trusted predictions (LoRA3D), or on triplets."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from lora3d_splat.batching import group_by
from lora3d_splat.console import Advance
from lora3d_splat.errors import InputError
from lora3d_splat.lora.adapter import LoraConfig, adapter_parameters, inject, is_adapted
from lora3d_splat.lora.loss import LabelBatch, confidence_loss
from lora3d_splat.lora.resume import TrainingState, load_training, save_training
from lora3d_splat.lora.triplet import Triplet, can_form_triplets, draw_triplets, triplet_loss
from lora3d_splat.networks import network_digest
from lora3d_splat.networks.base import EncodedViews, PairOutput, PointmapNetwork
from lora3d_splat.precision import arithmetic, training_precision
from lora3d_splat.prediction import couples, decoder_of_both, encode_views, network_device, stack_pairs
from lora3d_splat.records import ImagePair, PseudoLabels, View
from lora3d_splat.watch import watcher

Item = TypeVar("Item")
USUAL_EPOCHS = 10
USUAL_ALPHA = 0.2
"""what DUSt3R and MASt3R were trained with; a network of another kind names its own as `confidence_alpha`"""


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
    epochs: int | None = None
    """Passes over all pairs. None: ten (LoRA3D), and where the network asks for a number of steps as many as give them
    (compact: 450, what ten passes over ten photographs give), five at least."""
    alpha: float | None = None
    """Reward for confidence in the loss; a pixel's best confidence is alpha / error. None takes what the network was
    trained with, because another value would shift all confidences: 1 for compact, else 0.2 (DUSt3R, MASt3R)."""
    targets: tuple[str, ...] | None = None
    """Layers to adapt, by the last components of their names; None takes the network's own choice."""
    seed: int = 0
    """Seed of the adapter's start and of the order of the pairs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of a network's trunk; auto is bfloat16 for large networks on GPUs that are faster with it."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.epochs or 1) < 1 or not 0 < self.final_learning_rate <= self.learning_rate:
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


@dataclass(frozen=True)
class _Lesson(Generic[Item]):
    """What an epoch is made of, whichever loss it is."""

    items: Callable[[torch.Generator], list[Item]]
    """everything that an epoch goes through, in random order; always as many"""
    shapes: Callable[[Item], object]
    """items of equal shapes can share a batch"""
    loss: Callable[[Sequence[Item]], Tensor]
    """mean loss of a batch"""
    batch_size: int
    fingerprint: str
    """digest of everything that the result depends on; empty where nothing is stored"""


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
    same inputs continues from it to the same result. `advance` counts pairs, len(labels) * `planned_epochs`. Raises
    InputError when no label has a valid pixel.
    """
    config = settled(config or FinetuneConfig(), network)
    usable = [label for label in labels if bool(label.valid_reference.any() or label.valid_other.any())]
    if not usable:
        raise InputError("pseudo labels without a trusted pixel", "at least one trusted pixel", "lower the cut-off")
    device = network_device(network)
    alpha = config.alpha if config.alpha is not None else getattr(network, "confidence_alpha", USUAL_ALPHA)

    def loss(batch: Sequence[PseudoLabels]) -> Tensor:
        output = _predict(network, views, [label.pair for label in batch], config)
        return confidence_loss(output, LabelBatch.stack(batch, device), alpha)

    def prepare() -> _Lesson[PseudoLabels]:
        return _Lesson(
            items=lambda generator: _couples(usable, generator),
            shapes=lambda label: _shapes(views, label.pair.reference, label.pair.other),
            loss=loss,
            batch_size=config.batch_size,
            fingerprint="" if checkpoint is None else _fingerprint(network, views, _label_bytes(usable), config),
        )

    idle = len(labels) - len(usable)
    return _fit(network, prepare, config, lambda count: _report(advance, count), idle, checkpoint)


def finetune_triplets(
    network: PointmapNetwork,
    views: Sequence[View],
    pairs: Sequence[ImagePair],
    config: FinetuneConfig | None = None,
    advance: Advance | None = None,
    checkpoint: Path | None = None,
) -> FinetuneResult:
    """The same on the triplet-consistency loss: every pair once an epoch, each time in new company.

    `config.alpha` plays no part. `advance` counts triplets, `triplet_count(pairs)` an epoch. Raises InputError when no
    view is the reference of two pairs.
    """
    config = settled(config or FinetuneConfig(), network)
    if not can_form_triplets(pairs):
        raise InputError("pairs that share no reference view", "a view in two pairs", "give at least three photographs")

    def loss(batch: Sequence[Triplet]) -> Tensor:
        first = _predict(network, views, [ImagePair(each.reference, each.first) for each in batch], config)
        second = _predict(network, views, [ImagePair(each.reference, each.second) for each in batch], config)
        counted = torch.stack([_counted(views[each.reference]) for each in batch])
        return triplet_loss(first, second, counted.to(network_device(network)))

    def prepare() -> _Lesson[Triplet]:
        return _Lesson(
            items=lambda generator: _shuffled(draw_triplets(pairs, generator), generator),
            shapes=lambda each: _shapes(views, each.reference, each.first, each.second),
            loss=loss,
            batch_size=max(1, config.batch_size // 2),
            fingerprint="" if checkpoint is None else _fingerprint(network, views, _pair_bytes(pairs), config),
        )

    return _fit(network, prepare, config, lambda count: _report(advance, count), 0, checkpoint)


def settled(config: FinetuneConfig, network: PointmapNetwork) -> FinetuneConfig:
    """The same with the arithmetic that "auto" means on the network's device."""
    return replace(config, precision=training_precision(config.precision, network))  # type: ignore[arg-type]


def planned_epochs(network: PointmapNetwork, count: int, config: FinetuneConfig) -> int:
    """Passes over `count` pairs or triplets: those asked for, or as many as the network needs."""
    if config.epochs is not None:
        return config.epochs
    steps = getattr(network, "adaptation_steps", None)
    if steps is None:
        return USUAL_EPOCHS
    return max(USUAL_EPOCHS // 2, -(-steps // -(-count // config.batch_size)))


def triplet_count(pairs: Sequence[ImagePair]) -> int:
    """Triplets an epoch."""
    return len(draw_triplets(pairs, torch.Generator().manual_seed(0)))


def _fit(
    network: PointmapNetwork,
    prepare: Callable[[], _Lesson[Item]],
    config: FinetuneConfig,
    report: Callable[[int], None],
    idle: int,
    checkpoint: Path | None,
) -> FinetuneResult:
    """All epochs from the stored one on; `prepare` is called with the adapter in place, `idle` items need no work."""
    if not is_adapted(network):
        inject(network, LoraConfig(config.rank, config.lora_alpha, config.seed, config.targets))
    parameters = [parameter for _, parameter in adapter_parameters(network)]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    lesson = prepare()
    state = load_training(checkpoint, lesson.fingerprint, network, optimizer)
    state = state or TrainingState(lesson.fingerprint, [], 0.0)
    count = idle + len(lesson.items(torch.Generator()))
    epochs = planned_epochs(network, count, config)
    report(count * len(state.losses))
    while len(state.losses) < epochs:
        start = time.perf_counter()
        loss = _epoch(lesson, optimizer, config, len(state.losses), epochs, report)
        watcher().loss(len(state.losses), loss)
        seconds = state.seconds + time.perf_counter() - start
        state = TrainingState(lesson.fingerprint, [*state.losses, loss], seconds)
        report(idle)
        if checkpoint is not None:
            save_training(checkpoint, state, network, optimizer)
    return FinetuneResult(tuple(state.losses), state.seconds)


def _epoch(
    lesson: _Lesson[Item],
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    epoch: int,
    epochs: int,
    report: Callable[[int], None],
) -> float:
    """One pass over all items; returns the mean loss."""
    batches = _batches(lesson, config, epoch)
    total = 0.0
    for index, batch in enumerate(batches):
        rate = _learning_rate(config, epoch * len(batches) + index, epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = lesson.loss(batch)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        report(len(batch))
    return total / sum(len(batch) for batch in batches)


def _predict(
    network: PointmapNetwork, views: Sequence[View], pairs: Sequence[ImagePair], config: FinetuneConfig
) -> PairOutput:
    """Decode the pairs of a batch with gradients; an image that occurs twice is encoded once."""
    indices = sorted({index for pair in pairs for index in (pair.reference, pair.other)})
    with arithmetic(config.precision, network_device(network)):  # type: ignore[arg-type]
        return _decoded(network, encode_views(network, views, indices), pairs)


def _decoded(network: PointmapNetwork, encoded: dict[int, EncodedViews], pairs: Sequence[ImagePair]) -> PairOutput:
    """Pairs of equal shapes in their order; both orders of each at once where all are there and the network can."""
    both, groups = decoder_of_both(network), couples(pairs)
    if both is None or any(len(group) != 2 or len(set(group)) != 2 for group in groups):
        return network.decode(*stack_pairs(encoded, pairs))
    first = [group[0] for group in groups]
    there, back = both(*stack_pairs(encoded, first))
    rows = {pair: row for row, pair in enumerate([*first, *(group[1] for group in groups)])}
    order = torch.tensor([rows[pair] for pair in pairs], device=there.points_reference.device)
    maps = zip(vars(there).values(), vars(back).values(), strict=True)
    return PairOutput(*(torch.cat(sides)[order] for sides in maps))


def _batches(lesson: _Lesson[Item], config: FinetuneConfig, epoch: int) -> list[list[Item]]:
    """Batches of items of equal shapes in an order that depends on the seed and the epoch alone."""
    generator, size = torch.Generator().manual_seed(1_000_003 * config.seed + epoch), lesson.batch_size
    batches = [
        group[start : start + size]
        for _, group in group_by(lesson.items(generator), lesson.shapes)
        for start in range(0, len(group), size)
    ]
    return _shuffled(batches, generator)


def _couples(labels: Sequence[PseudoLabels], generator: torch.Generator) -> list[PseudoLabels]:
    """Random order with every pair beside its reverse: both orders in one batch need their images encoded once."""
    groups = group_by(labels, lambda label: frozenset((label.pair.reference, label.pair.other)))
    shuffled = _shuffled([couple for _, couple in groups], generator)
    return [label for couple in sorted(shuffled, key=len, reverse=True) for label in couple]


def _shuffled(items: Sequence[Item], generator: torch.Generator) -> list[Item]:
    return [items[k] for k in torch.randperm(len(items), generator=generator).tolist()]


def _shapes(views: Sequence[View], *indices: int) -> tuple[tuple[int, int], ...]:
    return tuple(views[index].size for index in indices)


def _counted(view: View) -> Tensor:
    """(H, W) bool: the pixels that count."""
    return torch.ones(view.size, dtype=torch.bool) if view.mask is None else torch.from_numpy(view.mask)


def _learning_rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Cosine from the first step's rate to the last step's."""
    share = 0.5 * (1 + math.cos(math.pi * step / max(steps - 1, 1)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def _fingerprint(
    network: PointmapNetwork, views: Sequence[View], lesson: Iterator[bytes | memoryview], config: FinetuneConfig
) -> str:
    """What the result depends on, so that a checkpoint of other inputs is not continued."""
    state = hashlib.blake2b(f"{network_digest(network)} {astuple(config)}".encode(), digest_size=16)
    for view in views:
        state.update(f"{view.digest} {view.size}".encode())
    for part in lesson:
        state.update(part)
    return state.hexdigest()


def _label_bytes(labels: Sequence[PseudoLabels]) -> Iterator[bytes | memoryview]:
    for label in labels:
        yield f"{label.pair}".encode()
        for tensor in (label.points_reference, label.valid_reference, label.points_other, label.valid_other):
            yield _bytes(tensor)


def _pair_bytes(pairs: Sequence[ImagePair]) -> Iterator[bytes]:
    return (f"triplet {pair}".encode() for pair in pairs)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _report(advance: Advance | None, pairs: int) -> None:
    if advance is not None and pairs:
        advance(pairs)
