"""The constructor arguments of a DUSt3R network, under the names that checkpoints store them by."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, fields
from typing import Any

from lora3d_splat.errors import CheckpointError
from lora3d_splat.networks.heads import require_head

DUST3R_CLASS = "AsymmetricCroCo3DStereo"
MAST3R_CLASS = "AsymmetricMASt3R"
PATCH_EMBEDS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")
MAST3R_ARGUMENTS = ("two_confs", "desc_mode", "desc_conf_mode")


@dataclass(frozen=True)
class Dust3RConfig:
    """Shape and conventions of a network; the defaults are those that hold where a checkpoint is silent."""

    enc_embed_dim: int = 768
    enc_depth: int = 12
    enc_num_heads: int = 12
    dec_embed_dim: int = 512
    dec_depth: int = 8
    dec_num_heads: int = 16
    mlp_ratio: float = 4
    patch_size: int = 16
    img_size: tuple[int, int] = (224, 224)
    """(H, W) it was trained at; only says which image size to prepare"""
    pos_embed: str = "cosine"
    """'RoPE' and the base of its frequencies; 'cosine' is not supported"""
    norm_im2_in_dec: bool = True
    """the memory is normalised in the decoder; always so here"""
    patch_embed_cls: str = "PatchEmbedDust3R"
    """'ManyAR_PatchEmbed' stores portrait images transposed so that they share a batch with landscape ones"""
    landscape_only: bool = True
    """maps come out in the stored landscape layout rather than upright"""
    head_type: str = "linear"
    output_mode: str = "pts3d"
    depth_mode: tuple[Any, ...] = ("exp", -math.inf, math.inf)
    conf_mode: tuple[Any, ...] | None = ("exp", 1, math.inf)
    freeze: str = "none"
    """of training; ignored"""
    mask_ratio: float = 0.9
    """of pre-training; ignored"""

    def __post_init__(self) -> None:
        require_head(self.head_type)
        problems = {
            f"pos_embed={self.pos_embed!r}": self.rotary_base is None,
            f"output_mode={self.output_mode!r}": self.output_mode != "pts3d",
            f"patch_embed_cls={self.patch_embed_cls!r}": self.patch_embed_cls not in PATCH_EMBEDS,
            f"depth_mode={self.depth_mode!r}": self.depth_mode[0] not in ("exp", "linear", "square")
            or any(math.isfinite(bound) for bound in self.depth_mode[1:]),
            f"conf_mode={self.conf_mode!r}": self.conf_mode is not None and self.conf_mode[0] not in ("exp", "sigmoid"),
            f"norm_im2_in_dec={self.norm_im2_in_dec}": not self.norm_im2_in_dec,
        }
        for setting, wrong in problems.items():
            if wrong:
                raise CheckpointError(
                    found=f"a network with {setting}",
                    accepted="the settings of the public DUSt3R networks: rotary positions, unbounded depth, 3D points",
                    remedy="use one of the public checkpoints",
                )

    @property
    def rotary_base(self) -> float | None:
        """Base of the rotary frequencies, None for other position encodings."""
        digits = self.pos_embed.removeprefix("RoPE")
        return float(digits) if self.pos_embed.startswith("RoPE") and digits.isdecimal() else None

    @staticmethod
    def from_arguments(arguments: dict[str, Any]) -> Dust3RConfig:
        """Check and convert stored arguments (lists become tuples); raises CheckpointError on unknown ones."""
        known = {field.name for field in fields(Dust3RConfig)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
        if any(name in given for name in MAST3R_ARGUMENTS):
            require_head("catmlp+dpt")
        require_head(given.get("head_type", "linear"))
        unknown = sorted(set(given) - known)
        if unknown:
            raise CheckpointError(
                found=f"unknown network arguments {', '.join(unknown[:4])}",
                accepted=f"the arguments {', '.join(sorted(known))}",
                remedy="check that the checkpoint is of the DUSt3R family",
            )
        if isinstance(given.get("img_size"), int):
            given["img_size"] = (given["img_size"], given["img_size"])
        return Dust3RConfig(**given)


def parse_constructor(text: str) -> dict[str, Any]:
    """Arguments of a stored constructor string, read as data and never executed; raises CheckpointError otherwise."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keyword arguments")
        if call.func.id == MAST3R_CLASS:
            require_head("catmlp+dpt")
        if call.func.id != DUST3R_CLASS:
            raise ValueError(f"unknown class {call.func.id}")
        return {_keyword(item): _literal(item.value) for item in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(
            found=f"the constructor string {text[:80]!r} ({error})",
            accepted=f"{DUST3R_CLASS}(name=literal, ...)",
            remedy="download the checkpoint again from its publisher",
        ) from error


def _keyword(item: ast.keyword) -> str:
    if item.arg is None:
        raise ValueError("** is not allowed")
    return item.arg


def _literal(node: ast.expr) -> Any:
    """A string, number, boolean, None, the bare name inf, the negative of a number, or a tuple or list of these."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _literal(operand), (int, float)):
            return -number
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_literal(item) for item in items)
    raise ValueError(f"{ast.unparse(node)[:40]} is not a literal")
