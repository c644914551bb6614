"""Any record of `records.py` as named tensors plus a JSON tree, and back; the form in which stages are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora3d_splat import records

Json = Any


Rename = Callable[[str], str]
"""From a tensor's place in the record, such as `scene.depth.0`, to the name it is stored under."""


def encode_record(value: Any, rename: Rename = str) -> tuple[dict[str, Tensor], Json]:
    """Split a record (or a tuple, dict, scalar of them) into its tensors and a JSON tree that refers to them."""
    tensors: dict[str, Tensor] = {}

    def keep(place: str, tensor: Tensor) -> str:
        tensors[rename(place)] = tensor
        return rename(place)

    return tensors, _encode(value, "", keep)


def decode_record(tensors: dict[str, Tensor], tree: Json) -> Any:
    """Inverse of `encode_record`; raises KeyError, TypeError or ValueError when the two do not fit."""
    match tree:
        case {"record": name, "fields": content}:
            record = getattr(records, name)
            return record(**{key: decode_record(tensors, part) for key, part in content.items()})
        case {"tuple": parts}:
            return tuple(decode_record(tensors, part) for part in parts)
        case {"dict": content}:
            return {key: decode_record(tensors, part) for key, part in content.items()}
        case {"tensor": name}:
            return tensors[name]
        case {"array": name}:
            return tensors[name].numpy()
        case {"path": text}:
            return Path(text)
        case {"float": text}:
            return float(text)
        case None | bool() | int() | str():
            return tree
    raise ValueError(f"no record is written as {tree!r}")


def _encode(value: Any, place: str, keep: Callable[[str, Tensor], str]) -> Json:
    def inner(part: Any, name: object) -> Json:
        return _encode(part, f"{place}.{name}" if place else str(name), keep)

    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return {"float": repr(float(value))}  # repr is exact and, unlike JSON, knows inf and nan
        case Path():
            return {"path": str(value)}
        case Tensor():  # a copy, since safetensors refuses tensors that share storage
            copy = torch.clone(value.detach().cpu(), memory_format=torch.contiguous_format)
            return {"tensor": keep(place, copy)}
        case np.ndarray():
            return {"array": keep(place, torch.from_numpy(np.array(value)))}
        case tuple() | list():
            return {"tuple": [inner(part, index) for index, part in enumerate(value)]}
        case dict():
            return {"dict": {str(key): inner(part, key) for key, part in value.items()}}
    if is_dataclass(value) and getattr(records, type(value).__name__, None) is type(value):
        content = {field.name: inner(getattr(value, field.name), field.name) for field in fields(value)}
        return {"record": type(value).__name__, "fields": content}
    raise TypeError(f"{type(value).__name__} is no record of records.py and cannot be stored")
