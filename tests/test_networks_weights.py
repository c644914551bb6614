"""Weights by name or path: restricted reading, careful loading, resumable downloads."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dust3r_recipe import TINY, random_view, recipe_network
from safetensors.torch import save_file

from lora3d_splat.errors import CheckpointError, InputError, Lora3DError, MissingPartError
from lora3d_splat.networks import load_network, network_digest, weights
from lora3d_splat.networks.checkpoint import load_dust3r
from lora3d_splat.networks.download import fetch
from lora3d_splat.networks.dust3r_config import parse_constructor
from lora3d_splat.prediction import images_tensor

CONSTRUCTOR = "AsymmetricCroCo3DStereo({})".format(
    ", ".join(f"{key}={value!r}" for key, value in (TINY | {"landscape_only": True}).items())
    + ", patch_embed_cls='ManyAR_PatchEmbed', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf)"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test sees or touches the user's caches, and none reaches the network."""
    monkeypatch.setenv("LORA3D_SPLAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def save_pth(path: Path, state: dict[str, torch.Tensor], constructor: str = CONSTRUCTOR) -> Path:
    """A container as the public `.pth` files are laid out."""
    torch.save({"model": state, "args": argparse.Namespace(model=constructor, epochs=3)}, path)
    return path


def save_hub(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """A folder as the model hub lays them out, infinities as bare tokens."""
    folder.mkdir(parents=True)
    settings = TINY | {"patch_embed_cls": "ManyAR_PatchEmbed", "depth_mode": ["exp", -float("inf"), float("inf")]}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(state, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_both_containers_give_the_network_back(tmp_path):
    """A `.pth` and a hub folder of the same weights answer like the network they came from, upright."""
    original = recipe_network()
    images = images_tensor([random_view(0, (64, 48))])
    expected = original.encode(images).tokens
    for path in (
        save_pth(tmp_path / "a.pth", original.state_dict()),
        save_hub(tmp_path / "hub2", original.state_dict()),
    ):
        network = load_network(str(path))
        assert torch.equal(network.encode(images).tokens, expected)
        assert network_digest(network).isalnum()
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_missing_and_unknown_keys_are_named(tmp_path):
    """The message names the keys and counts the rest."""
    state = dict(recipe_network().state_dict())
    del state["enc_norm.weight"]
    state["surprise.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"lacks enc_norm\.weight; has unknown surprise\.weight"):
        load_dust3r(save_pth(tmp_path / "a.pth", state), "x")
    state = {key: value for key, value in recipe_network().state_dict().items() if not key.startswith("enc_blocks.")}
    with pytest.raises(CheckpointError, match="and 21 more"):
        load_dust3r(save_pth(tmp_path / "b.pth", state), "x")


def test_other_shapes_are_refused(tmp_path):
    """A tensor of another size is named before anything is loaded."""
    state = dict(recipe_network().state_dict()) | {"decoder_embed.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"other shapes for decoder_embed\.bias"):
        load_dust3r(save_pth(tmp_path / "a.pth", state), "x")


def test_one_decoder_files_fill_the_second(tmp_path):
    """Pre-training files hold one decoder and heads of their own; the decoder is copied, the rest dropped."""
    state = {key: value for key, value in recipe_network().state_dict().items() if not key.startswith("dec_blocks2.")}
    state["prediction_head.weight"] = torch.zeros(1)
    loaded = load_dust3r(save_pth(tmp_path / "a.pth", state), "x").state_dict()
    assert torch.equal(loaded["dec_blocks2.1.mlp.fc1.weight"], state["dec_blocks.1.mlp.fc1.weight"])


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_no_code_in_a_file_is_run(tmp_path):
    """Foreign objects in a `.pth` file are refused by the restricted reader."""
    torch.save({"model": {}, "args": Malicious(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_dust3r(tmp_path / "evil.pth", "x")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    """Empty, textual and truncated files raise CheckpointError, as `.pth` and as `.safetensors`."""
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_network(str(tmp_path / name))


def test_constructor_strings_are_data():
    """Literals, infinities and nested tuples are read; calls, names and other classes are refused."""
    parsed = parse_constructor("AsymmetricCroCo3DStereo(a=('exp', -inf, inf), b=True, c=None, d=-3, e=[1, 2])")
    assert parsed == {"a": ("exp", -float("inf"), float("inf")), "b": True, "c": None, "d": -3, "e": (1, 2)}
    for bad in ("Other(a=1)", "AsymmetricCroCo3DStereo(a=open('x'))", "AsymmetricCroCo3DStereo(1)", "1 +", "a.b(c=1)",
                "AsymmetricCroCo3DStereo(**{})", "AsymmetricCroCo3DStereo(a=x)"):  # fmt: skip
        with pytest.raises(CheckpointError, match="constructor string"):
            parse_constructor(bad)
    with pytest.raises(MissingPartError, match="not implemented yet"):
        parse_constructor("AsymmetricMASt3R(a=1)")


def test_names_resolve_without_downloading(tmp_path):
    """`auto` is compact until public weights lie on disk; what is not implemented or unknown says so at once."""
    assert weights.resolve_auto() == "compact"
    with pytest.raises(MissingPartError, match="not implemented yet"):
        load_network("mast3r-512")
    with pytest.raises(InputError, match="neither a known name nor a file"):
        load_network("dust4r")
    folder = tmp_path / "cache" / "weights" / "DUSt3R_ViTLarge_BaseDecoder_512_linear"
    save_hub(folder, recipe_network().state_dict())
    assert weights.resolve_auto() == "dust3r-512-linear"
    assert weights.find_on_disk("dust3r-512-linear") == folder
    assert load_network("auto").name == "dust3r-512-linear"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one body with ranges; may stop early, and may announce a digest in a redirect as the hub does."""

    body = b""
    announced = ""
    stop_after: int | None = None
    requests: list[str | None]

    def do_GET(self) -> None:
        if self.path.startswith("/linked"):
            self.send_response(302)
            self.send_header("X-Linked-Etag", f'"{type(self).announced}"')
            self.send_header("X-Linked-Size", str(len(self.body)))
            self.send_header("Location", "/file")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        type(self).requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start : type(self).stop_after])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[type[Server], str]]:
    """A local server of its own settings and its address."""
    body = bytes(range(256)) * 5000
    handler = type(
        "Handler",
        (Server,),
        {"body": body, "announced": hashlib.sha256(body).hexdigest(), "requests": [], "stop_after": None},
    )
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_an_interrupted_download_is_continued(server, tmp_path):
    """A connection that breaks leaves no target; the next call asks only for the rest, and the digest fits."""
    handler, address = server
    handler.stop_after = 300_000
    with pytest.raises(MissingPartError, match="run the same command again"):
        fetch(f"{address}/linked", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    handler.stop_after = None
    assert fetch(f"{address}/linked", tmp_path / "file").read_bytes() == handler.body
    assert handler.requests == [None, "bytes=300000-"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


def test_a_damaged_download_is_thrown_away(server, tmp_path):
    """A digest that does not fit leaves neither target nor partial file."""
    handler, address = server
    handler.announced = "0" * 64
    with pytest.raises(CheckpointError, match="the damaged file was removed"):
        fetch(f"{address}/linked", tmp_path / "file")
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_local_addresses_and_unreachable_servers(tmp_path):
    """file:// works like a server; a server that is not there is a missing part with a way out."""
    (tmp_path / "source").write_bytes(b"abc")
    assert fetch((tmp_path / "source").as_uri(), tmp_path / "copy").read_bytes() == b"abc"
    with pytest.raises(Lora3DError, match="by other means"):
        fetch("http://127.0.0.1:9/file", tmp_path / "other")


def test_a_public_network_is_downloaded_when_named(tmp_path, capsys):
    """Asked for by name, both files come from the hub's address into our cache, and the licence is printed."""
    root = tmp_path / "mirror" / "naver" / "DUSt3R_ViTLarge_BaseDecoder_224_linear" / "resolve" / "main"
    save_hub(root, recipe_network().state_dict())
    folder = weights.obtain("dust3r-224", hub=(tmp_path / "mirror").as_uri())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "CC BY-NC-SA" in capsys.readouterr().out
    assert load_network("dust3r-224").licence.startswith("CC BY-NC-SA")
