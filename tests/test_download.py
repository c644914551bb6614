"""Downloads from a server that stalls, truncates, forgets and lies: whole and verified, or a sentence."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import FlakyServer, flaky_server

from lora3d_splat import download
from lora3d_splat.checksums import recorded
from lora3d_splat.download import fetch
from lora3d_splat.errors import CheckpointError, InputError, MissingPartError
from lora3d_splat.offline import is_offline, offline

BODY = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts, and the network allowed."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for variable in ("LORA3D_SPLAT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with flaky_server(BODY) as running:
        yield running


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_whole_and_its_checksum_is_recorded(server: FlakyServer, tmp_path: Path) -> None:
    assert fetch(f"{server.address}/linked", tmp_path / "file").read_bytes() == BODY
    assert files(tmp_path) == ["SHA256SUMS", "file"]
    assert (tmp_path / "SHA256SUMS").read_text() == f"{hashlib.sha256(BODY).hexdigest()}  file\n"
    assert recorded(tmp_path / "file") == hashlib.sha256(BODY).hexdigest()


def test_stalls_and_cuts_are_survived_within_one_call(server: FlakyServer, tmp_path: Path) -> None:
    """Every attempt asks only for what is still lacking, to the byte, also after a connection that went silent."""
    server.trouble = [("stall", 300_000), ("cut", 200_000), ("status", 503), ("cut", 100_000)]
    assert fetch(f"{server.address}/linked", tmp_path / "file", timeout=0.3).read_bytes() == BODY
    assert server.requests == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-", "bytes=600000-"]


def test_an_interrupted_program_continues_at_the_next_call(server: FlakyServer, tmp_path: Path) -> None:
    """A server that goes away leaves a partial file and no target; the next call gets the rest."""
    server.trouble = [("cut", 300_000)] + 3 * [("status", 500)]
    with pytest.raises(MissingPartError, match="run the same command again to continue"):
        fetch(f"{server.address}/linked", tmp_path / "file")
    assert files(tmp_path) == ["file.part"]
    assert fetch(f"{server.address}/linked", tmp_path / "file").read_bytes() == BODY
    assert server.requests[-1] == "bytes=300000-"


def test_a_server_without_ranges_sends_the_whole_again(server: FlakyServer, tmp_path: Path) -> None:
    server.ranges, server.trouble = False, [("cut", 300_000)]
    assert fetch(f"{server.address}/file", tmp_path / "file").read_bytes() == BODY


def test_a_whole_partial_file_is_only_verified(server: FlakyServer, tmp_path: Path) -> None:
    """The program ended between the last byte and the renaming: nothing is downloaded twice."""
    (tmp_path / "file.part").write_bytes(BODY)
    assert fetch(f"{server.address}/file", tmp_path / "file").read_bytes() == BODY
    assert server.requests == [f"bytes={len(BODY)}-"]


def test_a_damaged_download_is_thrown_away(server: FlakyServer, tmp_path: Path) -> None:
    """A digest that is not the announced one, or a partial file of something else, leaves nothing behind."""
    server.announced = "0" * 64
    with pytest.raises(CheckpointError, match="the damaged file was removed"):
        fetch(f"{server.address}/linked", tmp_path / "file")
    assert files(tmp_path) == []
    (tmp_path / "file.part").write_bytes(b"x" * (len(BODY) + 1))
    with pytest.raises(CheckpointError, match="the damaged file was removed"):
        fetch(f"{server.address}/file", tmp_path / "file")
    with pytest.raises(CheckpointError, match="SHA-256 1111"):
        fetch(f"{server.address}/file", tmp_path / "file", expected="1" * 64)
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_final(server: FlakyServer, tmp_path: Path, status: int) -> None:
    """The server knows what it says: it is asked once."""
    server.trouble = [("status", status)]
    with pytest.raises(MissingPartError, match=str(status)):
        fetch(f"{server.address}/file", tmp_path / "file")
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file", "nonsense/file", "file:///nowhere/file"])
def test_unreachable_servers_and_unusable_addresses(tmp_path: Path, address: str) -> None:
    with pytest.raises(MissingPartError, match=f"put it at {tmp_path / 'file'}"):
        fetch(address, tmp_path / "file")


def test_a_full_disk_is_noticed_before_the_download(server: FlakyServer, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="set LORA3D_SPLAT_CACHE"):
        fetch(f"{server.address}/file", tmp_path / "file")


def test_offline_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the setting or by either environment variable: refused with a sentence before any socket is made."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    with offline(True), offline(False), pytest.raises(MissingPartError, match="run once without --offline"):
        fetch("http://localhost/file", tmp_path / "file")
    assert not is_offline()
    for variable in ("LORA3D_SPLAT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        with pytest.raises(MissingPartError, match="network may not be used"):
            fetch("http://localhost/file", tmp_path / "file")
        monkeypatch.setenv(variable, "0")
        assert not is_offline()
