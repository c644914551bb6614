"""Files that are either whole or absent: everything is written under a temporary name and then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora3d_splat.errors import InputError


def default_cache_folder() -> Path:
    """The environment variable LORA3D_SPLAT_CACHE, else ~/.cache/lora3d-splat; never beside the photographs."""
    chosen = os.environ.get("LORA3D_SPLAT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lora3d-splat"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` when the block ends well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it replaces `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ensure_writable_folder(folder: Path, purpose: str) -> Path:
    """Make `folder` and prove that a file can be written into it; raises InputError before any long work starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            found=f"{purpose} {folder}, which cannot be written to ({error.strerror or error})",
            accepted="a folder that can be made and written to",
            remedy="choose another folder, or mend its permissions or free space",
        ) from error
    return folder


def folder_bytes(folder: Path) -> int:
    """Total size of the files under `folder`; 0 where it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _umask() -> int:
    """mkstemp makes private files; what we write should be as readable as any other file of the user."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
