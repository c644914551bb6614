"""The constructor arguments of a DUSt3R or MASt3R network, under the names that checkpoints store them by."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from lora3d_splat.errors import CheckpointError

Model = Literal["dust3r", "mast3r"]
CLASSES: dict[str, Model] = {"AsymmetricCroCo3DStereo": "dust3r", "AsymmetricMASt3R": "mast3r"}
"""class name of a stored constructor string -> model"""
PATCH_EMBEDS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")
HEAD_TYPES = ("linear", "dpt", "catmlp+dpt")
MAST3R_ARGUMENTS = ("two_confs", "desc_mode", "desc_conf_mode")
DPT_PATCH, DPT_DEPTH = 16, 10
"""patch size that the convolutional head implies, and the decoder layers that it needs at least"""
LARGEST = 1 << 16
"""Sizes above this are those of a damaged file, not of a network."""
LONGEST_CONSTRUCTOR = 10_000
"""characters"""


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
    """linear, dpt, or catmlp+dpt (with local descriptors)"""
    output_mode: str = "pts3d"
    """pts3d, or pts3d+descK with descriptors of K channels"""
    depth_mode: tuple[Any, ...] = ("exp", -math.inf, math.inf)
    conf_mode: tuple[Any, ...] | None = ("exp", 1, math.inf)
    desc_mode: str = "norm"
    """descriptors have length 1; always so here"""
    two_confs: bool = False
    """descriptors have a confidence of their own"""
    desc_conf_mode: tuple[Any, ...] | None = None
    """None: as conf_mode"""
    freeze: str = "none"
    """of training; ignored"""
    mask_ratio: float = 0.9
    """of pre-training; ignored"""

    def __post_init__(self) -> None:
        wrong = [name for name, right in self._rules().items() if not right]
        if wrong:
            raise CheckpointError(
                found="a network with " + ", ".join(f"{name}={_short(getattr(self, name))}" for name in wrong),
                accepted="the settings of the public DUSt3R and MASt3R networks: rotary positions, unbounded depth, "
                f"a head {', '.join(HEAD_TYPES)}, descriptors with catmlp+dpt alone",
                remedy="use one of the public checkpoints",
            )

    def _rules(self) -> dict[str, bool]:
        """Whether each argument has a type and a value that this implementation serves."""
        sizes = ("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads")
        rules = {name: _is_size(getattr(self, name)) for name in (*sizes, "patch_size")}
        rules |= {
            "mlp_ratio": _is_number(self.mlp_ratio) and 0 < self.mlp_ratio <= 64,
            "img_size": isinstance(self.img_size, tuple)
            and len(self.img_size) == 2
            and all(_is_size(side) and rules["patch_size"] and side % self.patch_size == 0 for side in self.img_size),
            "pos_embed": self.rotary_base is not None,
            "norm_im2_in_dec": self.norm_im2_in_dec is True,
            "patch_embed_cls": self.patch_embed_cls in PATCH_EMBEDS,
            "landscape_only": isinstance(self.landscape_only, bool),
            "head_type": self.head_type in HEAD_TYPES,
            "output_mode": self.descriptor_width is not None
            and (self.descriptor_width > 0) == (self.head_type == "catmlp+dpt"),
            "depth_mode": _is_mode(self.depth_mode, ("exp", "linear", "square"))
            and all(math.isinf(bound) for bound in self.depth_mode[1:]),
            "conf_mode": self.conf_mode is None or _is_mode(self.conf_mode, ("exp", "sigmoid")),
            "desc_mode": self.desc_mode == "norm",
            "two_confs": isinstance(self.two_confs, bool),
            "desc_conf_mode": self.desc_conf_mode is None or _is_mode(self.desc_conf_mode, ("exp", "sigmoid")),
        }
        for side in ("enc", "dec"):
            width, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if rules[f"{side}_embed_dim"] and rules[f"{side}_num_heads"]:  # four rotary segments a head
                rules[f"{side}_num_heads"] = width % (4 * heads) == 0
        if self.head_type != "linear":
            rules["patch_size"] &= self.patch_size == DPT_PATCH
            rules["dec_depth"] = rules["dec_depth"] and self.dec_depth >= DPT_DEPTH
        return rules

    @property
    def model(self) -> Model:
        """Which network these are the settings of."""
        return "mast3r" if self.descriptor_width else "dust3r"

    @property
    def rotary_base(self) -> float | None:
        """Base of the rotary frequencies, None for other position encodings."""
        found = re.fullmatch(r"RoPE([1-9]\d{0,8})", self.pos_embed) if isinstance(self.pos_embed, str) else None
        return float(found[1]) if found else None

    @property
    def descriptor_width(self) -> int | None:
        """K of pts3d+descK, 0 for pts3d, None for anything else."""
        mode = self.output_mode if isinstance(self.output_mode, str) else ""
        found = re.fullmatch(r"pts3d(?:\+desc([1-9]\d{0,3}))?", mode)
        return int(found[1] or 0) if found else None

    @staticmethod
    def from_arguments(arguments: dict[str, Any], model: Model | None = None) -> Dust3RConfig:
        """Check and convert stored arguments (lists become tuples); raises CheckpointError on unknown or unusable ones.

        Without `model`, descriptor arguments tell MASt3R from DUSt3R, as in a `config.json`, which names no class.
        """
        given = {name: _converted(value) for name, value in arguments.items()}
        if model is None:
            says = any(name in given for name in MAST3R_ARGUMENTS) or "desc" in str(given.get("output_mode"))
            model = "mast3r" if says else "dust3r"
        known = {field.name for field in fields(Dust3RConfig)} - set(() if model == "mast3r" else MAST3R_ARGUMENTS)
        unknown = sorted(set(given) - known)
        if unknown:
            raise CheckpointError(
                found=f"unknown network arguments {', '.join(unknown[:4])}",
                accepted=f"the arguments of {model}: {', '.join(sorted(known))}",
                remedy="check that the checkpoint is of the DUSt3R family",
            )
        if _is_size(given.get("img_size")):
            given["img_size"] = (given["img_size"], given["img_size"])
        config = Dust3RConfig(**given)
        if config.model != model:
            raise CheckpointError(
                found=f"a {model} network with output_mode={config.output_mode!r}",
                accepted="pts3d for dust3r, pts3d+descK with the head catmlp+dpt for mast3r",
                remedy=f"check the settings, or build it as {config.model}",
            )
        return config


def parse_constructor(text: str) -> tuple[Model, dict[str, Any]]:
    """Model and arguments of a stored constructor string, read as data and never executed.

    Raises CheckpointError for anything but a call of a known class with literal keyword arguments.
    """
    try:
        if len(text) > LONGEST_CONSTRUCTOR:
            raise ValueError(f"{len(text)} characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keyword arguments")
        if call.func.id not in CLASSES:
            raise ValueError(f"unknown class {call.func.id}")
        arguments = {_keyword(item): _literal(item.value) for item in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError("an argument is given twice")
        return CLASSES[call.func.id], arguments
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            found=f"the constructor string {text[:80]!r} ({error})",
            accepted=f"{' or '.join(CLASSES)}(name=literal, ...)",
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
        case ast.UnaryOp(op=ast.USub(), operand=operand) if _is_number(number := _literal(operand)):
            return -number
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_literal(item) for item in items)
    raise ValueError(f"{ast.unparse(node)[:40]} is not a literal")


def _converted(value: Any) -> Any:
    """Lists as tuples, and infinities that strict JSON had to write as strings as numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(float(part) if part in ("inf", "-inf") else part for part in value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _is_mode(value: object, names: tuple[str, ...]) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and value[0] in names and all(map(_is_number, value[1:]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
