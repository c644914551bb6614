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


def constructed(text: str) -> Callable[[Path], Path]:
    return lambda folder: save_pth(folder / "a.pth", weights(), text)


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


BAD_FILES: dict[str, Callable[[Path], Path]] = {
    "no such file": lambda folder: folder / "absent.pth",
    "empty file": content("a.pth", b""),
    "text": content("a.pth", b"weights"),
    "web page": content("a.pth", b"\n<!DOCTYPE html><html>"),
    "JSON": content("a.safetensors", b'{"error": "not found"}'),
    "Git LFS pointer": content("a.pth", b"version https://git-lfs.github.com/spec/v1\n"),
    "photograph": content("a.pth", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(200)),
    "truncated .pth": lambda folder: truncated(pth()(folder)),
    "truncated safetensors": lambda folder: truncated(save_hub(folder / "net", weights()) / "model.safetensors"),
    "truncated compact": cut_compact,
    ".pth with a flipped bit": lambda folder: flipped(pth()(folder)),
    "download with a flipped bit": lambda folder: flipped(downloaded(folder) / "model.safetensors").parent,
    "hub client's download with a flipped bit": lambda folder: flipped(hub_client(folder) / "model.safetensors").parent,
    "download with other settings": changed_config,
    "folder without weights": lambda folder: without(folder, "model.safetensors"),
    "safetensors without settings": lambda folder: without(folder, "config.json"),
    "settings that are no JSON": config_only("{"),
    "settings that are no object": config_only("[1]"),
    "settings of another library": config_only('{"architectures": ["BertModel"], "hidden_size": 768}'),
    "code in a .pth": evil,
    "constructor string with a call": constructed("AsymmetricCroCo3DStereo(a=exec('x'))"),
    "constructor string of another class": constructed("CroCoNet(enc_depth=2)"),
    "unknown argument": constructed(constructor(extra=1)),
    "unsupported argument": constructed(constructor(pos_embed="cosine")),
    "absurd size": constructed(constructor(enc_depth=10**9)),
    "plain state dict": torch_file({"fc.weight": torch.zeros(2)}),
    "a single tensor": torch_file(torch.zeros(2)),
    "missing tensors": pth(enc_norm__weight=None),
    "tensors of another size": pth(decoder_embed__bias=torch.zeros(3)),
    "tensors of integers": pth(decoder_embed__bias=torch.zeros(48).int()),
    "entries that are no tensors": pth(decoder_embed__bias="x"),
    "values that are no numbers": pth(enc_norm__bias=torch.full((64,), torch.nan)),
    "two values for one tensor": two_values,
}
"""kind -> how to make one; what its sentence finds is in the table of docs/networks.md"""


def told() -> dict[str, str]:
    """Kind -> the first part of its sentence, from the page; three dots stand for anything."""
    table = PAGE.read_text(encoding="utf-8").partition("## Bad files")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| (?!what|---)(.+?) \| (.+?) \|$", table, re.M))


def test_the_page_lists_every_kind_of_bad_file():
    assert list(told()) == list(BAD_FILES)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_sentence(tmp_path, kind):
    """That of the page; nothing in the file is run, and no other exception gets out."""
    path = BAD_FILES[kind](tmp_path)
    with pytest.raises(Lora3DError) as caught:
        load_network(str(path))
    found = caught.value.found.replace(f"{tmp_path}/", "")
    assert re.fullmatch(re.escape(told()[kind]).replace(re.escape("..."), ".+"), found)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


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
