"""DUSt3R and MASt3R checkpoint files, read as data: `.pth` containers, or model.safetensors with config.json beside it.

No code in a file is executed: `.pth` files go through the restricted unpickler with `argparse.Namespace` as the only
class beyond tensors, and the constructor string they carry is parsed, not evaluated.
"""

from __future__ import annotations

import argparse
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lora3d_splat import checksums
from lora3d_splat.console import warn
from lora3d_splat.errors import CheckpointError, Lora3DError
from lora3d_splat.networks.dust3r import UNKNOWN_LICENCE, Dust3R
from lora3d_splat.networks.dust3r_config import Dust3RConfig, parse_constructor
from lora3d_splat.networks.weights import CONFIG, MODEL, PUBLIC, public_name, public_name_in

PRETRAINING_KEYS = ("prediction_head.", "enc_pos_embed", "dec_pos_embed")
"""of files that only went through cross-view pre-training; they play no part in pointmaps"""
ACCEPTED = f"a DUSt3R or MASt3R checkpoint: a .pth file, or {MODEL} with {CONFIG} beside it"
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError,
    AssertionError, MemoryError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip
"""what the readers raise on damaged and foreign files"""
STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the weights (`git lfs pull` fetches them)",
    b"<": "a web page or XML text instead of the weights",
    b"{": "JSON text instead of the weights",
}
"""first bytes -> what a file really is"""


def load_dust3r(path: Path, name: str | None = None) -> Dust3R:
    """A DUSt3R or MASt3R network for inference from a `.pth` or `.safetensors` file, or the folder that holds one.

    The file's settings hold, except that images of any orientation go in, and maps come out, upright. float32, on the
    CPU, in eval mode, without gradients. It is called `name`, else as its file is; public networks are known by either.
    Raises CheckpointError where the file is not exactly such a network.
    """
    file = _checkpoint_file(path)
    state, config = read_checkpoint(file)
    name, licence = _identity(file, name)
    with torch.device("meta"):
        network = Dust3R(replace(config, patch_embed_cls="PatchEmbedDust3R", landscape_only=False), name, licence)
    load_state(network, state, file)
    return network.eval().requires_grad_(False)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    """The state dict and the settings as stored."""
    file = _checkpoint_file(path)
    try:
        if (stranger := _stranger(file)) is not None:
            raise CheckpointError(f"{file}, {stranger}", ACCEPTED, "get the file itself")
        checksums.verify(file)
        return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)
    except Lora3DError:
        raise
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        raise CheckpointError(
            found=f"{file}, which cannot be read ({reason})",
            accepted=ACCEPTED,
            remedy="get the file again (a download: delete it first); it may be cut short or hold something else",
        ) from error


def load_state(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Give the network its weights by name, of which two names of one tensor may occur once or twice.

    Unknown tensors are named and left out. Raises CheckpointError naming a few tensors that are missing or unusable.
    """
    wanted = network.state_dict(keep_vars=True)
    state, unknown = _complete(state, wanted)
    problems = {
        "lacks": [key for key in wanted if key not in state],
        "has other shapes for": [key for key, value in state.items() if value.shape != wanted[key].shape],
        "has two different tensors for": _disagreeing(state, wanted),
        "has no numbers in": [key for key, value in state.items() if not bool(value.float().sum().isfinite())],
    }
    if any(problems.values()):
        told = "; ".join(f"{what} {_a_few(keys)}" for what, keys in problems.items() if keys)
        raise CheckpointError(
            found=f"{source} that {told}" + (f"; has unknown {_a_few(unknown)}" if unknown else ""),
            accepted=f"exactly the {len(wanted)} tensors of the network its settings describe",
            remedy="use a checkpoint as published, or one saved whole by the same architecture",
        )
    if unknown:
        warn(f"{source}: {len(unknown)} tensors that the network does not have are left out: {_a_few(unknown)}")
    network.load_state_dict({key: state[key].float() for key in wanted}, assign=True)


def _complete(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network with all that can be derived, and the names of those that it does not have.

    Derived are the second decoder of one-decoder files, the other name of a tensor stored once, and the mask token,
    which is never used.
    """
    state = {key: value for key, value in state.items() if not key.startswith(PRETRAINING_KEYS)}
    if not any(key.startswith("dec_blocks2.") for key in state):
        state |= {f"dec_blocks2.{k[11:]}": v.clone() for k, v in state.items() if k.startswith("dec_blocks.")}
    state.setdefault("mask_token", torch.zeros(wanted["mask_token"].shape))
    first = {id(wanted[key]): value for key, value in state.items() if key in wanted}
    state |= {key: first[id(value)] for key, value in wanted.items() if key not in state and id(value) in first}
    return {key: value for key, value in state.items() if key in wanted}, sorted(state.keys() - wanted.keys())


def _disagreeing(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Second names of tensors that hold other values than the first one."""
    first: dict[int, Tensor] = {}
    for key, value in state.items():
        first.setdefault(id(wanted[key]), value)
    others = [key for key, value in state.items() if value is not first[id(wanted[key])]]
    return [key for key in others if not torch.equal(state[key], first[id(wanted[key])])]


def _checkpoint_file(path: Path) -> Path:
    """The file that holds the weights; a folder is that of the hub's layout."""
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no file {file}", ACCEPTED, "check the path")
    return file


def _identity(file: Path, name: str | None) -> tuple[str, str]:
    """Name and licence: those of a public network where the name or the path says so."""
    known = public_name(name) if name is not None else public_name_in(file)
    if known is not None:
        return known, PUBLIC[known].licence
    return name or (file.parent.name if file.name == MODEL else file.stem), UNKNOWN_LICENCE


def _stranger(file: Path) -> str | None:
    """What a file is that many take for a checkpoint, None where its beginning does not tell."""
    with file.open("rb") as stream:
        start = stream.read(64)
    if not start:
        return "an empty file"
    text = start.lstrip() if b"\0" not in start else b""
    return next((what for magic, what in STRANGERS.items() if text.startswith(magic)), None)


def _read_pth(file: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no PyTorch file, or not a whole one")
    with zipfile.ZipFile(file) as container:
        if (damaged := container.testzip()) is not None:  # torch writes checksums, but does not look at them
            raise ValueError(f"the checksum of its part {damaged} is wrong")
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and settings; nothing else in it is read or run") from error
    settings = getattr(content.get("args"), "model", None) if isinstance(content, dict) else None
    if not isinstance(settings, str) or not isinstance(content.get("model"), dict):
        raise ValueError("it lacks the entries 'model' and 'args' of the DUSt3R family")
    return _tensors(content["model"]), _settings(file, lambda: _constructed(settings))


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    state, config = _tensors(load_file(file)), file.with_name(CONFIG)
    if not config.is_file():
        raise CheckpointError(f"{file} without {CONFIG} beside it", ACCEPTED, f"put the {CONFIG} of the network there")
    checksums.verify(config)
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{config}, which holds no settings", "a JSON object", f"get the {CONFIG} again")
    return state, _settings(config, lambda: Dust3RConfig.from_arguments(settings))


def _constructed(settings: str) -> Dust3RConfig:
    model, arguments = parse_constructor(settings)
    return Dust3RConfig.from_arguments(arguments, model)


def _settings(file: Path, read: Callable[[], Dust3RConfig]) -> Dust3RConfig:
    """The settings, or an error that names their file."""
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(f"{file} with {error.found}", error.accepted, error.remedy) from error


def _tensors(stored: dict[str, Any]) -> dict[str, Tensor]:
    odd = [str(key) for key, value in stored.items() if not isinstance(value, Tensor) or not value.is_floating_point()]
    if odd or not all(isinstance(key, str) for key in stored):
        raise ValueError(f"{odd[0] if odd else 'an entry without a name'} in it is no tensor of real numbers")
    return dict(stored)


def _a_few(keys: list[str], count: int = 3) -> str:
    rest = f" and {len(keys) - count} more" if len(keys) > count else ""
    return f"{', '.join(keys[:count])}{rest}"
