"""From a name to files: the public checkpoints, where they lie on this disk, and fetching them when asked by name.

The public weights are not free for every use, so they are never bundled and never downloaded without being named.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lora3d_splat.console import note
from lora3d_splat.download import fetch
from lora3d_splat.errors import InputError
from lora3d_splat.files import default_cache_folder

HUB = "https://huggingface.co"
CONFIG, MODEL = FILES = ("config.json", "model.safetensors")
DUST3R_LICENCE = "CC BY-NC-SA 4.0 (non-commercial), and the terms of the training data"
MAST3R_LICENCE = f"{DUST3R_LICENCE}, of which those of Map-free are particularly restrictive"
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".json", ".py")
"""what ends in one of these is a file, not the id of a model on the hub"""


@dataclass(frozen=True)
class PublicCheckpoint:
    """A network on the model hub: its id, and the licence of its weights."""

    hub_id: str
    licence: str

    @property
    def stem(self) -> str:
        """Name of the checkpoint without its owner; also that of its `.pth` file."""
        return self.hub_id.rsplit("/", 1)[1]


PUBLIC = {
    "dust3r-512": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", DUST3R_LICENCE),
    "dust3r-512-linear": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_512_linear", DUST3R_LICENCE),
    "dust3r-224": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_224_linear", DUST3R_LICENCE),
    "mast3r-512": PublicCheckpoint("naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", MAST3R_LICENCE),
}
"""in the order in which `auto` prefers them"""


def public_name(text: str) -> str | None:
    """The name under which a public network is known here, given that name or its hub id."""
    return next((name for name, public in PUBLIC.items() if text in (name, public.hub_id)), None)


def public_name_in(path: Path) -> str | None:
    """The same for a path of which a part is the name of a public file or folder, also as the hub's client names it."""
    parts = {part for each in path.absolute().parts for part in (each, each.rsplit("--", 1)[-1], Path(each).stem)}
    return next((name for name, public in PUBLIC.items() if public.stem in parts), None)


def is_hub_id(name: str) -> bool:
    """Whether `owner/model` can only be meant as an id of the hub: nothing of that name lies on this disk."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or name.endswith(SUFFIXES):
        return False
    return not Path(name).exists() and not Path(name).parent.exists()


def weights_folder() -> Path:
    """Where checkpoints are kept: `weights` in the cache folder."""
    return default_cache_folder() / "weights"


def own_folder(name: str) -> Path:
    """Where a network, by public name or hub id, is downloaded to."""
    public = PUBLIC.get(name)
    return weights_folder() / (public.stem if public else name.replace("/", "--"))


def hub_folder(hub_id: str) -> Path:
    """Where the model hub's own client caches a model."""
    home = os.environ.get("HF_HOME")
    root = Path(home).expanduser() if home else Path.home() / ".cache" / "huggingface"
    return root / "hub" / f"models--{hub_id.replace('/', '--')}" / "snapshots"


def find_on_disk(name: str) -> Path | None:
    """The checkpoint of a network by public name or hub id: ours, the hub client's, or a `.pth` put there by hand."""
    hub_id = PUBLIC[name].hub_id if name in PUBLIC else name
    for folder in (own_folder(name), *sorted(hub_folder(hub_id).glob("*"))):
        if all((folder / file).is_file() for file in FILES):
            return folder
    pth = own_folder(name).with_suffix(".pth")
    return pth if pth.is_file() else None


def obtain(name: str, hub: str | None = None) -> Path:
    """The checkpoint of a network by public name or hub id, downloaded once where it is not on this disk.

    `hub` is the server's address (default: HF_ENDPOINT, else the public hub). Raises what `fetch` raises.
    """
    found = find_on_disk(name)
    if found is not None:
        return found
    hub_id, folder = (PUBLIC[name].hub_id if name in PUBLIC else name), own_folder(name)
    base = f"{hub or os.environ.get('HF_ENDPOINT') or HUB}/{hub_id}/resolve/main"
    note(f"{name}: downloading once (about 2 GB for the public networks) to {folder}")
    for file in FILES:
        if not (folder / file).is_file():
            fetch(f"{base}/{file}", folder / file)
    return folder


def resolve_auto() -> str:
    """The best public network whose weights are already on this disk, else `compact`; nothing is downloaded."""
    return next((name for name in PUBLIC if find_on_disk(name) is not None), "compact")


def existing_path(name: str) -> Path:
    """The path that a network is given by; raises InputError for what is neither a known name nor on disk."""
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            found=f"the network {name!r}, neither a known name nor a file",
            accepted=f"compact, {', '.join(PUBLIC)}, auto, the path of a checkpoint (.pth, .safetensors, or a folder "
            f"with {' and '.join(FILES)}), owner/model on the hub, or file.py:Class",
            remedy="check the spelling, or give the path of a .pth or .safetensors file",
        )
    return path


@cache
def tell_licence(name: str, licence: str) -> None:
    """Print the licence of a network's weights, once in a process."""
    note(f"{name}: weights under {licence}")
