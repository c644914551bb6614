"""The stage cache: each stage's result lies in a file named by a digest of everything it depends on.

An entry is one safetensors file with the record's tree, the seconds it took and a checksum in its metadata. Entries are
written under a temporary name and renamed, so an interrupted run leaves whole entries or none; an entry that fails its
checksum is computed again, with a line saying so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora3d_splat.console import warn
from lora3d_splat.files import atomic_file, ensure_writable_folder
from lora3d_splat.record_codec import Rename, decode_record, encode_record

T = TypeVar("T")
DIGEST_BYTES = 16


def digest(*parts: Any) -> str:
    """A stable name (32 hexadecimal digits) for settings, tensors, paths, strings and nestings of them.

    Equal values give equal digests on every machine and in every process; class and field names take part.
    """
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a file's bytes."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A stage's result together with what it cost."""

    value: T
    seconds: float
    """wall seconds of the computation, also when it was only loaded now"""
    reused: bool
    """whether it came from the cache"""


class CorruptEntry(Exception):
    """An entry of the cache is cut short, altered or written by something else."""


@dataclass(frozen=True)
class StageCache:
    """Artefacts by stage and key under one folder; raises InputError when the folder cannot be written to."""

    folder: Path

    def __post_init__(self) -> None:
        ensure_writable_folder(self.folder, "cache folder")

    def path(self, stage: str, key: str) -> Path:
        """Where the entry lies, whether it exists or not."""
        return self.folder / stage / f"{key}.safetensors"

    def load(self, stage: str, key: str) -> Stored[Any] | None:
        """The stored result, or None where there is none or it is corrupt (said in a line and removed)."""
        path = self.path(stage, key)
        if not path.exists():
            return None
        try:
            value, facts = read_artifact(path)
            return Stored(value, float(facts["seconds"]), True)
        except (CorruptEntry, KeyError, ValueError) as error:
            warn(f"cache entry {stage}/{path.name} is corrupt ({error}); it is computed again")
            path.unlink(missing_ok=True)
            return None

    def store(self, stage: str, key: str, value: T, seconds: float) -> Stored[T]:
        """Keep a result under its key."""
        write_artifact(self.path(stage, key), value, {"seconds": repr(seconds)})
        return Stored(value, seconds, False)

    def load_or_compute(self, stage: str, key: str, compute: Callable[[], T], recompute: bool = False) -> Stored[T]:
        """The stored result of `stage` under `key`, computing and storing it where it is missing or corrupt."""
        found = None if recompute else self.load(stage, key)
        if found is not None:
            return found
        start = time.perf_counter()
        value = compute()
        return self.store(stage, key, value, time.perf_counter() - start)


def write_artifact(path: Path, value: Any, facts: dict[str, str], rename: Rename = str) -> None:
    """Write a record and some facts about it as one safetensors file."""
    tensors, tree = encode_record(value, rename)
    tree_text = json.dumps(tree)
    metadata = {**facts, "tree": tree_text, "checksum": digest(tensors, tree_text, facts)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_artifact(path: Path) -> tuple[Any, dict[str, str]]:
    """The record and the facts of `write_artifact`; raises CorruptEntry when the file is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptEntry(str(error).splitlines()[0]) from error
    tree_text, checksum = facts.pop("tree", ""), facts.pop("checksum", "")
    if digest(tensors, tree_text, facts) != checksum:
        raise CorruptEntry("its checksum does not fit its content")
    try:
        return decode_record(tensors, json.loads(tree_text)), facts
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # written by another version of the records
        raise CorruptEntry(f"it holds another kind of record: {error}") from error


def _feed(state: Any, part: Any) -> None:
    """Add one value, framed by its kind and length so that no two different values read the same."""
    match part:
        case None | bool() | int() | str():
            _frame(state, type(part).__name__, str(part).encode())
        case float():
            _frame(state, "float", repr(float(part)).encode())
        case Path():
            _frame(state, "path", str(part).encode())
        case bytes():
            _frame(state, "bytes", part)
        case Tensor():
            flat = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            _frame(state, f"{part.dtype} {tuple(part.shape)}", flat)
        case np.ndarray():
            _feed(state, torch.from_numpy(np.array(part)))
        case tuple() | list():
            _frame(state, "sequence", str(len(part)).encode())
            for item in part:
                _feed(state, item)
        case dict():
            _feed(state, sorted(part.items()))
        case _ if is_dataclass(part) and not isinstance(part, type):
            _frame(state, "record", type(part).__name__.encode())
            _feed(state, [(field.name, getattr(part, field.name)) for field in fields(part)])
        case _:
            raise TypeError(f"no stable digest for {type(part).__name__}")


def _frame(state: Any, kind: str, content: bytes | np.ndarray) -> None:
    size = content.nbytes if isinstance(content, np.ndarray) else len(content)
    state.update(f"{kind}:{size}:".encode())
    state.update(content)
