"""Pointmap networks: one protocol, loaded by name. Heavy imports happen when a network is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lora3d_splat.networks.base import PointmapNetwork


def load_network(name: str = "auto", device: str = "cpu") -> PointmapNetwork:
    """The network `compact | dust3r-512 | dust3r-512-linear | dust3r-224 | mast3r-512 | PATH | auto` in eval mode.

    `auto` takes public weights that are already on disk, else `compact`. `device` is a torch device or "auto".
    Raises InputError for unknown names, CheckpointError for unusable files, MissingPartError for networks whose parts
    are not there.
    """
    from lora3d_splat.networks import weights

    if name == "auto":
        name = weights.resolve_auto()
    if name == "compact":
        network = _load_compact(None)
    elif name in weights.PUBLIC:
        from lora3d_splat.networks.checkpoint import load_dust3r

        network = load_dust3r(weights.obtain(name), name, weights.PUBLIC[name].licence)
    else:
        network = _load_path(weights.existing_path(name))
    return network.to(choose_device(device)).requires_grad_(False)


def choose_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is the GPU where there is one; raises InputError where it is missing."""
    import torch

    from lora3d_splat.errors import InputError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name!r}, but no usable CUDA GPU", "cpu or auto", "use --device auto")
    return torch.device(name)


def network_digest(network: PointmapNetwork) -> str:
    """32 hexadecimal digits for what the network computes: its name and every weight, an adapter's included."""
    import hashlib

    import torch

    state = hashlib.blake2b(network.name.encode(), digest_size=16)
    for key, value in sorted(network.state_dict().items()):
        state.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def image_shape(network: PointmapNetwork) -> str:
    """Which shapes of image the network was trained for, as `images.resize.Shape`."""
    return getattr(network, "image_shape", "free")


def _load_path(path: Path) -> PointmapNetwork:
    """A checkpoint file: ours when its metadata describes the compact architecture, else DUSt3R's."""
    from lora3d_splat.networks.checkpoint import load_dust3r

    if path.suffix == ".safetensors" and "architecture" in _metadata(path):
        return _load_compact(path)
    return load_dust3r(path, path.stem)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _load_compact(path: Path | None) -> PointmapNetwork:
    from lora3d_splat.networks.compact import load_compact

    return load_compact(path)
