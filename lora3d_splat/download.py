"""Large files over the network, once: resumed where they stopped, verified, and renamed only when whole."""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from lora3d_splat.checksums import record, sha256
from lora3d_splat.console import stage
from lora3d_splat.errors import CheckpointError, InputError, MissingPartError
from lora3d_splat.offline import VARIABLES, is_offline

CHUNK = 1 << 20
TIMEOUT = 30.0
"""seconds without a byte after which a connection is given up"""
PATIENCE = 3
"""attempts in a row that may bring nothing"""
ATTEMPTS = 100
PAUSE = 1.0
"""seconds between two attempts"""
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which asking again makes sense"""
FAILURES = (OSError, HTTPException, ValueError)
"""of connections, servers and addresses; urllib's own error is an OSError"""


@dataclass
class Announced(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps what the first server says about the file (hub headers of linked files)."""

    size: int | None = None
    sha256: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.read(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def read(self, headers: Any) -> None:
        """Take size and SHA-256 from the headers where they are given."""
        if headers.get("X-Linked-Size", "").isdecimal():
            self.size = int(headers["X-Linked-Size"])
        tag = headers.get("X-Linked-Etag", "").strip('"').lower()
        if re.fullmatch("[0-9a-f]{64}", tag):
            self.sha256 = tag


def fetch(url: str, target: Path, expected: str | None = None, timeout: float = TIMEOUT) -> Path:
    """Download `url` to `target` and record its SHA-256 beside it; returns `target`.

    A connection that stalls or breaks is taken up again where it stopped, within this call and in later ones. The
    length is checked against the server's, the digest against `expected` or what the hub announces. Raises
    MissingPartError when the file cannot be had or the network may not be used, CheckpointError (and starts afresh
    next time) when it is damaged, InputError where the disk is too small.
    """
    if is_offline():
        raise MissingPartError(
            found=f"{url}, which is not on this disk, while the network may not be used",
            accepted="weights on this disk",
            remedy=f"run once without --offline (and {', '.join(VARIABLES)}), or put the file at {target}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    announced = Announced(sha256=expected)
    failure = _receive_whole(url, partial, announced, timeout)
    if failure is not None:
        raise MissingPartError(
            found=f"{url}, which could not be downloaded ({failure})",
            accepted="a reachable server, or the file already on disk",
            remedy=f"run the same command again to continue, or get the file by other means and put it at {target}",
        ) from failure
    record(target.parent, target.name, _verified(partial, url, announced))
    os.replace(partial, target)
    return target


def _receive_whole(url: str, partial: Path, announced: Announced, timeout: float) -> Exception | None:
    """Ask again until the file is whole; the last failure where there is no hope left."""
    fruitless = 0
    for _ in range(ATTEMPTS):
        before = _size(partial)
        try:
            _receive(url, partial, announced, timeout)
            if announced.size is None or _size(partial) >= announced.size:
                return None
            failure: Exception = ConnectionError(f"only {_size(partial)} of {announced.size} bytes came")
        except FAILURES as error:
            failure = error
        fruitless = 0 if _size(partial) > before else fruitless + 1
        if fruitless >= PATIENCE or _is_final(failure):
            break
        time.sleep(PAUSE)
    return failure


def _is_final(failure: Exception) -> bool:
    """Whether asking again is pointless: an unusable address, or a server that knows what it says."""
    if isinstance(failure, urllib.error.HTTPError):
        return failure.code not in TEMPORARY
    return isinstance(failure, ValueError)


def _receive(url: str, partial: Path, announced: Announced, timeout: float) -> None:
    """Append to the partial file what it still lacks; a server without ranges sends the whole again."""
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.build_opener(announced).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        announced.size = announced.size or _total(error.headers)  # nothing follows: the partial file is already whole
        return
    with response:
        announced.read(response.headers)
        resumed = start > 0 and getattr(response, "status", None) == 206
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        if announced.size is None and length is not None:
            announced.size = start + int(length)
        _require_space(partial.parent, (announced.size or 0) - start)
        title = f"{'continuing' if resumed else 'downloading'} {partial.stem} [MB]"
        with (
            stage(title, max(1, -(-(announced.size or CHUNK) // CHUNK))) as advance,
            partial.open("ab" if resumed else "wb") as out,
        ):
            shown = 0
            while block := response.read1(CHUNK):  # what has come so far: nothing is lost when the connection stalls
                out.write(block)
                start += len(block)
                advance(start // CHUNK - shown)
                shown = start // CHUNK


def _verified(partial: Path, url: str, announced: Announced) -> str:
    """The digest of a file that is what the server announced; raises CheckpointError, and removes it, otherwise."""
    digest = sha256(partial)
    if announced.size in (None, _size(partial)) and announced.sha256 in (None, digest):
        return digest
    partial.unlink()
    raise CheckpointError(
        found=f"a download of {url} whose size or SHA-256 is not the announced one",
        accepted=f"SHA-256 {announced.sha256 or 'unknown'}, {announced.size or 'unknown'} bytes",
        remedy="run the same command again; the damaged file was removed",
    )


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            found=f"{free / 1e9:.1f} GB free in {folder}",
            accepted=f"{needed / 1e9:.1f} GB for the download",
            remedy="make room, or set LORA3D_SPLAT_CACHE to a folder on a larger disk",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _total(headers: Any) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
    return int(found[1]) if found else None
