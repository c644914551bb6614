"""LPIPS (Zhang et al. 2018) with the backbones that can be had; nothing here crashes or hangs without a network.

torchmetrics ships the small learned layers; the backbones (AlexNet 233 MB, VGG-16 528 MB) are torchvision's. They are
taken from a path that the user names, from torch hub's cache, or downloaded, in this order.
"""

from __future__ import annotations

import os
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.files import atomic_file
from lora3d_splat.offline import is_offline

LpipsMode = Literal["auto", "cached", "off"]
"""auto: cached backbones, else a download where the network may be used; cached: never download; off: not computed."""

BACKBONE_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""File names of torchvision's weights, as torch hub caches them."""
SOURCE = "https://download.pytorch.org/models/"
CONNECT_SECONDS, DOWNLOAD_SECONDS = 5.0, 120.0
"""A server that does not answer, or a connection too slow, ends the attempt with a reason."""


@dataclass
class Lpips:
    """Both LPIPS networks, loaded when first asked for; holds no torch submodule, so checkpoints stay free of it."""

    mode: LpipsMode = "auto"
    device: torch.device | str = "cpu"
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def distance(self, backbone: str, rendered: Tensor, photo: Tensor) -> float | str:
        """The distance of two pictures (H, W, 3) in [0, 1], or the reason why there is none."""
        if backbone not in self._loaded:
            self._loaded[backbone] = self._load(backbone)
        network = self._loaded[backbone]
        if isinstance(network, str):
            return network
        if min(rendered.shape[:2]) < 64:
            return "the picture is smaller than 64 pixels, too small for the backbone"
        planes = [picture.to(self.device).float().clamp(0, 1).permute(2, 0, 1)[None] for picture in (rendered, photo)]
        return float(network(*planes))

    def _load(self, backbone: str) -> Any | str:
        if self.mode == "off":
            return "switched off (lpips: off)"
        found = find_backbone(backbone, self.mode)
        if isinstance(found, str):
            return found
        try:
            return _network(backbone, found).to(self.device).eval()
        except Exception as error:  # a metric must never cost a finished training
            return f"{found.name} could not be loaded: {str(error).splitlines()[0] if str(error) else type(error)}"


def path_variable(backbone: str) -> str:
    """The environment variable that names a backbone's file."""
    return f"LORA3D_SPLAT_LPIPS_{backbone.upper()}"


def find_backbone(backbone: str, mode: LpipsMode) -> Path | str:
    """The backbone's weights file, or the reason why there is none."""
    variable, name = path_variable(backbone), BACKBONE_FILES[backbone]
    if chosen := os.environ.get(variable):
        path = Path(chosen).expanduser()
        return path if path.is_file() else f"{variable} names {path}, which is no file"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return cached
    if mode == "cached" or is_offline():
        return f"no {name} in {_short(cached.parent)}; put it there, or name it in {variable}"
    return _download(name, cached)


def _short(path: Path) -> str:
    """As people write it: reports are passed on, and whose home it is is nobody's business."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _download(name: str, target: Path) -> Path | str:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    remedy = f"put {name} into {_short(target.parent)} to have it"
    try:
        with urllib.request.urlopen(SOURCE + name, timeout=CONNECT_SECONDS) as stream, atomic_file(target) as temporary:
            note(f"downloading {name} for LPIPS")
            with temporary.open("wb") as out:
                while block := stream.read(1 << 20):
                    out.write(block)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS:.0f} s")
        return target
    except (OSError, ValueError) as error:
        return f"{name} could not be downloaded ({getattr(error, 'reason', error)}); {remedy}"


def _network(backbone: str, weights: Path) -> torch.nn.Module:
    """torchmetrics' LPIPS on backbone weights from a file; (1, 3, H, W) in [0, 1] twice -> the distance."""
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net=backbone, pnet_rand=True)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    own = network.net.state_dict()
    # "slice2.3.weight" is torchvision's "features.3.weight".
    network.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in own})
    return _UnitRange(network)


class _UnitRange(torch.nn.Module):
    """LPIPS for pictures in [0, 1]."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rendered: Tensor, photo: Tensor) -> Tensor:
        return self.network(rendered, photo, normalize=True)
