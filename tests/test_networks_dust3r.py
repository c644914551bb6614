"""The DUSt3R network: published key names, published numbers, and its symmetries."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from dust3r_recipe import recipe_network, recipe_tensor

from lora3d_splat.errors import CheckpointError, MissingPartError
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.dust3r import Dust3R
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.networks.heads import points_and_confidence

SPEC = Path(__file__).parents[1].parent / "shared" / "spec"
needs_spec = pytest.mark.skipif(not SPEC.exists(), reason="the published fixtures are not on this machine")
LINEAR = ("linear_landscape", "linear_portrait", "linear_crossshape", "linear_mixed", "linear_square")


def numbers(value: object) -> object:
    """JSON settings with 'inf' and '-inf' as numbers."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


def arguments(stored: dict[str, object]) -> dict[str, object]:
    """Constructor arguments of a JSON object."""
    return {key: numbers(value) for key, value in stored.items()}


@needs_spec
def test_recipe_matches_its_published_values():
    """The weight recipe of the fixtures is reproduced to the bit; all comparisons below rest on it."""
    for entry in json.loads((SPEC / "fixtures" / "recipe_check.json").read_text()):
        values = recipe_tensor(entry["key"], tuple(entry["shape"]), entry["salt"]).numpy().ravel()
        assert zlib.crc32(values.astype("<f4").tobytes()) == entry["crc32_le_bytes"], entry["key"]


@needs_spec
@pytest.mark.parametrize("size", [224, 512])
def test_state_dict_is_that_of_the_public_checkpoints(size):
    """Same keys, same shapes, 532,342,784 parameters; built on the meta device, so no memory is taken."""
    published = json.loads((SPEC / "keys" / f"DUSt3R_ViTLarge_BaseDecoder_{size}_linear.json").read_text())
    with torch.device("meta"):
        network = Dust3R(Dust3RConfig.from_arguments(arguments(published["constructor"])))
    expected = {entry["key"]: tuple(entry["shape"]) for entry in published["tensors"]}
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == published["n_parameters"] == 532_342_784


def fixture_input(fixture: dict[str, np.ndarray], view: int) -> dict[str, torch.Tensor]:
    """One side's images and true shapes."""
    image = torch.from_numpy(fixture[f"img{view}_u8"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return {"image": image, "true_shape": torch.from_numpy(fixture[f"true_shape{view}"])}


@needs_spec
@pytest.mark.parametrize("name", LINEAR)
def test_published_numbers_are_reproduced(name):
    """Encoder, decoder and output arrays agree to 1e-4 + 1e-4 |reference|, in every orientation mode."""
    with np.load(SPEC / "fixtures" / f"{name}.npz") as file:
        fixture = {key: file[key] for key in file.files}
    network = recipe_network(arguments(json.loads(str(fixture["meta_json"]))["config"]))
    view1, view2 = fixture_input(fixture, 1), fixture_input(fixture, 2)
    with torch.no_grad():
        tokens1, positions1 = network.encode_tokens(*network._embed(view1["image"], view1["true_shape"]))
        tokens2, positions2 = network.encode_tokens(*network._embed(view2["image"], view2["true_shape"]))
        stream1, stream2 = network.decode_tokens(tokens1, positions1, tokens2, positions2)
        out1, out2 = network(view1, view2)
    got = {"enc1": tokens1, "enc2": tokens2, "dec1": torch.stack(stream1[1:]), "dec2": torch.stack(stream2[1:])}
    got |= {f"out1_{key}": value for key, value in out1.items()} | {f"out2_{key}": value for key, value in out2.items()}
    np.testing.assert_array_equal(positions1.numpy(), fixture["pos1"])
    np.testing.assert_array_equal(positions2.numpy(), fixture["pos2"])
    assert set(got) == {key for key in fixture if key.startswith(("enc", "dec", "out"))}
    for key, value in got.items():
        np.testing.assert_allclose(value.numpy(), fixture[key], atol=1e-4, rtol=1e-4, err_msg=key)


@torch.no_grad()
def test_encode_and_decode_are_the_forward_pass():
    """The protocol's two halves give the same maps as one call, for views of different shapes."""
    network = recipe_network()
    assert isinstance(network, PointmapNetwork)
    generator = torch.Generator().manual_seed(0)
    image1, image2 = (torch.rand(2, 3, *size, generator=generator) * 2 - 1 for size in ((48, 64), (64, 32)))
    out1, out2 = network({"image": image1}, {"image": image2})
    output = network.decode(network.encode(image1), network.encode(image2))
    torch.testing.assert_close(output.points_reference, out1["pts3d"])
    torch.testing.assert_close(output.points_other, out2["pts3d_in_other_view"])
    torch.testing.assert_close(output.confidence_other, out2["conf"])
    assert output.confidence_reference.min() > 1


@torch.no_grad()
def test_portrait_images_give_the_same_answer_in_both_layouts():
    """Stored transposed in the landscape layout, a portrait image's maps are the transposes of the upright ones."""
    layout = recipe_network({"landscape_only": True, "patch_embed_cls": "ManyAR_PatchEmbed"} | _without_layout())
    upright = recipe_network()
    image = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    stored = {"image": image.transpose(2, 3), "true_shape": torch.tensor([[64, 48], [64, 48]])}
    expected, _ = upright({"image": image}, {"image": image})
    got, _ = layout(stored, stored)
    torch.testing.assert_close(got["pts3d"], expected["pts3d"].transpose(1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_answers_do_not_depend_on_the_batch():
    """A pair alone and the same pair among others agree to rounding."""
    network = recipe_network()
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = network.encode(images)
    together = network.decode(encoded, encoded.select(torch.tensor([1, 2, 0])))
    alone = network.decode(network.encode(images[1:2]), network.encode(images[2:3]))
    torch.testing.assert_close(together.points_other[1:2], alone.points_other, atol=1e-5, rtol=1e-5)


def test_post_processing_by_hand():
    """(3, 0, 4) has norm 5: unit vector times exp(5) - 1; confidence 1 + exp(0) = 2, or clipped, or a sigmoid."""
    raw = torch.tensor([3.0, 0.0, 4.0, 0.0]).reshape(1, 4, 1, 1)
    exponential = points_and_confidence(raw, ("exp", -np.inf, np.inf), ("exp", 1, np.inf))
    torch.testing.assert_close(exponential["points"][0, 0, 0], torch.tensor([0.6, 0.0, 0.8]) * float(np.expm1(5.0)))
    assert exponential["conf"].item() == 2
    square = points_and_confidence(raw, ("square", -np.inf, np.inf), ("exp", 1, 1.5))
    torch.testing.assert_close(square["points"][0, 0, 0], torch.tensor([15.0, 0.0, 20.0]))
    assert square["conf"].item() == 1.5
    assert points_and_confidence(raw, ("linear",), ("sigmoid", 1, 3))["conf"].item() == 2
    assert points_and_confidence(raw[:, :3], ("linear",), None)["conf"].item() == 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"head_type": "dpt"}, MissingPartError),
        ({"two_confs": True}, MissingPartError),
        ({"head_type": "other"}, CheckpointError),
        ({"pos_embed": "cosine"}, CheckpointError),
        ({"depth_mode": ("exp", 0.0, 5.0)}, CheckpointError),
        ({"surprise": 1}, CheckpointError),
    ],
)
def test_unsupported_settings_are_refused(changed, error):
    """Heads that are still to come are missing parts; settings outside the family are checkpoint errors."""
    with pytest.raises(error, match="what to do"):
        Dust3RConfig.from_arguments({"pos_embed": "RoPE100"} | changed)


def _without_layout() -> dict[str, object]:
    from dust3r_recipe import TINY

    return {key: value for key, value in TINY.items() if key != "landscape_only"}
