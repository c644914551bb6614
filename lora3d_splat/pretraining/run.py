"""`pretrain`: train within the budget, report, keep a checkpoint, export."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lora3d_splat.console import note
from lora3d_splat.networks.compact import CompactNetwork, architecture_json
from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.pretraining.curves import write_curves
from lora3d_splat.pretraining.evaluation import as_row, constant_depth, evaluate, evaluate_predictor, training_mean
from lora3d_splat.pretraining.trainer import Trainer


def pretrain(config: PretrainConfig) -> Path:
    """Train until the budget is spent and export the averaged weights; returns the exported file.

    A run that was interrupted continues from `folder/checkpoint.pt`.
    """
    torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    checkpoint = config.folder / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.restore(checkpoint)
        note(f"continuing at step {trainer.steps}, {trainer.pairs} pairs, {trainer.seconds / 60:.0f} min")
    try:
        while trainer.progress < 1:
            train_for(trainer, config.save_minutes * 60)
            report(trainer)
            trainer.save(checkpoint)
    finally:
        if trainer.pool:
            trainer.pool.close()
    target = config.folder / "compact.safetensors"
    export(trainer, target)
    if config.validation_scenes:
        report_baselines(config)
    return target


def train_for(trainer: Trainer, seconds: float) -> None:
    """Advance for a while, or to the end of the budget; adds one row of mean losses to the history."""
    started, point, match, steps, before = time.monotonic(), 0.0, 0.0, 0, trainer.pairs
    begun = trainer.seconds
    while trainer.progress < 1 and trainer.seconds - begun < seconds:
        losses = trainer.step()
        point, match, steps = point + losses.point, match + losses.match, steps + 1
        trainer.seconds = begun + time.monotonic() - started
    trainer.history.append(
        {
            "steps": trainer.steps,
            "pairs_seen": trainer.pairs,
            "minutes": round(trainer.seconds / 60, 1),
            "point_loss": round(point / max(steps, 1), 4),
            "match_loss": round(match / max(steps, 1), 4),
            "pairs_per_second": round((trainer.pairs - before) / max(trainer.seconds - begun, 1e-9), 1),
        }
    )


def report(trainer: Trainer) -> None:
    """Evaluate the averaged weights, print a line and rewrite progress.json and progress.svg."""
    row = trainer.history[-1]
    if trainer.config.validation_scenes:
        row.update(as_row(evaluate(trainer.average, trainer.config.validation_scenes)))
    note("  ".join(f"{name} {value:g}" for name, value in row.items()))
    trainer.config.folder.mkdir(parents=True, exist_ok=True)
    (trainer.config.folder / "progress.json").write_text(json.dumps(trainer.history, indent=1))
    write_curves(trainer.history, trainer.config.folder / "progress.svg")


def report_baselines(config: PretrainConfig) -> None:
    """What the two blind predictors score on the validation pairs."""
    for name, predictor in (("constant depth", constant_depth), ("training mean", training_mean(config))):
        row = as_row(evaluate_predictor(predictor, config.validation_scenes))
        note(f"{name}: " + "  ".join(f"{key} {value:g}" for key, value in row.items()))


def export(trainer: Trainer, target: Path) -> None:
    """Averaged weights in float16 with everything a user may want to know about them."""
    config = trainer.config
    accuracy = evaluate(trainer.average, 2 * config.validation_scenes) if config.validation_scenes else None
    metadata = {
        "architecture": architecture_json(trainer.average),
        "long_side": str(config.long_side),
        "licence": CompactNetwork.licence,
        "command": command(config),
        "steps": str(trainer.steps),
        "pairs": str(trainer.pairs),
        "progress": f"{trainer.progress:.3f}",
        "accuracy": json.dumps(as_row(accuracy) if accuracy else {}),
        "settings": json.dumps(_settings(config), default=str),
    }
    weights = {key: value.detach().half().contiguous().cpu() for key, value in trainer.average.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(target), metadata)


def command(config: PretrainConfig) -> str:
    """The command line that asks for this training: whatever differs from the defaults."""
    return " ".join(["ns-lora3d pretrain", *_options("--", _settings(config), _settings(PretrainConfig()))])


def _options(prefix: str, settings: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """Options as the command line takes them: nested settings dotted, tuples as their numbers in a row."""
    words = []
    for name, value in settings.items():
        option = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            words += _options(f"{option}.", value, usual[name])
        elif value != usual[name] and isinstance(value, bool):
            words.append(option if value else f"{prefix}no-{name.replace('_', '-')}")
        elif value != usual[name]:
            words.append(f"{option} {' '.join(map(str, np.ravel(value)))}")
    return words


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """All settings but the place of the files and the preview, which no training has."""
    return {name: value for name, value in asdict(config).items() if name not in ("folder", "preview")}


def export_checkpoint(config: PretrainConfig, target: Path) -> None:
    """Export the averaged weights of a run that is still going on, or was stopped."""
    trainer = Trainer(config)
    checkpoint = config.folder / "checkpoint.pt"
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    trainer.average.load_state_dict(state["average"])
    trainer.steps, trainer.pairs, trainer.seconds = state["counters"]
    export(trainer, target)
