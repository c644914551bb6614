"""Large files over the network, once: resumed where they stopped, verified, and renamed only when whole."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from lora3d_splat.console import Advance, stage
from lora3d_splat.errors import CheckpointError, MissingPartError

CHUNK = 1 << 20
TIMEOUT = 30.0
"""seconds without an answer"""


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
        tag = headers.get("X-Linked-Etag", "").strip('"')
        if len(tag) == 64:
            self.sha256 = tag.lower()


def fetch(url: str, target: Path, sha256: str | None = None) -> Path:
    """Download `url` to `target`, continuing an interrupted attempt; returns `target`.

    The length is checked against the server's, the digest against `sha256` or what the hub announces. Raises
    MissingPartError when the file cannot be had, CheckpointError (and starts afresh next time) when it is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    announced = Announced(sha256=sha256)
    try:
        _receive(url, partial, announced)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise MissingPartError(
            found=f"{url}, which could not be downloaded ({error})",
            accepted="a reachable server, or the file already on disk",
            remedy=f"run the same command again to continue, or fetch the file by other means and put it at {target}",
        ) from error
    _verify(partial, url, announced)
    os.replace(partial, target)
    return target


def _receive(url: str, partial: Path, announced: Announced) -> None:
    """Append to the partial file what it still lacks; a server without ranges sends the whole again."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    opener = urllib.request.build_opener(announced)
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range is empty: the partial file is already whole
            return
        raise
    with response:
        announced.read(response.headers)
        resumed = start > 0 and getattr(response, "status", None) == 206
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        if announced.size is None and length is not None:
            announced.size = start + int(length)
        megabytes = max(1, -(-(announced.size or CHUNK) // CHUNK))
        with (
            stage(f"downloading {partial.stem} [MB]", megabytes) as advance,
            partial.open("ab" if resumed else "wb") as out,
        ):
            advance(start // CHUNK)
            _copy(response, out, advance)


def _copy(response: Any, out: IO[bytes], advance: Advance) -> None:
    while block := response.read(CHUNK):
        out.write(block)
        advance(1)


def _verify(partial: Path, url: str, announced: Announced) -> None:
    size = partial.stat().st_size
    if announced.size is not None and size < announced.size:
        raise MissingPartError(
            found=f"only {size} of {announced.size} bytes of {url}",
            accepted="the whole file",
            remedy="run the same command again; it continues where the download stopped",
        )
    wrong_size = announced.size is not None and size != announced.size
    if wrong_size or (announced.sha256 is not None and _sha256(partial) != announced.sha256):
        partial.unlink()
        raise CheckpointError(
            found=f"a download of {url} whose size or SHA-256 is not the announced one",
            accepted=f"SHA-256 {announced.sha256 or 'unknown'}, {announced.size or 'unknown'} bytes",
            remedy="run the same command again; the damaged file was removed",
        )


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            state.update(block)
    return state.hexdigest()
