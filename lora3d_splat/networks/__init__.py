"""Pointmap networks: one protocol, loaded by name. Heavy imports happen when a network is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lora3d_splat.images.resize import Shape
    from lora3d_splat.networks.base import PointmapNetwork


def load_network(name: str = "auto", device: str = "cpu") -> PointmapNetwork:
    """A network in eval mode without gradients; says what licence its weights are under, once.

    `name`: compact, dust3r-512, dust3r-512-linear, dust3r-224, mast3r-512; auto (public weights that are already on
    disk, else compact); the path of a checkpoint; owner/model on the hub; or file.py:Class. `device` is a torch device
    or "auto". Raises InputError for unknown names, CheckpointError for unusable files, MissingPartError for weights
    that cannot be had.
    """
    from lora3d_splat.networks import weights

    network = _load(weights.resolve_auto() if name == "auto" else name)
    weights.tell_licence(network.name, network.licence)
    return network.to(choose_device(device)).requires_grad_(False)


def build_network(model: str, **config: Any) -> torch.nn.Module:
    """An untrained DUSt3R ("dust3r") or MASt3R ("mast3r") network from the constructor arguments of its checkpoints.

    Called with two views {"img": (B, 3, H, W) in [-1, 1], "true_shape": (B, 2)} it returns {"pts3d", "conf"} and
    {"pts3d_in_other_view", "conf"}, MASt3R also "desc" and "desc_conf"; its `state_dict` has the keys of the public
    files. Raises InputError for another model, CheckpointError for arguments that are unknown or not supported.
    """
    from lora3d_splat.errors import InputError
    from lora3d_splat.networks.dust3r import Dust3R
    from lora3d_splat.networks.dust3r_config import Dust3RConfig

    if model not in ("dust3r", "mast3r"):
        raise InputError(f"the model {model!r}", "dust3r or mast3r", "use load_network for networks by name")
    return Dust3R(Dust3RConfig.from_arguments(config, model)).eval()  # type: ignore[arg-type]


def network_files(name: str) -> tuple[Path, ...]:
    """The files that a network is made of, found without loading it; none for weights that are still to be downloaded.

    Raises InputError for what is neither a known name nor on disk.
    """
    from lora3d_splat.networks import compact, plugged, weights

    name = weights.resolve_auto() if name == "auto" else name
    if name == "compact":
        return (compact.CHECKPOINT,)
    if plugged.is_plugged(name):
        file = plugged.source_file(name)
        return () if file is None else (file,)
    on_hub = name in weights.PUBLIC or weights.is_hub_id(name)
    path = weights.find_on_disk(weights.public_name(name) or name) if on_hub else weights.existing_path(name)
    if path is None:
        return ()
    return tuple(sorted(path.iterdir())) if path.is_dir() else (path,)


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
    """32 hexadecimal digits for what a network computes: its name, revision and every weight, an adapter's included.

    Of a network from outside this package, whose code may change, also the file of its class.
    """
    import hashlib

    import torch

    state = hashlib.blake2b(network.name.encode(), digest_size=16)
    state.update(f"revision {getattr(network, 'revision', 1)};".encode())
    state.update(_foreign_code(network))
    for key, value in sorted(network.state_dict().items()):
        state.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def image_shape(network: PointmapNetwork) -> Shape:
    """Which shapes of image the network was trained for."""
    return getattr(network, "image_shape", "free")


def _load(name: str) -> PointmapNetwork:
    from lora3d_splat.networks import plugged, weights
    from lora3d_splat.networks.checkpoint import load_dust3r
    from lora3d_splat.networks.compact import load_compact

    if name == "compact":
        return load_compact()
    if plugged.is_plugged(name):
        return plugged.load_plugged(name)
    if name in weights.PUBLIC or weights.is_hub_id(name):
        name = weights.public_name(name) or name
        return load_dust3r(weights.obtain(name), name)
    path = weights.existing_path(name)
    if path.suffix == ".safetensors" and "architecture" in _metadata(path):
        return load_compact(path)
    return load_dust3r(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _foreign_code(network: PointmapNetwork) -> bytes:
    import sys

    module = type(network).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    return b"" if module.startswith("lora3d_splat.") or file is None else Path(file).read_bytes()
