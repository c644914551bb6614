"""Low-rank adapters (Hu et al., ICLR 2022) on a pointmap network, through peft and in peft's files.

The network is changed in place and keeps its class, so an adapted network is used like any other: its attention layers
are wrapped, B starts at zero (the adapted network is the base until the first step), and only A and B are trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora3d_splat.errors import CheckpointError, InputError
from lora3d_splat.files import atomic_folder
from lora3d_splat.networks.base import PointmapNetwork

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

NAME = "default"
KEY_PREFIX = "base_model.model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 16
    """Rank of the update of each adapted layer."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    seed: int = 0
    """Seed of the random start of A."""
    targets: tuple[str, ...] | None = None
    """Last components of the names of the layers to adapt; None takes the network's own choice."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(
                found=f"rank={self.rank}, alpha={self.alpha}",
                accepted="a rank of at least 1 and a positive alpha",
                remedy="start from rank 16 and alpha 16",
            )


def inject(network: PointmapNetwork, config: LoraConfig | None = None) -> PointmapNetwork:
    """Wrap the network's `lora_targets` in place and return it; everything but the adapter is frozen."""
    config = config or LoraConfig()
    targets = _targets(network, config)
    import peft

    _inject(
        network,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            bias="none",
            target_modules=list(targets),
        ),
        config.seed,
    )
    return network


def _targets(network: PointmapNetwork, config: LoraConfig) -> tuple[str, ...]:
    """The layers asked for, or the network's own."""
    own = network.lora_targets
    if not own:
        raise InputError(f"{network.name}, which names no layers", "a network with lora_targets", "go on without LoRA")
    strange = sorted(set(config.targets or ()) - set(own))
    if strange:
        raise InputError(f"targets {', '.join(strange)}", f"some of {', '.join(own)}", "leave the targets out")
    return config.targets or own


def is_adapted(network: PointmapNetwork) -> bool:
    """Whether the network carries an adapter."""
    return hasattr(network, "peft_config")


def adapter_parameters(network: PointmapNetwork) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters of the adapter, all that fine-tuning changes."""
    return [(name, parameter) for name, parameter in _module(network).named_parameters() if ".lora_" in name]


def adapter_state(network: PointmapNetwork) -> dict[str, Tensor]:
    """Copies of the adapter's tensors on the CPU under peft's own names (without the adapter's)."""
    from peft import get_peft_model_state_dict

    # embedding layers are named explicitly, because peft's default asks the model hub about the base network
    state = get_peft_model_state_dict(_module(network), adapter_name=NAME, save_embedding_layers=False)
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


def set_adapter_state(network: PointmapNetwork, state: dict[str, Tensor]) -> None:
    """Give the adapter the tensors of `adapter_state`; raises CheckpointError where the names do not fit."""
    from peft import set_peft_model_state_dict

    wanted = {key: tuple(value.shape) for key, value in adapter_state(network).items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if wanted != found:
        odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise CheckpointError(
            found=f"an adapter whose tensors do not fit {network.name}: {', '.join(odd[:3])}",
            accepted="an adapter trained on the same network",
            remedy="load the network that the adapter was made for, or calibrate again",
        )
    set_peft_model_state_dict(_module(network), state, adapter_name=NAME)  # type: ignore[arg-type]


def save_adapter(network: PointmapNetwork, folder: Path) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` as peft's `save_pretrained` lays them out."""
    config: Any = _module(network).peft_config[NAME]
    settings = config.to_dict() | {"inference_mode": True, "base_model_name_or_path": network.name}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    state = {f"{KEY_PREFIX}{key}": value for key, value in adapter_state(network).items()}
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True, default=str))
        facts = {"format": "pt", "base_model": network.name, "base_model_licence": network.licence}
        save_file(state, temporary / WEIGHTS_FILE, facts)
    return folder


def load_adapter(network: PointmapNetwork, folder: Path) -> PointmapNetwork:
    """Inject the adapter of a folder in place, replacing one that is there; raises CheckpointError if unusable."""
    import peft

    try:
        if not (folder / CONFIG_FILE).is_file():  # peft would take the path for a hub id and ask there
            raise FileNotFoundError(f"no {CONFIG_FILE}")
        config = peft.LoraConfig.from_pretrained(str(folder))
        stored = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            found=f"no readable adapter in {folder} ({str(error)[:120]})",
            accepted=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
            remedy="point to the adapter folder of a calibration, or calibrate again",
        ) from error
    remove(network)
    config.inference_mode = False
    _inject(network, config, seed=0)
    try:
        set_adapter_state(network, {key.removeprefix(KEY_PREFIX): value for key, value in stored.items()})
    except CheckpointError:
        remove(network)
        raise
    return network


def remove(network: PointmapNetwork) -> PointmapNetwork:
    """Take the adapter off again; what remains is exactly the base network."""
    module = _module(network)
    unmerge(network)
    for name, layer in list(_layers(network)):
        module.set_submodule(name, layer.get_base_layer())
    if is_adapted(network):
        del module.peft_config
    return network


def merge(network: PointmapNetwork) -> PointmapNetwork:
    """Add alpha / rank * B A to the base weights, for inference without the extra products."""
    for _, layer in _layers(network):
        if not layer.merged:
            layer.merge()
    return network


def unmerge(network: PointmapNetwork) -> PointmapNetwork:
    """Undo `merge`, up to rounding."""
    for _, layer in _layers(network):
        if layer.merged:
            layer.unmerge()
    return network


@contextmanager
def disabled(network: PointmapNetwork) -> Iterator[PointmapNetwork]:
    """The base network's answers inside the block, the adapted network's again after it."""
    layers, module = [layer for _, layer in _layers(network)], _module(network)
    for layer in layers:
        layer.enable_adapters(False)
    config = vars(module).pop("peft_config", None)  # networks ask for it whether they are adapted
    try:
        yield network
    finally:
        if config is not None:
            module.peft_config = config
        for layer in layers:
            layer.enable_adapters(True)


def _inject(network: PointmapNetwork, config: Any, seed: int) -> None:
    """Inject with a random start of A that depends on the seed alone and leaves the global generator as it was."""
    from peft import inject_adapter_in_model

    if is_adapted(network):
        raise InputError(f"{network.name} with an adapter", "a network without one", "remove the adapter first")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, _module(network), adapter_name=NAME)


def _layers(network: PointmapNetwork) -> Iterator[tuple[str, LoraLayer]]:
    """Names and adapted layers; none where there is no adapter (and peft need not be there)."""
    if not is_adapted(network):
        return iter(())
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in _module(network).named_modules() if isinstance(module, LoraLayer))


def _module(network: PointmapNetwork) -> Any:
    """The network as the torch module that it is."""
    return network
