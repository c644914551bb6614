"""DUSt3R and MASt3R: sizes, the public handle, and their symmetries; published numbers have a file of their own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from dust3r_recipe import DESCRIPTORS, FULL, TINY, TINY_DPT, TINY_MAST3R, random_images, recipe_network

from lora3d_splat.errors import CheckpointError, InputError
from lora3d_splat.networks import build_network
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.dpt import Fusion, double
from lora3d_splat.networks.dust3r import Dust3R
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.networks.postprocess import descriptors, points_and_confidence

HEADS = {"linear": TINY, "dpt": TINY_DPT, "mast3r": TINY_MAST3R}
LAYOUT = {"landscape_only": True, "patch_embed_cls": "ManyAR_PatchEmbed"}


@pytest.mark.parametrize(
    ("model", "head", "keys", "tensors", "parameters", "head_parameters"),
    [
        ("dust3r", {}, 877, 877, 532_342_784, 787_456),
        ("dust3r", {"head_type": "dpt"}, 1009, 1001, 571_171_208, 20_201_668),
        ("mast3r", DESCRIPTORS, 1017, 1009, 688_638_856, 78_935_492),
    ],
    ids=["linear", "dpt", "mast3r"],
)
def test_full_size_networks_have_the_published_sizes(model, head, keys, tensors, parameters, head_parameters):
    """Keys, distinct tensors (aliases counted once) and parameters, as published; on the meta device."""
    with torch.device("meta"):
        network = build_network(model, **FULL, **head)
    state = network.state_dict(keep_vars=True)
    assert (len(state), len({id(value) for value in state.values()})) == (keys, tensors)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    for side in (network.downstream_head1, network.downstream_head2):
        assert sum(parameter.numel() for parameter in side.parameters()) == head_parameters


@torch.no_grad()
def test_the_second_name_of_a_tensor_stays_the_same_tensor():
    """layer_rn.k is layerN_rn after loading, copying and moving, and loading either name changes both."""
    network = copy.deepcopy(recipe_network(TINY_DPT)).double()
    scratch = network.downstream_head1.dpt.scratch
    for index in range(4):
        assert scratch.layer_rn[index].weight is getattr(scratch, f"layer{index + 1}_rn").weight
    prefix = "downstream_head1.dpt.scratch."
    network.load_state_dict({f"{prefix}layer_rn.2.weight": torch.zeros(256, 384, 3, 3)}, strict=False)
    assert not scratch.layer3_rn.weight.any()


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_encode_and_decode_are_the_forward_pass(head):
    """The protocol's two halves give the maps of one call, for views of different shapes with odd token grids."""
    network = recipe_network(HEADS[head])
    assert isinstance(network, PointmapNetwork)
    image1, image2 = random_images(1, 48, 80), random_images(1, 64, 32, seed=1)
    out1, out2 = network({"img": image1}, {"img": image2, "true_shape": np.array([[64, 32]])})
    output = network.decode(network.encode(image1), network.encode(image2))
    assert torch.equal(output.points_reference, out1["pts3d"])
    assert torch.equal(output.confidence_reference, out1["conf"])
    assert torch.equal(output.points_other, out2["pts3d_in_other_view"])
    assert torch.equal(output.confidence_other, out2["conf"])
    assert out1["pts3d"].shape == (1, 48, 80, 3)
    assert out2["conf"].shape == (1, 64, 32)
    assert output.confidence_reference.min() > 1


@torch.no_grad()
def test_descriptors_have_length_one_and_a_confidence_of_their_own():
    """MASt3R's four maps; without two_confs the descriptors share the confidence of the points."""
    images = random_images(1, 32, 48)
    out, other = recipe_network(TINY_MAST3R)({"img": images}, {"img": images})
    assert set(out) == {"pts3d", "conf", "desc", "desc_conf"}
    assert set(other) == {"pts3d_in_other_view", "conf", "desc", "desc_conf"}
    assert out["desc"].shape == (1, 32, 48, 24)
    torch.testing.assert_close(out["desc"].norm(dim=-1), torch.ones(1, 32, 48))
    assert out["desc_conf"].min() < 1 < out["conf"].min()
    shared, _ = recipe_network(TINY_MAST3R | {"two_confs": False})({"img": images}, {"img": images})
    assert torch.equal(shared["desc_conf"], shared["conf"])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_mixed_orientations_share_a_batch(head):
    """In the landscape layout each item's maps are those of the image alone, upright, those of portraits transposed."""
    layout, upright = recipe_network(HEADS[head] | LAYOUT), recipe_network(HEADS[head])
    landscape, portrait = random_images(1, 48, 64), random_images(1, 64, 48, seed=1)
    stored = torch.cat([portrait.transpose(2, 3), landscape])
    shapes = torch.tensor([[64, 48], [48, 64]])
    got, _ = layout({"img": stored, "true_shape": shapes}, {"img": stored.flip(0), "true_shape": shapes.flip(0)})
    first, _ = upright({"img": portrait}, {"img": landscape})
    second, _ = upright({"img": landscape}, {"img": portrait})
    for key, maps in got.items():
        torch.testing.assert_close(maps[:1], first[key].transpose(1, 2), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(maps[1:], second[key], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_answers_do_not_depend_on_the_batch():
    """A pair alone and the same pair among others agree to rounding."""
    network = recipe_network()
    images = random_images(3, 32, 48)
    encoded = network.encode(images)
    together = network.decode(encoded, encoded.select(torch.tensor([1, 2, 0])))
    alone = network.decode(network.encode(images[1:2]), network.encode(images[2:3]))
    torch.testing.assert_close(together.points_other[1:2], alone.points_other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_heads_stay_in_float32_below_a_bfloat16_trunk():
    """Under autocast, and with a trunk stored in bfloat16, maps are float32 and near those of float32."""
    network = recipe_network(TINY_DPT)
    images = random_images(1, 32, 48)
    expected, _ = network({"img": images}, {"img": images})
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = network({"img": images}, {"img": images})
    for part in (network.patch_embed, network.enc_blocks, network.enc_norm, network.decoder_embed):
        part.bfloat16()
    for part in (network.dec_blocks, network.dec_blocks2, network.dec_norm):
        part.bfloat16()
    stored, _ = network({"img": images}, {"img": images})
    scale = expected["pts3d"].norm(dim=-1).mean()
    for maps in (mixed, stored):
        assert maps["pts3d"].dtype == torch.float32
        error = (maps["pts3d"] - expected["pts3d"]).norm(dim=-1).mean() / scale
        assert 0 < error < 0.05


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_network_converted_to_float64_answers_in_float64(head):
    """The heads follow the weights that they are given; float32 is within the tolerance of the published numbers."""
    network, images = recipe_network(HEADS[head]), random_images(1, 32, 48)
    single, _ = network({"img": images}, {"img": images})
    exact, _ = network.double()({"img": images.double()}, {"img": images.double()})
    for key, maps in exact.items():
        assert maps.dtype == torch.float64
        torch.testing.assert_close(single[key].double(), maps, atol=1e-4, rtol=1e-4)


def test_fusion_applies_its_convolution_as_if_after_the_enlargement():
    """The shortcut of convolving before enlarging equals the definition, for one row and for odd sizes."""
    torch.manual_seed(0)
    fusion = Fusion().double()
    for size in ((1, 3), (4, 5)):
        x = torch.randn(1, 256, *size, dtype=torch.float64)
        defined = fusion.out_conv(double(fusion.resConfUnit2(x)))
        torch.testing.assert_close(fusion(x), defined)
    row = double(torch.tensor([[[[0.0, 3.0]]]]))
    torch.testing.assert_close(row, torch.tensor([[[[0.0, 1.0, 2.0, 3.0]] * 2]]))


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
    assert set(points_and_confidence(raw[:, :3], ("linear",), None)) == {"points"}
    described = descriptors(raw, 3, ("exp", 0, np.inf))
    torch.testing.assert_close(described["desc"][0, 0, 0], torch.tensor([0.6, 0.0, 0.8]))
    assert described["desc_conf"].item() == 1


@torch.no_grad()
def test_networks_without_confidence():
    """`conf_mode=None` leaves the map out of the call and gives the protocol ones."""
    network = recipe_network(TINY | {"conf_mode": None})
    images = random_images(1, 32, 48)
    assert set(network({"img": images}, {"img": images})[0]) == {"pts3d"}
    encoded = network.encode(images)
    assert torch.equal(network.decode(encoded, encoded).confidence_other, torch.ones(1, 32, 48))


@pytest.mark.parametrize(
    "changed",
    [
        {"head_type": "other"}, {"head_type": "dpt"}, {"head_type": "dpt", "dec_depth": 12, "patch_size": 8},
        {"head_type": "catmlp+dpt", "dec_depth": 12}, {"output_mode": "pts3d+desc24"}, {"output_mode": "pts3d+desc0"},
        {"pos_embed": "cosine"}, {"pos_embed": "RoPE"}, {"pos_embed": 100}, {"depth_mode": ("exp", 0.0, 5.0)},
        {"depth_mode": "exp"}, {"conf_mode": ("exp",)}, {"conf_mode": ("tanh", 0, 1)}, {"enc_depth": "24"},
        {"enc_depth": 0}, {"enc_embed_dim": 10**9}, {"enc_num_heads": 7}, {"dec_num_heads": True}, {"mlp_ratio": -1},
        {"img_size": (64, 65)}, {"img_size": None}, {"norm_im2_in_dec": False}, {"landscape_only": 1},
        {"desc_mode": "none", "output_mode": "pts3d+desc24", "head_type": "catmlp+dpt"}, {"surprise": 1},
    ],
    ids=lambda changed: "+".join(f"{key}={value}" for key, value in changed.items()),
)  # fmt: skip
def test_unsupported_settings_are_refused(changed):
    """Values of other families, of wrong types and of absurd size are one sentence, before anything is built."""
    with pytest.raises(CheckpointError, match="what to do"):
        Dust3RConfig.from_arguments({"pos_embed": "RoPE100"} | changed)


def test_the_public_handle_checks_what_it_is_asked_for():
    """Another model, MASt3R without descriptors and DUSt3R with MASt3R's arguments are refused."""
    with pytest.raises(InputError, match="dust3r or mast3r"):
        build_network("vggt")
    with pytest.raises(CheckpointError, match="mast3r network with output_mode='pts3d'"):
        build_network("mast3r", **TINY)
    with pytest.raises(CheckpointError, match="unknown network arguments two_confs"):
        build_network("dust3r", **TINY, two_confs=True)
    network = build_network("dust3r", **TINY | {"img_size": 64, "conf_mode": ["exp", 1, "inf"]}, freeze="encoder")
    assert isinstance(network, Dust3R)
    assert network.config.conf_mode == ("exp", 1, math.inf)


@torch.no_grad()
def test_unusable_images_are_refused():
    """Sides that are no whole patches, several shapes in an upright batch, unlike shapes in the landscape layout."""
    network = recipe_network()
    with pytest.raises(InputError, match="multiples of 16"):
        network.encode(random_images(1, 40, 64))
    view = {"img": random_images(2, 32, 32), "true_shape": [[32, 32], [16, 64]]}
    with pytest.raises(InputError, match="in one batch"):
        network(view, view)
    with pytest.raises(InputError, match="one shape and its transpose"):
        recipe_network(TINY | LAYOUT)(view, view)
