"""The state of an interrupted fine-tuning, kept after every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lora3d_splat.console import warn
from lora3d_splat.files import atomic_file
from lora3d_splat.lora.adapter import adapter_state, set_adapter_state
from lora3d_splat.networks.base import PointmapNetwork


@dataclass(frozen=True)
class TrainingState:
    """How far a fine-tuning has come."""

    fingerprint: str
    """digest of everything the result depends on"""
    losses: list[float]
    """mean loss of each finished epoch"""
    seconds: float
    """wall seconds spent so far"""


def save_training(path: Path, state: TrainingState, network: PointmapNetwork, optimizer: torch.optim.Optimizer) -> None:
    """Write the state, the adapter and the optimiser whole or not at all."""
    content = {
        "fingerprint": state.fingerprint,
        "losses": state.losses,
        "seconds": state.seconds,
        "adapter": adapter_state(network),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary)


def load_training(
    path: Path | None, fingerprint: str, network: PointmapNetwork, optimizer: torch.optim.Optimizer
) -> TrainingState | None:
    """Put stored adapter and optimiser in place; None where nothing fitting is stored (damage is said in a line)."""
    if path is None or not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["fingerprint"] != fingerprint:
            return None
        set_adapter_state(network, content["adapter"])
        optimizer.load_state_dict(content["optimizer"])
        return TrainingState(fingerprint, list(content["losses"]), float(content["seconds"]))
    except Exception:  # a damaged pickle can raise anything; whatever it is, the remedy is the same
        warn(f"the fine-tuning state {path.name} is damaged; fine-tuning starts again")
        return None
