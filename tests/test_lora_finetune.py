"""Fine-tuning: it lowers the loss on pseudo labels, touches only the adapter, and survives interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dust3r_recipe import random_view, recipe_network

from lora3d_splat.errors import InputError
from lora3d_splat.lora.adapter import adapter_state
from lora3d_splat.lora.finetune import FinetuneConfig, _predict, finetune, planned_epochs, settled
from lora3d_splat.networks.compact import CompactArchitecture, CompactNetwork
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import encode_views, predict_pairs
from lora3d_splat.records import ImagePair, PseudoLabels

VIEWS = [random_view(index, size) for index, size in enumerate(((32, 32), (32, 32), (32, 16)))]
CONFIG = FinetuneConfig(rank=4, lora_alpha=4, epochs=4)


def targets() -> list[PseudoLabels]:
    """Labels that another network of the same make believes in, so that they can be learnt only in part."""
    predictions = predict_pairs(recipe_network(salt=1), VIEWS, complete_pairs(3))
    return [
        PseudoLabels(
            p.pair, 3 * p.points_reference, p.confidence_reference > 1.3, 3 * p.points_other, p.confidence_other > 1.3
        )
        for p in predictions
    ]


LABELS = targets()


def test_loss_falls_and_only_the_adapter_changes():
    """The last epoch's loss is clearly below the first one's (measured: 0.89 of it); no base weight has changed."""
    network = recipe_network()
    base = {key: value.clone() for key, value in network.state_dict().items()}
    counted: list[int] = []
    config = FinetuneConfig(rank=8, lora_alpha=8, learning_rate=1e-2, epochs=6)
    result = finetune(network, VIEWS, LABELS, config, counted.append)
    assert result.losses[-1] < 0.92 * result.losses[0]
    assert len(result.losses) == config.epochs
    assert sum(counted) == config.epochs * len(LABELS)
    after = {key.replace(".base_layer.", "."): value for key, value in network.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in base.items())


def test_same_seed_same_adapter():
    """Two runs agree to the bit; another seed gives another adapter."""
    states = []
    for seed in (3, 3, 4):
        network = recipe_network()
        finetune(network, VIEWS, LABELS, FinetuneConfig(rank=2, epochs=1, seed=seed))
        states.append(adapter_state(network))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


class Interrupt(Exception):
    """Stands for Ctrl-C."""


def test_an_interrupted_run_continues_to_the_same_result(tmp_path):
    """Stopped in the middle of the third epoch and run again, adapter and losses equal an undisturbed run's."""
    undisturbed = recipe_network()
    expected = finetune(undisturbed, VIEWS, LABELS, CONFIG)
    seen = 0

    def stop(pairs: int) -> None:
        nonlocal seen
        seen += pairs
        if seen > 2.5 * len(LABELS):
            raise Interrupt

    with pytest.raises(Interrupt):
        finetune(recipe_network(), VIEWS, LABELS, CONFIG, stop, tmp_path / "state.pt")
    network, counted = recipe_network(), []
    result = finetune(network, VIEWS, LABELS, CONFIG, counted.append, tmp_path / "state.pt")
    assert result.losses == expected.losses
    assert counted[0] == 2 * len(LABELS), "two finished epochs were kept"
    wanted, got = adapter_state(undisturbed), adapter_state(network)
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_a_state_of_other_inputs_or_a_damaged_one_is_not_continued(tmp_path, capsys):
    """Other settings start afresh without a word; a damaged file with one."""
    short = FinetuneConfig(rank=2, epochs=1)
    finetune(recipe_network(), VIEWS, LABELS, short, None, tmp_path / "state.pt")
    counted: list[int] = []
    other = FinetuneConfig(rank=2, epochs=1, seed=1)
    finetune(recipe_network(), VIEWS, LABELS, other, counted.append, tmp_path / "state.pt")
    assert max(counted) <= other.batch_size
    (tmp_path / "state.pt").write_bytes(b"cut short")
    finetune(recipe_network(), VIEWS, LABELS, other, None, tmp_path / "state.pt")
    assert "is damaged" in capsys.readouterr().out


def test_labels_without_trusted_pixels_are_refused():
    """Nothing to learn from is said before anything is changed."""
    empty = [
        PseudoLabels(x.pair, x.points_reference, x.valid_reference & False, x.points_other, x.valid_other & False)
        for x in LABELS
    ]
    network = recipe_network()
    with pytest.raises(InputError, match="trusted pixel"):
        finetune(network, VIEWS, empty)
    assert not hasattr(network, "peft_config")


def test_few_pairs_pass_as_often_as_the_network_asks():
    """Ten times without a word of its own; by its steps, five times at least; exactly so often where told."""
    network, usual = recipe_network(), FinetuneConfig(rank=2)
    assert planned_epochs(network, 7, usual) == 10
    network.adaptation_steps = 450
    assert planned_epochs(network, 8, usual) == 113  # of 4 steps each
    assert planned_epochs(network, 108, usual) == 9
    assert planned_epochs(network, 1000, usual) == 5
    assert planned_epochs(network, 8, FinetuneConfig(rank=2, epochs=3)) == 3
    network.adaptation_steps = 25
    counted: list[int] = []
    result = finetune(network, VIEWS, LABELS, usual, counted.append)
    assert len(result.losses) == max(5, -(-25 // -(-len(LABELS) // 2)))
    assert sum(counted) == len(result.losses) * len(LABELS)


def test_both_orders_of_a_pair_share_a_batch():
    """A batch of two encodes two images where a pair is labelled in both orders; lone pairs share what is left."""
    network = recipe_network()
    encoded, encode = [], network.encode
    network.encode = lambda images: encoded.append(len(images)) or encode(images)
    squares = [random_view(index, (32, 32)) for index in range(4)]
    predictions = predict_pairs(recipe_network(salt=1), squares, complete_pairs(4))
    labels = [
        PseudoLabels(p.pair, p.points_reference, p.confidence_reference > 1.0, p.points_other, p.confidence_other > 1.0)
        for p in predictions
    ]
    finetune(network, squares, labels, replace(CONFIG, epochs=1))
    assert encoded == [2] * 6
    encoded.clear()
    lone = [label for label in labels if (label.pair.reference, label.pair.other) not in ((1, 0), (3, 2))]
    finetune(network, squares, lone, replace(CONFIG, epochs=1))
    assert sorted(encoded) == [2, 2, 2, 2, 4]


def test_alpha_is_the_networks_own_unless_given():
    """A network trained with alpha 1 is fine-tuned as with alpha=1; without a word of its own, as with 0.2."""

    def state(config: FinetuneConfig, own: float | None = None) -> dict[str, torch.Tensor]:
        network = recipe_network()
        if own is not None:
            network.confidence_alpha = own
        finetune(network, VIEWS, LABELS, config)
        return adapter_state(network)

    usual, asked = FinetuneConfig(rank=2, epochs=1), FinetuneConfig(rank=2, epochs=1, alpha=1.0)
    same = [(state(usual, 1.0), state(asked)), (state(usual), state(replace(usual, alpha=0.2)))]
    assert all(torch.equal(a[key], b[key]) for a, b in same for key in a)
    assert any(not torch.equal(same[0][0][key], same[1][0][key]) for key in same[0][0])


def test_only_the_layers_asked_for_are_adapted():
    network = recipe_network()
    finetune(network, VIEWS, LABELS, FinetuneConfig(rank=2, epochs=1, targets=("qkv",)))
    assert {name.split(".lora_")[0].split(".")[-1] for name in adapter_state(network)} == {"qkv"}
    with pytest.raises(InputError, match="fc9"):
        finetune(recipe_network(), VIEWS, LABELS, FinetuneConfig(rank=2, epochs=1, targets=("fc9",)))


def test_settings_are_checked():
    """A learning rate that grows is refused."""
    with pytest.raises(InputError, match="does not grow"):
        FinetuneConfig(learning_rate=1e-6)


def test_bfloat16_teaches_like_float32():
    """The mean losses of the epochs agree to 2 %, and the adapter stays in float32."""
    losses = []
    for precision in ("float32", "bfloat16"):
        network = recipe_network()
        losses.append(finetune(network, VIEWS, LABELS, replace(CONFIG, precision=precision)).losses)
        assert all(tensor.dtype == torch.float32 for tensor in adapter_state(network).values())
    assert losses[0] != losses[1]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0.02, atol=0)


def test_auto_precision_is_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Whatever the processor can do and however large the network is; what is asked for by name stays."""
    monkeypatch.setattr("lora3d_splat.precision.LARGE_PARAMETERS", 1)
    monkeypatch.setattr("lora3d_splat.precision.has_bfloat16", lambda device: True)
    assert settled(FinetuneConfig(), recipe_network()).precision == "float32"
    assert settled(FinetuneConfig(precision="bfloat16"), recipe_network()).precision == "bfloat16"


def test_auto_precision_is_bfloat16_on_a_gpu_for_large_networks(monkeypatch: pytest.MonkeyPatch):
    """A network on a device that is no CPU stands for one on a GPU."""
    monkeypatch.setattr("lora3d_splat.precision.has_bfloat16", lambda device: True)
    network = recipe_network().to("meta")
    assert settled(FinetuneConfig(), network).precision == "float32"
    monkeypatch.setattr("lora3d_splat.precision.LARGE_PARAMETERS", 1)
    assert settled(FinetuneConfig(), network).precision == "bfloat16"


def test_both_orders_of_a_batch_are_decoded_at_once_where_the_network_can() -> None:
    """In the order asked for; what has no counterpart in the batch, or stands there twice, is decoded alone."""
    torch.manual_seed(0)
    network = CompactNetwork(CompactArchitecture(width=32, heads=2, encoder_depth=1, decoder_depth=1, match_width=16))
    views = [random_view(index, (32, 48)) for index in range(3)]
    encoded = encode_views(network, views, range(3))

    def predicted(orders: list[tuple[int, int]]) -> torch.Tensor:
        return _predict(network, views, [ImagePair(*order) for order in orders], FinetuneConfig()).points_other

    together = predicted([(1, 0), (0, 2), (0, 1), (2, 0)])
    for rows, (first, second) in (((0, 2), (1, 0)), ((1, 3), (0, 2))):
        for row, expected in zip(rows, network.decode_both(encoded[first], encoded[second]), strict=True):
            torch.testing.assert_close(together[row : row + 1], expected.points_other, rtol=1e-3, atol=1e-4)
    assert together.requires_grad
    for orders in ([(0, 1), (1, 2), (2, 1)], [(0, 1), (0, 1)]):
        alone = torch.cat([predicted([order]) for order in orders])
        torch.testing.assert_close(predicted(orders), alone, rtol=1e-3, atol=1e-4)
