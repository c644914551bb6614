"""DUSt3R checkpoint files, read as data: a `.pth` container, or `model.safetensors` with `config.json` beside it.

No code in a file is executed: `.pth` files go through the restricted unpickler with `argparse.Namespace` as the only
class beyond tensors, and the constructor string they carry is parsed, not evaluated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora3d_splat.errors import CheckpointError, Lora3DError
from lora3d_splat.networks.dust3r import WEIGHTS_LICENCE, Dust3R
from lora3d_splat.networks.dust3r_config import Dust3RConfig, parse_constructor

PRETRAINING_KEYS = ("prediction_head.", "enc_pos_embed", "dec_pos_embed")
"""of files that only went through cross-view pre-training; they play no part in pointmaps"""


def load_dust3r(path: Path, name: str, licence: str = WEIGHTS_LICENCE) -> Dust3R:
    """A DUSt3R network for inference from a `.pth` file, a `.safetensors` file or the folder that holds one.

    The file's settings hold, except that images of any orientation go in, and maps come out, upright. float32, on the
    CPU, in eval mode, without gradients. Raises CheckpointError where the file is not exactly such a network.
    """
    state, config = read_checkpoint(path)
    with torch.device("meta"):
        network = Dust3R(replace(config, patch_embed_cls="PatchEmbedDust3R", landscape_only=False), name, licence)
    load_state(network, state, path)
    return network.eval().requires_grad_(False)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    """The state dict and the settings as stored."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no file {file}", "a .pth or .safetensors checkpoint", "check the path")
    try:
        return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)
    except Lora3DError:
        raise
    except Exception as error:  # a damaged or foreign pickle can raise anything
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        raise CheckpointError(
            found=f"{file}, which cannot be read ({reason})",
            accepted="a DUSt3R checkpoint: a .pth file, or model.safetensors with config.json",
            remedy="download the file again; it may be cut short or hold something else",
        ) from error


def load_state(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Give the network its weights by name; raises CheckpointError naming a few keys that are missing or unknown."""
    wanted = network.state_dict()
    state = _complete(state, wanted)
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    problems = {"lacks": missing, "has unknown": unknown, "has other shapes for": misshapen}
    if any(problems.values()):
        told = "; ".join(f"{what} {_a_few(keys)}" for what, keys in problems.items() if keys)
        raise CheckpointError(
            found=f"{source} that {told}",
            accepted=f"exactly the {len(wanted)} tensors of the network its settings describe",
            remedy="use a checkpoint as published, or one saved whole by the same architecture",
        )
    network.load_state_dict({key: state[key].float() for key in wanted}, assign=True)


def _complete(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill what can be derived: the second decoder of one-decoder files, and the mask token, which is never used."""
    state = {key: value for key, value in state.items() if not key.startswith(PRETRAINING_KEYS)}
    if not any(key.startswith("dec_blocks2.") for key in state):
        state |= {f"dec_blocks2.{k[11:]}": v.clone() for k, v in state.items() if k.startswith("dec_blocks.")}
    if "mask_token" in wanted:
        state.setdefault("mask_token", torch.zeros(wanted["mask_token"].shape))
    return state


def _read_pth(file: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    torch.serialization.add_safe_globals([argparse.Namespace])
    content = torch.load(file, map_location="cpu", weights_only=True)
    settings = getattr(content.get("args"), "model", None) if isinstance(content, dict) else None
    if not isinstance(settings, str) or not isinstance(content.get("model"), dict):
        raise ValueError("it lacks the entries 'model' and 'args' of the DUSt3R family")
    return dict(content["model"]), Dust3RConfig.from_arguments(parse_constructor(settings))


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], Dust3RConfig]:
    settings: Any = json.loads(file.with_name("config.json").read_text())
    return load_file(file), Dust3RConfig.from_arguments(settings)


def _a_few(keys: list[str], count: int = 3) -> str:
    rest = f" and {len(keys) - count} more" if len(keys) > count else ""
    return f"{', '.join(keys[:count])}{rest}"
