"""SHA-256 of large files, kept beside them in SHA256SUMS, the format that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lora3d_splat.errors import CheckpointError
from lora3d_splat.files import write_text

SUMS = "SHA256SUMS"
BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """64 hexadecimal digits."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def record(folder: Path, name: str, digest: str) -> None:
    """Note the digest of the file `name` in the folder's SHA256SUMS, in place of an earlier one."""
    sums = _read(folder / SUMS) | {name: digest}
    write_text(folder / SUMS, "".join(f"{value}  {key}\n" for key, value in sorted(sums.items())))


def recorded(path: Path) -> str | None:
    """The digest that a file should have: that of SHA256SUMS beside it, or its name in the model hub's own cache."""
    blob = path.resolve().name  # the hub client's snapshots link to files that are named by their digest
    return _read(path.parent / SUMS).get(path.name) or (blob if re.fullmatch("[0-9a-f]{64}", blob) else None)


def verify(path: Path) -> None:
    """Raise CheckpointError where a file is not what its recorded digest says; one without a record passes."""
    expected = recorded(path)
    if expected is not None and sha256(path) != expected:
        raise CheckpointError(
            found=f"{path}, which has changed since it was downloaded",
            accepted=f"the file with the recorded SHA-256 {expected}",
            remedy="delete it and run the same command again to download it afresh",
        )


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = re.findall(r"^([0-9a-fA-F]{64}) [ *](.+)$", path.read_text(encoding="utf-8", errors="replace"), re.M)
    return {name: digest.lower() for digest, name in lines}
