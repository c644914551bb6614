"""Deterministic weights for any state dict, tiny networks made of them, and views to feed them."""

from __future__ import annotations

import math
import re
import zlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.networks.dust3r import Dust3R
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.records import PixelAffine, View

GAINS = (
    (lambda key, owner: owner in ("qkv", "projq", "projk"), 1.5),
    (lambda key, owner: ".dpt.act_postprocess.1.0." in key or ".dpt.act_postprocess.2.0." in key, 0.25),
    (lambda key, owner: ".dpt." in key and "resConfUnit" in key, 0.7),
    (lambda key, owner: ".dpt.head.0." in key or ".dpt.head.2." in key, 1.4),
    (lambda key, owner: ".dpt.head.4." in key, 0.3),
    (lambda key, owner: key.startswith("downstream_head") and key.split(".")[1] == "proj", 0.5),
)
TRANSPOSED = ("act_postprocess.0.1.weight", "act_postprocess.1.1.weight")


@cache
def recipe_tensor(key: str, shape: tuple[int, ...], salt: int = 0) -> Tensor:
    """Uniform values of the recipe's mean and standard deviation, seeded by the key's CRC-32; not to be changed."""
    key = re.sub(r"scratch\.layer_rn\.(\d)\.weight$", lambda m: f"scratch.layer{int(m[1]) + 1}_rn.weight", key)
    raw = np.random.PCG64(zlib.crc32(f"{key}#{salt}".encode())).random_raw(math.prod(shape))
    unit = math.sqrt(3) * (2 * (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 1)
    mean, deviation = _moments(key, shape)
    return torch.from_numpy((mean + deviation * unit).astype(np.float32).reshape(shape))


def _moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    parts = key.split(".")
    owner = parts[-2] if len(parts) > 1 else ""
    if key == "mask_token":
        return 0.0, 0.02
    if owner.startswith("norm") or owner in ("enc_norm", "dec_norm"):
        return float(parts[-1] == "weight"), 0.1
    if parts[-1] == "bias":
        return 0.0, 0.1
    fan = shape[0] if key.endswith(TRANSPOSED) else math.prod(shape[1:])
    return 0.0, next((gain for rule, gain in GAINS if rule(key, owner)), 1.0) / math.sqrt(fan)


TINY = {
    "pos_embed": "RoPE100",
    "img_size": (64, 64),
    "landscape_only": False,
    "enc_embed_dim": 64,
    "enc_depth": 2,
    "enc_num_heads": 4,
    "dec_embed_dim": 48,
    "dec_depth": 3,
    "dec_num_heads": 2,
}
TINY_DPT = TINY | {"head_type": "dpt", "dec_depth": 12}
DESCRIPTORS = {
    "head_type": "catmlp+dpt",
    "output_mode": "pts3d+desc24",
    "two_confs": True,
    "desc_conf_mode": ("exp", 0, math.inf),
}
TINY_MAST3R = TINY_DPT | DESCRIPTORS
FULL = {
    "pos_embed": "RoPE100",
    "img_size": (512, 512),
    "patch_embed_cls": "ManyAR_PatchEmbed",
    "enc_embed_dim": 1024,
    "enc_depth": 24,
    "enc_num_heads": 16,
    "dec_embed_dim": 768,
    "dec_depth": 12,
    "dec_num_heads": 12,
}
"""of the public networks at 512, without their heads"""


def recipe_network(arguments: dict[str, object] | None = None, salt: int = 0) -> Dust3R:
    """A network in eval mode with recipe weights; tiny unless arguments are given."""
    with torch.device("meta"):
        network = Dust3R(Dust3RConfig.from_arguments(dict(arguments or TINY)), name="tiny")
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key: recipe_tensor(key, shape, salt).clone() for key, shape in shapes.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count, 3, height, width) in [-1, 1]"""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_view(index: int, size: tuple[int, int]) -> View:
    """A view of smooth noise at network resolution."""
    rng = np.random.default_rng(index)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 4, 4)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
    pixels = image.round().to(torch.uint8).numpy()
    name = f"{index:03d}.png"
    return View(name, name, size[1], size[0], pixels, PixelAffine(1, 1, 0, 0), f"digest{index}")  # type: ignore[arg-type]
