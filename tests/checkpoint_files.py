"""Checkpoints as they are published, of a tiny network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from dust3r_recipe import TINY, TINY_DPT, TINY_MAST3R
from safetensors.torch import save_file

SETTINGS = {"linear": TINY, "dpt": TINY_DPT, "mast3r": TINY_MAST3R}
CLASSES = {"linear": "AsymmetricCroCo3DStereo", "dpt": "AsymmetricCroCo3DStereo", "mast3r": "AsymmetricMASt3R"}
TRAINED = {
    "landscape_only": True,
    "patch_embed_cls": "ManyAR_PatchEmbed",
    "depth_mode": ("exp", -float("inf"), float("inf")),
    "conf_mode": ("exp", 1, float("inf")),
}
"""settings under which the public networks were trained; inference replaces the first two"""


def constructor(head: str = "linear", **changes: object) -> str:
    """The constructor string of a `.pth` file."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in (SETTINGS[head] | TRAINED | changes).items())
    return f"{CLASSES[head]}({arguments})"


def save_pth(path: Path, state: Mapping[str, object], text: str | None = None) -> Path:
    """A container as the public `.pth` files are laid out, with what training adds."""
    arguments = argparse.Namespace(model=constructor() if text is None else text, epochs=3)
    torch.save({"model": dict(state), "args": arguments, "epoch": 3, "best_so_far": 0.5}, path)
    return path


def save_hub(folder: Path, state: Mapping[str, torch.Tensor], head: str = "linear", **changes: object) -> Path:
    """A folder as the model hub lays them out: infinities as bare tokens, every tensor under one name."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS[head] | TRAINED | changes, sort_keys=True))
    removed = {key: key.replace("layer_rn.", "layer") for key in state if ".layer_rn." in key}
    metadata = {key: f"{kept[: -len('0.weight')]}{int(kept[-8]) + 1}_rn.weight" for key, kept in removed.items()}
    stored = {key: value.contiguous() for key, value in state.items() if key not in removed}
    save_file(stored, folder / "model.safetensors", metadata or None)
    return folder
