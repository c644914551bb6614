"""Checkpoint files: both containers load, unchanged and as data alone; everything else is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import SETTINGS, constructor, save_hub, save_pth
from dust3r_recipe import TINY, random_images, recipe_network
from safetensors.torch import load_file, save_file

from lora3d_splat import checksums
from lora3d_splat.errors import CheckpointError, Lora3DError
from lora3d_splat.networks import dpt, load_network
from lora3d_splat.networks.checkpoint import load_dust3r
from lora3d_splat.networks.dust3r_config import parse_constructor

pytestmark = pytest.mark.usefixtures("narrow_heads")
PAGE = Path(__file__).parents[1] / "docs" / "networks.md"


@pytest.fixture
def narrow_heads(monkeypatch):
    """Convolutional heads of a few channels, so that files are small."""
    monkeypatch.setattr(dpt, "REASSEMBLED", (8, 8, 8, 8))
    monkeypatch.setattr(dpt, "FEATURES", 8)
    monkeypatch.setattr(dpt, "LAST", 8)


@torch.no_grad()
@pytest.mark.parametrize("head", SETTINGS)
def test_both_containers_give_the_network_back(tmp_path, head):
    """A `.pth` and a hub folder of the same weights answer like the network they came from, portraits upright."""
    original = recipe_network(SETTINGS[head])
    state = original.state_dict()
    images = random_images(1, 64, 48)
    expected = original({"img": images}, {"img": images})
    for path in (
        save_pth(tmp_path / "a.pth", state, constructor(head)),
        save_hub(tmp_path / "hub", state, head),
        tmp_path / "hub" / "model.safetensors",
    ):
        network = load_network(str(path))
        got = network({"img": images}, {"img": images})  # type: ignore[operator]
        assert all(torch.equal(a[key], b[key]) for a, b in zip(got, expected, strict=True) for key in b)
        assert network.state_dict().keys() == state.keys()
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert (network.name, network.licence[:7]) == ("a" if path.suffix == ".pth" else "hub", "unknown")


def test_half_precision_files_become_float32(tmp_path):
    """Stored in bfloat16, a network is float32 in memory."""
    state = {key: value.bfloat16() for key, value in recipe_network().state_dict().items()}
    network = load_dust3r(save_pth(tmp_path / "a.pth", state))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_one_decoder_files_fill_the_second(tmp_path):
    """Pre-training files hold one decoder and heads of their own; the decoder is copied, the rest dropped."""
    state = {key: value for key, value in recipe_network().state_dict().items() if not key.startswith("dec_blocks2.")}
    state["prediction_head.weight"] = torch.zeros(1)
    loaded = load_dust3r(save_pth(tmp_path / "a.pth", state)).state_dict()
    assert torch.equal(loaded["dec_blocks2.1.mlp.fc1.weight"], state["dec_blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("kept", ["layer_rn.2", "layer3_rn"])
def test_either_name_of_a_tensor_is_enough(tmp_path, kept):
    """Of the two names of one tensor a file may hold one; the mask token, never used, may be absent."""
    whole = recipe_network(SETTINGS["dpt"]).state_dict()
    dropped = {"layer_rn.2": "layer3_rn", "layer3_rn": "layer_rn.2"}[kept]
    state = {key: value for key, value in whole.items() if dropped not in key and key != "mask_token"}
    loaded = load_dust3r(save_pth(tmp_path / "a.pth", state, constructor("dpt"))).state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in whole if key != "mask_token")


def test_unknown_tensors_are_named_and_left_out(tmp_path, capsys):
    """They do not stop the loading, as in the reference."""
    state = dict(recipe_network().state_dict()) | {"surprise.weight": torch.zeros(1)}
    load_dust3r(save_pth(tmp_path / "a.pth", state))
    output = " ".join(capsys.readouterr().out.split())
    assert "1 tensors that the network does not have are left out: surprise.weight" in output


def test_constructor_strings_are_data():
    """Literals, infinities and nested tuples are read; calls, names, other classes and endless text are refused."""
    parsed = parse_constructor("AsymmetricCroCo3DStereo(a=('exp', -inf, inf), b=True, c=None, d=-3, e=[1, 2])")
    assert parsed == ("dust3r", {"a": ("exp", -float("inf"), float("inf")), "b": True, "c": None, "d": -3, "e": (1, 2)})
    assert parse_constructor("AsymmetricMASt3R(two_confs=True)") == ("mast3r", {"two_confs": True})
    values = (
        "open('x')",
        "x",
        "-'x'",
        "-True",
        "f'{x}'",
        "b'x'",
        "(" * 3000,
        "-" * 5000 + "1",
        "'" + 20000 * "x" + "'",
    )
    calls = [f"AsymmetricCroCo3DStereo(a={value})" for value in values]
    calls += [f"AsymmetricCroCo3DStereo({inside})" for inside in ("1", "**{}", "a=1, a=2")]
    for bad in (*calls, "Other(a=1)", "a.b(c=1)", "1 +", ""):
        with pytest.raises(CheckpointError, match="constructor string"):
            parse_constructor(bad)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def weights() -> dict[str, torch.Tensor]:
    return dict(recipe_network().state_dict())


def content(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def truncated(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def flipped(path: Path, at: float = 0.5) -> Path:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0x10
    path.write_bytes(data)
    return path


def downloaded(folder: Path) -> Path:
    """A folder of the hub as it lies on disk after a download."""
    hub = save_hub(folder / "net", weights())
    for file in ("config.json", "model.safetensors"):
        checksums.record(hub, file, checksums.sha256(hub / file))
    return hub


def hub_client(folder: Path) -> Path:
    """The same as the hub's own client keeps it: a link to a file named by its digest."""
    hub, model = save_hub(folder / "net", weights()), folder / "net" / "model.safetensors"
    blob = folder / checksums.sha256(model)
    model.rename(blob)
    model.symlink_to(blob)
    return hub


def changed_config(folder: Path) -> Path:
    hub = downloaded(folder)
    (hub / "config.json").write_text((hub / "config.json").read_text().replace("RoPE100", "RoPE101"))
    return hub


def config_only(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hub = save_hub(folder / "net", weights())
        (hub / "config.json").write_text(text)
        return hub

    return make


def without(folder: Path, file: str) -> Path:
    hub = save_hub(folder / "net", weights())
    (hub / file).unlink()
    return hub / "model.safetensors" if file == "config.json" else hub


def pth(**changes: object) -> Callable[[Path], Path]:
    """A `.pth` of the tiny network with tensors replaced, or left out where the new value is None."""

    def make(folder: Path) -> Path:
        state = weights() | {key.replace("__", "."): value for key, value in changes.items()}
        return save_pth(folder / "a.pth", {key: value for key, value in state.items() if value is not None})

    return make


def torch_file(value: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(value, folder / "a.pth")
        return folder / "a.pth"

    return make


def two_values(folder: Path) -> Path:
    state = dict(recipe_network(SETTINGS["dpt"]).state_dict())
    key = "downstream_head2.dpt.scratch.layer_rn.1.weight"
    return save_pth(folder / "a.pth", state | {key: state[key] + 1}, constructor("dpt"))


def evil(folder: Path) -> Path:
    torch.save({"model": {}, "args": Malicious(folder / "executed")}, folder / "evil.pth")
    return folder / "evil.pth"


def cut_compact(folder: Path) -> Path:
    from lora3d_splat.networks.compact import CHECKPOINT

    (folder / "compact.safetensors").write_bytes(CHECKPOINT.read_bytes()[:100_000])
    return folder / "compact.safetensors"


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "absent.pth", "neither a known name nor a file"),
    "empty file": (content("a.pth", b""), "an empty file"),
    "text": (content("a.pth", b"weights"), "which cannot be read"),
    "web page": (content("a.pth", b"\n<!DOCTYPE html><html>"), "a web page or XML text instead of the weights"),
    "JSON": (content("a.safetensors", b'{"error": "not found"}'), "JSON text instead of the weights"),
    "Git LFS pointer": (content("a.pth", b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "photograph": (content("a.pth", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(200)), "which cannot be read"),
    "truncated .pth": (lambda folder: truncated(pth()(folder)), "which cannot be read"),
    "truncated safetensors": (
        lambda folder: truncated(save_hub(folder / "net", weights()) / "model.safetensors"), "which cannot be read"
    ),
    "truncated compact": (cut_compact, "which cannot be read"),
    ".pth with a flipped bit": (lambda folder: flipped(pth()(folder)), "which cannot be read"),
    "download with a flipped bit": (
        lambda folder: flipped(downloaded(folder) / "model.safetensors").parent, "changed since it was downloaded"
    ),
    "hub client's download with a flipped bit": (
        lambda folder: flipped(hub_client(folder) / "model.safetensors").parent, "changed since it was downloaded"
    ),
    "download with other settings": (changed_config, "changed since it was downloaded"),
    "folder without weights": (lambda folder: without(folder, "model.safetensors"), "no file"),
    "safetensors without settings": (lambda folder: without(folder, "config.json"), "without config.json beside it"),
    "settings that are no JSON": (config_only("{"), "which cannot be read"),
    "settings that are no object": (config_only("[1]"), "config.json holds no settings"),
    "settings of another library": (
        config_only('{"architectures": ["BertModel"], "hidden_size": 768}'), "unknown network arguments architectures"
    ),
    "code in a .pth": (evil, "which cannot be read"),
    "constructor string with a call": (
        lambda folder: save_pth(folder / "a.pth", weights(), "AsymmetricCroCo3DStereo(a=exec('x'))"), "is not a literal"
    ),
    "constructor string of another class": (
        lambda folder: save_pth(folder / "a.pth", weights(), "CroCoNet(enc_depth=2)"), "unknown class CroCoNet"
    ),
    "unknown argument": (
        lambda folder: save_pth(folder / "a.pth", weights(), constructor(extra=1)), "unknown network arguments extra"
    ),
    "unsupported argument": (
        lambda folder: save_pth(folder / "a.pth", weights(), constructor(pos_embed="cosine")), "pos_embed='cosine'"
    ),
    "absurd size": (
        lambda folder: save_pth(folder / "a.pth", weights(), constructor(enc_depth=10**9)), "enc_depth=1000000000"
    ),
    "plain state dict": (torch_file({"fc.weight": torch.zeros(2)}), "lacks the entries 'model' and 'args'"),
    "a single tensor": (torch_file(torch.zeros(2)), "lacks the entries 'model' and 'args'"),
    "missing tensors": (pth(enc_norm__weight=None), r"lacks enc_norm\.weight"),
    "tensors of another size": (pth(decoder_embed__bias=torch.zeros(3)), r"other shapes for decoder_embed\.bias"),
    "tensors of integers": (pth(decoder_embed__bias=torch.zeros(48).int()), "is no tensor of real numbers"),
    "entries that are no tensors": (pth(decoder_embed__bias="x"), "is no tensor of real numbers"),
    "values that are no numbers": (pth(enc_norm__bias=torch.full((64,), torch.nan)), r"no numbers in enc_norm\.bias"),
    "two values for one tensor": (two_values, r"two different tensors for .*layer_rn\.1\.weight"),
}  # fmt: skip
"""kind -> how to make one, and what its sentence says"""


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_sentence(tmp_path, kind):
    """Found, accepted, what to do; nothing in the file is run; no other exception gets out."""
    make, expected = BAD_FILES[kind]
    with pytest.raises(Lora3DError, match=expected) as caught:
        load_network(str(make(tmp_path)))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_the_page_lists_every_kind_of_bad_file():
    """docs/networks.md has a row for each kind above, and none more."""
    table = PAGE.read_text().partition("## Bad files")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.M)[2:] == list(BAD_FILES)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    """Bits flipped anywhere in both containers: refused with a sentence, or (padding, unused zip fields) harmless."""
    rng = np.random.default_rng(0)
    small = TINY | {"enc_embed_dim": 8, "enc_num_heads": 1, "dec_embed_dim": 8, "enc_depth": 1, "dec_depth": 1}
    state = dict(recipe_network(small | {"patch_size": 2}).state_dict())
    arguments = small | {"patch_size": 2}
    text = f"AsymmetricCroCo3DStereo({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    containers = save_pth(tmp_path / "a.pth", state, text), tmp_path / "a.safetensors"
    save_file(state, containers[1])
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    refused = 0
    for path in containers:
        data = path.read_bytes()
        for position in rng.integers(0, len(data), 60):
            damaged = bytearray(data)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                load_network(str(path))
            except Lora3DError:
                refused += 1
    assert refused > 50


def test_hub_files_deduplicated_by_others_load(tmp_path):
    """The stored names and their map are those of the published layout."""
    hub = save_hub(tmp_path / "hub", recipe_network(SETTINGS["dpt"]).state_dict(), "dpt")
    stored = load_file(hub / "model.safetensors")
    assert not any("layer_rn." in key for key in stored)
    assert "downstream_head1.dpt.scratch.layer4_rn.weight" in stored
