"""Networks that live outside this package: `path/to/file.py:Class` or `package.module:Class`, imported when asked for.

Unlike a checkpoint, which is read as data, this runs the code that the user names. See docs/networks.md.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from lora3d_splat.errors import InputError
from lora3d_splat.networks.base import PointmapNetwork

MEMBERS = (
    "name", "licence", "patch_size", "long_side", "lora_targets", "confidence_floor", "confidence_cutoff",
    "encode", "decode",
)  # fmt: skip
"""what PointmapNetwork asks for"""
ACCEPTED = "file.py:Class or package.module:Class, where Class() is a torch module that meets PointmapNetwork"


def is_plugged(name: str) -> bool:
    """Whether a network is named by its code: something, a colon, and a Python name."""
    where, colon, what = name.rpartition(":")
    return bool(colon and where) and what.isidentifier()


def load_plugged(name: str) -> PointmapNetwork:
    """Import the code and call `Class()` (a class, or a function that builds a network) without arguments.

    Raises InputError where there is no such code or the result does not meet PointmapNetwork; what the code itself
    raises passes through.
    """
    where, _, what = name.rpartition(":")
    module = _import_file(Path(where).expanduser()) if where.endswith(".py") else _import_module(where)
    build: Callable[[], object] | None = getattr(module, what, None)
    if not callable(build):
        raise InputError(f"no {what} in {where}", ACCEPTED, f"define the class or function {what} there")
    network = build()
    missing = [member for member in MEMBERS if not hasattr(network, member)]
    if not isinstance(network, nn.Module) or missing:
        problem = f"without {', '.join(missing)}" if missing else "that is no torch.nn.Module"
        raise InputError(f"{name}, a network {problem}", ACCEPTED, "see lora3d_splat/networks/base.py")
    return network.eval()  # type: ignore[return-value]


def source_file(name: str) -> Path | None:
    """The file of a network named by its code, found without running the module itself."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where).expanduser()
    try:
        found = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin is not None else None


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under a name that depends on its place and content, so that it is run once."""
    if not path.is_file():
        raise InputError(f"no file {path}", ACCEPTED, "check the path")
    digest = hashlib.sha256(f"{path.absolute()}".encode() + path.read_bytes()).hexdigest()
    name = f"lora3d_network_{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):  # the module is there; something that it needs is not
            raise
        raise InputError(f"no module {name}", ACCEPTED, "install the package, or name a file") from error
