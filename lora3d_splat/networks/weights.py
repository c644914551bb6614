"""From a name to a file: the public checkpoints, where they lie on this disk, and fetching them when asked by name.

The public weights are not free for every use, so they are never bundled and never downloaded without being named.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lora3d_splat.console import note
from lora3d_splat.errors import InputError
from lora3d_splat.files import default_cache_folder
from lora3d_splat.networks.download import fetch
from lora3d_splat.networks.dust3r import WEIGHTS_LICENCE
from lora3d_splat.networks.heads import HEADS, require_head

HUB = "https://huggingface.co"
FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class PublicCheckpoint:
    """A published network: its id on the model hub, its head, and the licence of its weights."""

    hub_id: str
    head_type: str
    licence: str = WEIGHTS_LICENCE

    @property
    def stem(self) -> str:
        """Name of the checkpoint without its owner; also that of its `.pth` file."""
        return self.hub_id.rsplit("/", 1)[1]


PUBLIC = {
    "dust3r-512": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", "dpt"),
    "dust3r-512-linear": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_512_linear", "linear"),
    "dust3r-224": PublicCheckpoint("naver/DUSt3R_ViTLarge_BaseDecoder_224_linear", "linear"),
    "mast3r-512": PublicCheckpoint("naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", "catmlp+dpt"),
}
"""in the order in which `auto` prefers them"""


def weights_folder() -> Path:
    """Where checkpoints are kept: `weights` in the cache folder."""
    return default_cache_folder() / "weights"


def hub_folder(hub_id: str) -> Path:
    """Where the model hub's own client caches a model."""
    home = os.environ.get("HF_HOME")
    root = Path(home).expanduser() if home else Path.home() / ".cache" / "huggingface"
    return root / "hub" / f"models--{hub_id.replace('/', '--')}" / "snapshots"


def find_on_disk(name: str) -> Path | None:
    """The checkpoint of a public network on this disk: ours, a `.pth` put there by hand, or the hub client's."""
    public = PUBLIC[name]
    folders = [weights_folder() / public.stem, *sorted(hub_folder(public.hub_id).glob("*"))]
    for folder in folders:
        if all((folder / file).is_file() for file in FILES):
            return folder
    pth = weights_folder() / f"{public.stem}.pth"
    return pth if pth.is_file() else None


def obtain(name: str, hub: str | None = None) -> Path:
    """The checkpoint of a public network, downloaded once where it is not on disk; prints the licence of the weights.

    `hub` is the server's address (default: HF_ENDPOINT, else the public hub). Raises MissingPartError for networks
    whose head is not implemented, before anything is downloaded.
    """
    public = PUBLIC[name]
    require_head(public.head_type)
    found = find_on_disk(name)
    note(f"{name}: weights under {public.licence}")
    if found is not None:
        return found
    folder = weights_folder() / public.stem
    base = f"{hub or os.environ.get('HF_ENDPOINT') or HUB}/{public.hub_id}/resolve/main"
    note(f"{name}: downloading about 2 GB, once, to {folder}")
    for file in FILES:
        if not (folder / file).is_file():
            fetch(f"{base}/{file}", folder / file)
    return folder


def resolve_auto() -> str:
    """The best public network whose weights are already on this disk, else `compact`; nothing is downloaded."""
    usable = (name for name, public in PUBLIC.items() if public.head_type in HEADS)
    return next((name for name in usable if find_on_disk(name) is not None), "compact")


def existing_path(name: str) -> Path:
    """The path that a network is given by; raises InputError for what is neither a known name nor on disk."""
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            found=f"the network {name!r}, neither a known name nor a file",
            accepted=f"compact, {', '.join(PUBLIC)}, auto, or the path of a checkpoint",
            remedy="check the spelling, or give the path of a .pth or .safetensors file",
        )
    return path
