"""The published facts of DUSt3R and MASt3R: key names, sizes, and numbers; they lie outside this repository."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dust3r_recipe import recipe_tensor

from lora3d_splat.networks import build_network
from lora3d_splat.networks.dpt import Dpt, double
from lora3d_splat.networks.dust3r import Dust3R

SPEC = Path(__file__).parents[1].parent / "shared" / "spec"
pytestmark = pytest.mark.skipif(not SPEC.exists(), reason="the published fixtures are not on this machine")
MODELS = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": "dust3r",
    "DUSt3R_ViTLarge_BaseDecoder_512_linear": "dust3r",
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": "dust3r",
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": "mast3r",
}
FIXTURES = (
    "linear_landscape", "linear_portrait", "linear_crossshape", "linear_mixed", "linear_square",
    "dpt_landscape", "dpt_portrait", "dpt_crossshape", "dpt_mixed", "dpt_symmetrised",
    "mast3r_landscape", "mast3r_portrait", "mast3r_crossshape", "mast3r_mixed",
)  # fmt: skip


def numbers(value: object) -> object:
    """JSON settings with 'inf' and '-inf' as numbers."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


def test_all_fixtures_are_tried():
    """Nothing published is left out of the list above but the image preparation, which has a test of its own."""
    assert {path.stem for path in (SPEC / "fixtures").glob("*.npz")} == {*FIXTURES, "preprocess"}


def test_recipe_matches_its_published_values():
    """The weight recipe of the fixtures is reproduced to the bit; all comparisons below rest on it."""
    for entry in json.loads((SPEC / "fixtures" / "recipe_check.json").read_text()):
        values = recipe_tensor(entry["key"], tuple(entry["shape"]), entry["salt"]).numpy().ravel()
        assert zlib.crc32(values.astype("<f4").tobytes()) == entry["crc32_le_bytes"], entry["key"]


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_is_that_of_the_public_checkpoint(name):
    """Same keys, shapes, types, aliases and parameter count; built on the meta device, so no memory is taken."""
    published = json.loads((SPEC / "keys" / f"{name}.json").read_text())
    settings = {key: numbers(value) for key, value in published["constructor"].items()}
    with torch.device("meta"):
        network = build_network(MODELS[name], **settings)
    state = network.state_dict(keep_vars=True)
    expected = {entry["key"]: tuple(entry["shape"]) for entry in published["tensors"]}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert {str(value.dtype) for value in state.values()} == {f"torch.{e['dtype']}" for e in published["tensors"]}
    aliases = {entry["key"]: entry["alias_of"] for entry in published["tensors"] if entry.get("alias_of")}
    assert all(state[key] is state[original] for key, original in aliases.items())
    assert len({id(value) for value in state.values()}) == published["n_unique_tensors"] == len(state) - len(aliases)
    assert sum(parameter.numel() for parameter in network.parameters()) == published["n_parameters"]


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_published_numbers_are_reproduced(name, gradients):
    """Every array agrees to 1e-4 + 1e-4 |reference|: positions, encoder, decoder, inside the heads, and outputs."""
    with np.load(SPEC / "fixtures" / f"{name}.npz") as file:
        fixture = {key: file[key] for key in file.files}
    meta = json.loads(str(fixture.pop("meta_json")))
    network = recipe_weights(meta)
    views = [fixture_view(fixture, number) for number in (1, 2)]
    with torch.set_grad_enabled(gradients), recorded(network) as got:
        outputs = enumerate(network(*views), 1)
        got |= {f"out{number}_{key}": value for number, out in outputs for key, value in out.items()}
    for key, expected in fixture.items():
        np.testing.assert_allclose(got[key].detach().numpy(), expected, atol=1e-4, rtol=1e-4, err_msg=key)
    assert {key for key in got if key.startswith("out")} == {key for key in fixture if key.startswith("out")}


def recipe_weights(meta: dict[str, Any]) -> Dust3R:
    """The fixture's network, through the public handle and PyTorch's own strict loading."""
    with torch.device("meta"):
        network = build_network(meta["model"], **{key: numbers(value) for key, value in meta["config"].items()})
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key: recipe_tensor(key, shape, meta["salt"]) for key, shape in shapes.items()}
    network.load_state_dict(state, assign=True)
    assert isinstance(network, Dust3R)
    return network


def fixture_view(fixture: dict[str, np.ndarray], number: int) -> dict[str, torch.Tensor]:
    """One side's images and true shapes, taken out of the fixture."""
    images = torch.from_numpy(fixture.pop(f"img{number}_u8")).permute(0, 3, 1, 2).float()
    return {"img": (images / 255 - 0.5) / 0.5, "true_shape": torch.from_numpy(fixture.pop(f"true_shape{number}"))}


@contextmanager
def recorded(network: Dust3R) -> Iterator[dict[str, torch.Tensor]]:
    """Inner results of the next call under the fixtures' names."""
    got: dict[str, torch.Tensor] = {}
    decode = network.decode_tokens

    def decode_tokens(f1, pos1, f2, pos2):
        streams = decode(f1, pos1, f2, pos2)
        got.update(enc1=f1, pos1=pos1, enc2=f2, pos2=pos2)
        got.update({f"dec{number}": torch.stack(stream[1:]) for number, stream in enumerate(streams, 1)})
        return streams

    network.decode_tokens = decode_tokens  # type: ignore[method-assign]
    handles = [handle for number in (1, 2) for handle in watch_head(network, number, got)]
    try:
        yield got
    finally:
        for handle in handles:
            handle.remove()


def watch_head(network: Dust3R, number: int, got: dict[str, torch.Tensor]) -> list[Any]:
    """Hooks that note every sixteenth channel of the levels and fusions of a convolutional head, and its result."""
    dpt = getattr(getattr(network, f"downstream_head{number}"), "dpt", None)
    if not isinstance(dpt, Dpt):
        return []

    def noting(key: str, stride: int) -> Any:
        return lambda module, inputs, output: got.__setitem__(key, output[:, ::stride])

    def last_fusion(module: Any, inputs: Any, output: torch.Tensor) -> None:
        got[f"dpt{number}_fuse1_c16"] = double(output[:, ::16])  # its enlargement is left to what comes after

    handles = [dpt.register_forward_hook(noting(f"raw{number}", 1)), dpt.scratch.register_forward_hook(last_fusion)]
    for level in (1, 2, 3, 4):
        layer, fusion = getattr(dpt.scratch, f"layer{level}_rn"), getattr(dpt.scratch, f"refinenet{level}")
        handles.append(layer.register_forward_hook(noting(f"dpt{number}_layer{level}_c16", 16)))
        handles.append(fusion.register_forward_hook(noting(f"dpt{number}_fuse{level}_c16", 16)))
    return handles
