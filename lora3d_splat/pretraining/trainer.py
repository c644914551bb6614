"""The training loop's state: master weights, optimisers, average, pool; saved and restored as one file."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.networks.compact import CompactNetwork, CompactOutput, load_compact
from lora3d_splat.precision import has_bfloat16
from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.pretraining.data import PairBatch, ScenePool
from lora3d_splat.pretraining.deepen import deepen
from lora3d_splat.pretraining.losses import depth_loss, match_loss, point_loss
from lora3d_splat.pretraining.optimizer import make_optimizers

WILD = 100.0
"""Gradient norm from which a step is left out: a single point that ran away; the usual norm is 3 to 7."""


@dataclass(frozen=True)
class StepLosses:
    """What one step measured before its update."""

    point: float
    match: float
    pairs: int
    """ordered pairs in the step"""


def forward_pairs(network: CompactNetwork, batch: PairBatch, settle: bool = False) -> CompactOutput:
    """Decode both orders of all pairs; row k has view k as reference. Each view is encoded once."""
    views = network.encode(batch.images.to(next(network.parameters()).dtype))
    rows = torch.arange(2 * batch.pairs, device=batch.images.device)
    first, second = (views.select(part) for part in rows.split(batch.pairs))
    there, back = network.decode_half(first, second, settle)
    return there.joined(back)


def learning_rate_factor(step: int, progress: float, config: PretrainConfig) -> float:
    """Warm-up, constant, then cosine to zero over the last share of the budget."""
    late = max(0.0, (progress - (1 - config.anneal_share)) / max(config.anneal_share, 1e-9))
    return min(1.0, (step + 1) / max(config.warm_up, 1)) * 0.5 * (1 + float(np.cos(np.pi * min(late, 1.0))))


class Trainer:
    """Everything that changes while training. `step` is the only thing that advances it."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.master = self._first_weights().to(config.device)
        self.average = copy.deepcopy(self.master).eval().requires_grad_(False)
        self.worker = copy.deepcopy(self.master).to(torch.bfloat16) if self._asks_for_half() else self.master
        self.optimizers = make_optimizers(self.master, config.muon_rate, config.adam_rate)
        self.steps, self.pairs, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.pool: ScenePool | None = None

    def _first_weights(self) -> CompactNetwork:
        """Random, or those of `initial`."""
        config = self.config
        if config.initial is None:
            return CompactNetwork(config.architecture)
        return deepen(load_compact(config.initial), config.architecture).train()

    def _asks_for_half(self) -> bool:
        """Whether the network computes in bfloat16, beside its master weights."""
        asked = self.config.precision
        return has_bfloat16(torch.device(self.config.device)) if asked == "auto" else asked == "bfloat16"

    @property
    def progress(self) -> float:
        """Share of the budget spent."""
        if self.config.steps is not None:
            return self.steps / self.config.steps
        return self.seconds / (self.config.hours * 3600)

    def step(self) -> StepLosses:
        """Render, draw, forward, backward, update."""
        config = self.config
        self.pool = self.pool or ScenePool(config)
        sizes = config.sizes if self.progress < config.final_share else config.final_sizes
        if config.workers:
            self.pool.take_finished(sizes)
        elif self.steps % config.steps_per_scene == 0:
            self.pool.extend(1, sizes)
        batch = self.pool.draw(np.random.default_rng([config.seed, self.steps]))
        alpha = config.alpha_start + (config.alpha_end - config.alpha_start) * min(self.progress, 1.0)
        output = forward_pairs(self.worker, batch, settle=self.progress >= 1 - config.settled_share)
        point, match = point_loss(output, batch, alpha), match_loss(output.match_logits, batch)
        guess = depth_loss(output.log_depth_reference, batch)
        (point + config.match_weight * match + config.depth_weight * guess).backward()
        self._update(learning_rate_factor(self.steps, self.progress, config))
        self.steps += 1
        self.pairs += 2 * batch.pairs
        return StepLosses(float(point.detach()), float(match.detach()), 2 * batch.pairs)

    @torch.no_grad()
    def _update(self, factor: float) -> None:
        """Gradients to the master weights, one optimiser step, weights back to the worker and into the average."""
        for master, worker in zip(self.master.parameters(), self.worker.parameters(), strict=True):
            master.grad = None if worker.grad is None else worker.grad.float()
            if self.worker is not self.master:
                worker.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.master.parameters(), 20.0)
        if norm < WILD:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
        self.master.zero_grad(set_to_none=True)
        decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
        masters = list(self.master.parameters())
        torch._foreach_lerp_(list(self.average.parameters()), masters, 1 - decay)
        if self.worker is not self.master:
            torch._foreach_copy_(list(self.worker.parameters()), masters)

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically."""
        state = {
            "master": self.master.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": (self.steps, self.pairs, self.seconds),
            "history": self.history,
            "slots": self.pool.slots if self.pool else [],
            "rendered": self.pool.rendered if self.pool else 0,
            "scenes": self.config.scenes,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def restore(self, path: Path) -> None:
        """Continue from a saved file; the pool is rendered again from its seeds."""
        state: dict = torch.load(path, map_location=self.config.device, weights_only=True)
        self.master.load_state_dict(state["master"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps, self.pairs, self.seconds = state["counters"]
        self.history = state["history"]
        self.config = replace(self.config, scenes=state.get("scenes", "plain"))  # older runs knew no other scenes
        if state["slots"]:
            slots = [(seed, (size[0], size[1])) for seed, size in state["slots"]]
            self.pool = ScenePool(self.config, slots, state["rendered"])
        if self.worker is not self.master:
            masters: list[Tensor] = list(self.master.parameters())
            with torch.no_grad():
                torch._foreach_copy_(list(self.worker.parameters()), masters)
