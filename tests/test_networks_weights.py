"""From a name to a network: where weights are looked for, fetched from, and what is said about their licence."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_files import save_hub, save_pth
from dust3r_recipe import random_images, recipe_network
from flaky_server import flaky_server
from oracle_network import write_photographs

from lora3d_splat import download
from lora3d_splat.cli import main
from lora3d_splat.doctor import check_weights
from lora3d_splat.errors import CheckpointError, InputError, MissingPartError
from lora3d_splat.networks import load_network, network_digest, network_files, weights
from lora3d_splat.offline import is_offline, offline

STEMS = {name: public.stem for name, public in weights.PUBLIC.items()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees or touches the user's caches, none reaches the network, and licences are told anew."""
    monkeypatch.setenv("LORA3D_SPLAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for variable in ("LORA3D_SPLAT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    weights.tell_licence.cache_clear()
    yield
    weights.tell_licence.cache_clear()


def said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().out.split())


def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_id: str) -> Path:
    """A hub on this disk that has one network."""
    root = tmp_path / "mirror" / hub_id / "resolve" / "main"
    monkeypatch.setenv("HF_ENDPOINT", (tmp_path / "mirror").as_uri())
    return save_hub(root, recipe_network().state_dict())


def test_the_public_names_are_those_of_the_published_networks():
    """Four names; `auto` is compact until weights lie on disk, and then the best of them."""
    assert list(weights.PUBLIC) == ["dust3r-512", "dust3r-512-linear", "dust3r-224", "mast3r-512"]
    assert all("non-commercial" in public.licence for public in weights.PUBLIC.values())
    assert "Map-free" in weights.PUBLIC["mast3r-512"].licence
    assert weights.resolve_auto() == "compact"
    for name in reversed(["dust3r-512", "dust3r-512-linear", "dust3r-224"]):
        (folder := weights.weights_folder() / STEMS[name]).mkdir(parents=True)
        for file in weights.FILES:
            (folder / file).touch()
        assert weights.resolve_auto() == name


@pytest.mark.parametrize("name", weights.PUBLIC)
def test_a_public_network_is_found_wherever_it_lies(tmp_path: Path, name: str):
    """In our folder, as a `.pth` put there by hand, in the hub client's cache, by its path, by its hub id."""
    state, stem, hub_id = recipe_network().state_dict(), STEMS[name], weights.PUBLIC[name].hub_id
    assert network_files(name) == ()
    client = tmp_path / "hub" / "hub" / f"models--{hub_id.replace('/', '--')}" / "snapshots" / "abc"
    pth = tmp_path / "cache" / "weights" / f"{stem}.pth"
    pth.parent.mkdir(parents=True)
    places = (
        (lambda: save_pth(pth, state), (name, hub_id, str(pth))),
        (lambda: save_hub(client, state), (name, hub_id, str(client))),
        (lambda: save_hub(tmp_path / "cache" / "weights" / stem, state), (name, hub_id)),
    )
    for save, requests in places:
        place = save()
        for request in requests:
            network = load_network(request)
            assert (network.name, network.licence) == (name, weights.PUBLIC[name].licence)
        assert weights.find_on_disk(name) == place
        assert network_files(name) == (tuple(sorted(place.iterdir())) if place.is_dir() else (place,))
    assert name in check_weights().found


@pytest.mark.parametrize("name", weights.PUBLIC)
def test_a_public_network_is_downloaded_when_named(tmp_path: Path, name: str, monkeypatch, capsys):
    """Both files come from the hub's address into our cache; the licence is told once, the second load needs no hub."""
    mirror(tmp_path, monkeypatch, weights.PUBLIC[name].hub_id)
    first = load_network(name)
    assert said(capsys).count("CC BY-NC-SA 4.0 (non-commercial)") == 1
    folder = tmp_path / "cache" / "weights" / STEMS[name]
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert network_digest(load_network(name)) == network_digest(first)
    assert "CC BY-NC-SA" not in said(capsys)


def test_what_was_downloaded_is_verified_whenever_it_is_loaded(tmp_path: Path, monkeypatch):
    """A byte that changes on disk afterwards is noticed."""
    mirror(tmp_path, monkeypatch, "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear")
    load_network("dust3r-224")
    file = tmp_path / "cache" / "weights" / STEMS["dust3r-224"] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"changed since it was downloaded.*delete it"):
        load_network("dust3r-224")


def test_other_networks_of_the_hub_are_known_by_their_id(tmp_path: Path, monkeypatch, capsys):
    """owner/model is downloaded like the public ones; its licence is not known here, and that is said."""
    mirror(tmp_path, monkeypatch, "somebody/DUSt3R_ViTLarge_BaseDecoder_512_dpt")
    network = load_network("somebody/DUSt3R_ViTLarge_BaseDecoder_512_dpt")
    assert network.name == "somebody/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    assert network.licence.startswith("unknown")
    assert "weights under unknown" in said(capsys)


def test_a_download_from_a_flaky_hub_ends_well(tmp_path: Path, monkeypatch):
    """The real way, over HTTP: a stall and a cut on the way, then the network answers as it should."""
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    hub = save_hub(tmp_path / "served", recipe_network().state_dict())
    folder = weights.own_folder("dust3r-512-linear")
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((hub / "config.json").read_bytes())
    with flaky_server((hub / "model.safetensors").read_bytes()) as server:
        server.trouble = [("stall", 200_000), ("cut", 100_000)]
        download.fetch(f"{server.address}/linked", folder / "model.safetensors", timeout=0.3)
        assert server.requests == [None, "bytes=200000-", "bytes=300000-"]
    images = random_images(1, 32, 32)
    expected = recipe_network().encode(images).tokens
    assert torch.equal(load_network("dust3r-512-linear").encode(images).tokens, expected)


def test_offline_looks_only_at_the_disk(tmp_path: Path, monkeypatch):
    """What is on disk loads; what is not is refused with a way out; no socket is made and no name looked up."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    monkeypatch.delenv("HF_ENDPOINT")
    save_hub(weights.own_folder("dust3r-224"), recipe_network().state_dict())
    with offline(True):
        assert load_network("auto").name == "dust3r-224"
        for name in ("dust3r-512", "mast3r-512", "somebody/model"):
            with pytest.raises(MissingPartError, match="put the file at"):
                load_network(name)
        with pytest.raises(InputError, match="neither a known name nor a file"):
            load_network("dust4r")


def test_the_command_line_stays_offline(tmp_path: Path, monkeypatch, capsys):
    """`--offline` with weights that are not here: one sentence and status 1, before any socket is made."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    photos = write_photographs(tmp_path / "photos", range(2))[0].parent
    words = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(["calibrate", str(photos), *words, "--network", "mast3r-512", "--offline"]) == 1
    assert "not on this disk, while the network may not be used" in said(capsys)
    assert not is_offline()


@pytest.mark.parametrize("name", ["dust4r", "nowhere/net.pth", "nowhere/net.safetensors", "a/b/c", "../net", "x/"])
def test_what_can_only_be_a_file_is_never_asked_for_on_the_hub(name: str, monkeypatch):
    monkeypatch.setattr(weights, "fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="neither a known name nor a file"):
        load_network(name)


def test_an_unreachable_hub_leaves_a_way_out(tmp_path: Path):
    with pytest.raises(MissingPartError, match=r"get the file by other means and put it at .*config\.json"):
        load_network("mast3r-512")
