"""The adapter: the base at first, mergeable, removable, and stored as peft stores it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dust3r_recipe import DESCRIPTORS, FULL, TINY, TINY_DPT, TINY_MAST3R, random_view, recipe_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wall_example import write_wall

from lora3d_splat.errors import CheckpointError, InputError
from lora3d_splat.lora.adapter import (
    LoraConfig,
    adapter_parameters,
    adapter_state,
    disabled,
    inject,
    is_adapted,
    load_adapter,
    merge,
    remove,
    save_adapter,
    unmerge,
)
from lora3d_splat.networks import build_network, load_network
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.dust3r import Dust3R
from lora3d_splat.prediction import images_tensor

IMAGES = images_tensor([random_view(index, (32, 48)) for index in range(2)])


@torch.no_grad()
def answer(network: PointmapNetwork) -> torch.Tensor:
    """Points of the second view of one pair."""
    encoded = network.encode(IMAGES)
    return network.decode(encoded.select(torch.tensor([0])), encoded.select(torch.tensor([1]))).points_other


@torch.no_grad()
def trained(network: PointmapNetwork) -> PointmapNetwork:
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapter_parameters(network):
        if ".lora_B." in name:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def test_adapted_network_is_the_base_before_the_first_step():
    """B starts at zero, so the answers are bit-equal, and the network is still a pointmap network of its class."""
    network = recipe_network()
    before = answer(network)
    adapted = inject(network)
    assert adapted is network
    assert isinstance(adapted, Dust3R)
    assert isinstance(adapted, PointmapNetwork)
    assert torch.equal(answer(adapted), before)


def test_only_the_attention_inputs_are_adapted_and_trainable():
    """Rank-16 pairs (A, B) on every qkv, projq, projk, projv; counted by hand for the tiny network."""
    network = inject(recipe_network(), LoraConfig(rank=16))
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in adapter_parameters(network)}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable} == {"qkv", "projq", "projk", "projv"}
    encoder = TINY["enc_depth"] * 16 * (64 + 3 * 64)
    decoder = 2 * TINY["dec_depth"] * 16 * ((48 + 3 * 48) + 3 * (48 + 48))
    assert sum(parameter.numel() for _, parameter in adapter_parameters(network)) == encoder + decoder


def test_networks_of_other_people_name_their_layers(tmp_path):
    """The example of docs/networks.md: rank 16 on one layer of 3 inputs and 1 output; no layers, no adapter."""
    network = load_network(f"{write_wall(tmp_path)}:WallNetwork")
    assert sum(parameter.numel() for _, parameter in adapter_parameters(inject(network))) == 16 * (3 + 1)
    bare = remove(network)
    bare.lora_targets = ()
    with pytest.raises(InputError, match="wall, which names no layers"):
        inject(bare)


def test_start_depends_on_the_seed_alone():
    """Equal seeds give equal A, other seeds other A, and the global generator is left as it was."""
    networks = [recipe_network() for _ in range(3)]
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    pairs = zip(networks, (0, 0, 1), strict=True)
    states = [adapter_state(inject(network, LoraConfig(rank=4, seed=seed))) for network, seed in pairs]
    assert torch.equal(torch.rand(1), expected)
    key = next(key for key in states[0] if "lora_A" in key)
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


@pytest.mark.parametrize("head", [{}, {"head_type": "dpt"}, DESCRIPTORS], ids=["linear", "dpt", "mast3r"])
def test_full_size_adapters_have_the_published_size(head):
    """Rank 16 on the attention inputs: 4,521,984 parameters, 18.1 MB in float32; on the meta device."""
    with torch.device("meta"):
        network = inject(build_network("mast3r" if "output_mode" in head else "dust3r", **FULL, **head))
    parameters = [parameter for _, parameter in adapter_parameters(network)]
    assert sum(parameter.numel() for parameter in parameters) == 4_521_984
    assert sum(parameter.nbytes for parameter in parameters) / 1e6 == pytest.approx(18.1, abs=0.05)


@pytest.mark.parametrize("arguments", [TINY, TINY_DPT, TINY_MAST3R], ids=["linear", "dpt", "mast3r"])
def test_merged_equals_unmerged(arguments):
    """W + alpha / rank B A gives the same answers to 1e-5, and unmerging returns to them."""
    network = trained(inject(recipe_network(arguments), LoraConfig(rank=4, alpha=8)))
    apart = answer(network)
    torch.testing.assert_close(answer(merge(network)), apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(unmerge(network)), apart, atol=1e-5, rtol=1e-5)


def test_disabling_and_removing_give_the_base_back():
    """Inside `disabled`, and after `remove`, the answers and the state dict are bit-equal to the base's."""
    base = recipe_network()
    before, state = answer(base), {key: value.clone() for key, value in base.state_dict().items()}
    network = trained(inject(base))
    adapted = answer(network)
    assert not torch.equal(adapted, before)
    with disabled(network):
        assert torch.equal(answer(network), before)
    assert torch.equal(answer(network), adapted)
    remove(network)
    assert not is_adapted(network)
    assert torch.equal(answer(network), before)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())


def test_saved_and_loaded_adapters_answer_alike(tmp_path):
    """Bit-equal answers on a fresh base; loading again replaces what is there."""
    network = trained(inject(recipe_network(), LoraConfig(rank=4, alpha=8)))
    save_adapter(network, tmp_path / "adapter")
    fresh = load_adapter(recipe_network(), tmp_path / "adapter")
    assert torch.equal(answer(fresh), answer(network))
    assert torch.equal(answer(load_adapter(fresh, tmp_path / "adapter")), answer(network))


def test_the_folder_is_in_pefts_layout(tmp_path):
    """peft's own PeftModel reads the folder onto a fresh base and gives the same answers."""
    from peft import PeftModel

    network = trained(inject(recipe_network(), LoraConfig(rank=4, alpha=8)))
    folder = save_adapter(network, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        assert stored.metadata() == {"format": "pt", "base_model": "tiny", "base_model_licence": network.licence}
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)
    assert settings["base_model_name_or_path"] == "tiny"
    assert settings["target_modules"] == ["projk", "projq", "projv", "qkv"]
    base = recipe_network()
    PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(answer(base), answer(network))


def test_unusable_adapters_are_refused(tmp_path):
    """No folder, a damaged file, and an adapter of another network raise CheckpointError; the base stays usable."""
    base = recipe_network()
    before = answer(base)
    for absent in (tmp_path / "absent", Path("out/adapter")):  # the second could be the id of a model on the hub
        with pytest.raises(CheckpointError, match=r"no adapter_config\.json.*calibrate again"):
            load_adapter(base, absent)
    folder = save_adapter(inject(recipe_network(), LoraConfig(rank=4)), tmp_path / "adapter")
    stored = load_file(folder / "adapter_model.safetensors")
    save_file({key: value[..., :3].contiguous() for key, value in stored.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit tiny"):
        load_adapter(base, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="no readable adapter"):
        load_adapter(base, folder)
    assert torch.equal(answer(base), before)


def test_settings_are_checked():
    """A rank of zero and a second adapter are refused."""
    with pytest.raises(InputError, match="rank of at least 1"):
        LoraConfig(rank=0)
    with pytest.raises(InputError, match="remove the adapter first"):
        inject(inject(recipe_network()))
