"""Training of the bundled network: losses, optimiser, resuming, evaluation, and the shipped checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lora3d_splat.errors import InputError
from lora3d_splat.networks.compact import (
    CHECKPOINT,
    CompactArchitecture,
    CompactNetwork,
    CompactOutput,
    architecture_json,
    load_compact,
)
from lora3d_splat.pretraining import PretrainConfig, evaluate, pretrain
from lora3d_splat.pretraining.average import average_weights
from lora3d_splat.pretraining.curves import write_curves
from lora3d_splat.pretraining.data import PairBatch, ScenePool, make_batch, move
from lora3d_splat.pretraining.deepen import deepen
from lora3d_splat.pretraining.evaluation import (
    constant_depth,
    evaluate_predictor,
    heldout_pairs,
    pair_errors,
    training_mean,
)
from lora3d_splat.pretraining.losses import WORST, depth_loss, match_accuracy, match_loss, point_loss, relative_errors
from lora3d_splat.pretraining.optimizer import orthogonalise
from lora3d_splat.pretraining.preview import CAPTION, GAP, TILE, write_preview
from lora3d_splat.pretraining.run import command
from lora3d_splat.pretraining.trainer import Trainer, forward_pairs, learning_rate_factor

SVG = "{http://www.w3.org/2000/svg}"
TINY = CompactArchitecture(width=32, heads=2, encoder_depth=1, decoder_depth=1, match_width=16)


def tiny(folder: Path) -> PretrainConfig:
    """Six steps of a very small network on small pictures."""
    return PretrainConfig(
        folder=folder,
        steps=6,
        precision="float32",
        pairs=2,
        sizes=((32, 48),),
        final_sizes=((48, 32),),
        pool_scenes=4,
        first_scenes=3,
        steps_per_scene=2,
        views=3,
        warm_up=2,
        validation_scenes=0,
        architecture=TINY,
    )


@pytest.fixture(scope="module")
def batch() -> PairBatch:
    """Two held-out pairs without augmentation."""
    return make_batch(list(heldout_pairs(3, (48, 64))[:2]), None)


def perfect(batch: PairBatch, scale: float = 1.0) -> CompactOutput:
    """What a faultless network would say, in units of its own."""
    confidence = torch.full(batch.valid.shape, 2.0)
    cells = batch.match_index.shape[1]
    logits = torch.zeros(len(batch.valid), cells, cells)
    logits.scatter_add_(2, batch.match_index, 50 * batch.match_weight)
    depth = batch.cell_depth.clamp(min=1e-6).log() + 0.7
    with torch.no_grad():
        guessed = forward_pairs(CompactNetwork(TINY), batch)
    return replace(
        guessed,
        points_reference=scale * batch.points_own,
        points_other=scale * batch.partner(batch.points_partner),
        settled_reference=scale * batch.points_own,
        settled_other=scale * batch.partner(batch.points_partner),
        confidence_reference=confidence,
        confidence_other=confidence,
        match_logits=logits,
        log_depth_reference=depth,
    )


def settled_as_decoded(output: CompactOutput, points_other: torch.Tensor) -> CompactOutput:
    """With other points of the other view, which have not settled elsewhere."""
    return replace(output, points_other=points_other, settled_other=points_other)


def test_point_loss_ignores_the_unit_of_length(batch: PairBatch) -> None:
    """Scaling all predicted points changes nothing; perturbing them raises the loss."""
    once, thrice = (point_loss(perfect(batch, scale), batch, 1.0) for scale in (1.0, 3.0))
    torch.testing.assert_close(once, thrice)
    right = perfect(batch)
    wrong = settled_as_decoded(right, right.points_other + 0.5)
    assert point_loss(wrong, batch, 1.0) > once + 0.05


def test_point_loss_counts_relative_to_distance(batch: PairBatch) -> None:
    """Turning the other view's points by the same angle costs the same, however far away they are."""
    right, angle = perfect(batch), 0.1
    turn = torch.tensor([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]).float()
    wrong = settled_as_decoded(right, right.points_other @ turn.T)
    error = 2 * np.sin(angle / 2) * float(batch.partner(batch.valid).float().mean())
    rise = float(point_loss(wrong, batch, 1.0) - point_loss(right, batch, 1.0)) / 2.0  # their confidence is 2
    assert 0.5 * error < rise < 1.2 * error, "points straight above or below turn less"


def test_point_loss_minimum_over_confidence_is_alpha_over_error(batch: PairBatch) -> None:
    """For a fixed error e the loss C e - alpha log C is least at C = alpha / e."""
    right = perfect(batch)
    other = right.points_other * 1.2
    candidates = torch.linspace(1, 30, 59)
    losses = [
        point_loss(
            replace(
                settled_as_decoded(right, other), confidence_other=torch.full_like(right.confidence_other, float(c))
            ),
            batch,
            1.0,
        )
        for c in candidates
    ]
    best = int(torch.stack(losses).argmin())
    assert 0 < best < len(candidates) - 1


def test_confidence_learns_from_what_has_settled(batch: PairBatch) -> None:
    """Where points settle, confidence is pulled to what they err then, and points as without."""
    torch.manual_seed(0)
    network = CompactNetwork(TINY)
    plain, settled = (forward_pairs(network, batch, settle) for settle in (False, True))
    torch.testing.assert_close(plain.points_other, settled.points_other)
    torch.testing.assert_close(plain.settled_other, plain.points_other)
    judged = relative_errors(settled.settled_reference, settled.settled_other, batch)[1].clamp(max=WORST)
    slopes = []
    for found in (plain, settled):
        points = found.points_other.detach().requires_grad_()
        confidence = found.confidence_other.detach().requires_grad_()
        output = replace(found, points_other=points, confidence_other=confidence)
        slopes.append(torch.autograd.grad(point_loss(output, batch, 1.0), [points, confidence]))
    torch.testing.assert_close(slopes[1][0], slopes[0][0])
    valid = batch.partner(batch.valid)
    expected = (judged - 1 / settled.confidence_other)[valid] / valid.numel()
    torch.testing.assert_close(slopes[1][1][valid], expected.detach())
    assert not torch.allclose(slopes[1][1], slopes[0][1])


def test_match_targets_agree_with_the_geometry(batch: PairBatch) -> None:
    """A volume that peaks at the targets has high accuracy and low loss; a flat one has the loss of guessing."""
    right = perfect(batch)
    assert match_accuracy(right.match_logits, batch) == 1
    assert match_loss(right.match_logits, batch) < 8
    cells = right.match_logits.shape[-1]
    flat = match_loss(torch.zeros_like(right.match_logits), batch)
    torch.testing.assert_close(flat, torch.tensor(float(np.log(cells))), rtol=1e-4, atol=1e-4)
    assert batch.match_weight.sum() > 20


def test_depth_loss_ignores_scale_per_view(batch: PairBatch) -> None:
    """True log-depth plus a constant has no loss; its negative has some."""
    depth = perfect(batch).log_depth_reference
    assert depth_loss(depth, batch) < 1e-5
    assert depth_loss(-depth, batch) > 0.05


def test_mirrored_pairs_stay_consistent() -> None:
    """After flips and swaps the transform still carries own points to the partner's frame, and matches stay many."""
    pairs = list(heldout_pairs(3, (48, 64))[:4])
    for seed in range(3):
        batch = make_batch(pairs, np.random.default_rng(seed))
        torch.testing.assert_close(batch.points_partner, move(batch.T_partner_own, batch.points_own))
        identity = batch.partner(batch.T_partner_own) @ batch.T_partner_own
        torch.testing.assert_close(identity, torch.eye(4).expand_as(identity), rtol=1e-4, atol=1e-4)
        determinant = torch.det(batch.T_partner_own[:, :3, :3])
        torch.testing.assert_close(determinant, torch.ones_like(determinant))
        assert batch.match_weight.sum() > 50


def test_orthogonalise_flattens_the_spectrum() -> None:
    """Newton-Schulz moves all singular values into a band around one."""
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 40)).float())
    assert singular.min() > 0.5
    assert singular.max() < 1.4


def test_a_deeper_network_says_at_first_what_the_shallower_one_said(batch: PairBatch) -> None:
    """Added blocks change nothing until they are trained, and they can be: gradients reach them."""
    torch.manual_seed(0)
    shallow = CompactNetwork(TINY)
    deep = deepen(shallow, replace(TINY, encoder_depth=2, decoder_depth=3))
    before, after = (forward_pairs(network, batch) for network in (shallow, deep))
    torch.testing.assert_close(before.points_other, after.points_other)
    torch.testing.assert_close(before.match_logits, after.match_logits)
    point_loss(after, batch, 1.0).backward()
    assert deep.dec_blocks[2].mlp.fc2.weight.grad.norm() > 0
    with pytest.raises(InputError, match="as wide"):
        deepen(shallow, replace(TINY, width=64))
    with pytest.raises(InputError, match="fewer blocks"):
        deepen(deep, TINY)


def test_workers_render_the_same_scenes_in_the_same_order(tmp_path: Path) -> None:
    """A pool filled by processes holds what a pool filled in between the steps holds, also when it is rebuilt."""
    alone = ScenePool(tiny(tmp_path))
    helped = ScenePool(replace(tiny(tmp_path), workers=1))
    rebuilt = ScenePool(replace(tiny(tmp_path), workers=1), helped.slots, helped.rendered)
    for pool in (helped, rebuilt):
        assert pool.slots == alone.slots
        for one, other in zip(alone.scenes, pool.scenes, strict=True):
            torch.testing.assert_close(one.scene.images, other.scene.images, rtol=0, atol=0)
            assert one.pairs == other.pairs
    rebuilt.extend(2, ((48, 32),))
    assert [seed for seed, _ in rebuilt.slots] == [1, 2, 3, 4], "the oldest make room"
    assert rebuilt.slots[-1][1] == (48, 32)
    for pool in (helped, rebuilt):
        pool.close()


def test_learning_rate_warms_up_and_falls_to_zero(tmp_path: Path) -> None:
    """Zero-ish first, one in the middle, zero at the end of the budget."""
    config = tiny(tmp_path)
    assert learning_rate_factor(0, 0.0, config) == pytest.approx(0.5)
    assert learning_rate_factor(10, 0.5, config) == 1
    assert learning_rate_factor(10, 1.0, config) == pytest.approx(0, abs=1e-9)


def test_perfect_predictions_have_no_error(batch: PairBatch) -> None:
    """The metric code returns zero for the truth in any unit of length."""
    output = perfect(batch, 4.0)
    maps = (output.points_reference, output.confidence_reference, output.points_other, output.confidence_other)
    for row in pair_errors(batch, maps):
        assert row["e1"] < 1e-4
        assert row["e2"] < 1e-4
        assert row["rotation"] < 0.2


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    """Three steps, save, restore, three steps: the same weights and losses as six steps."""
    whole = Trainer(tiny(tmp_path))
    losses = [whole.step().point for _ in range(6)]
    first = Trainer(tiny(tmp_path))
    resumed_losses = [first.step().point for _ in range(3)]
    first.save(tmp_path / "half.pt")
    second = Trainer(tiny(tmp_path))
    second.restore(tmp_path / "half.pt")
    resumed_losses += [second.step().point for _ in range(3)]
    assert resumed_losses == pytest.approx(losses, rel=1e-4)
    assert second.pairs == whole.pairs
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_for_devices_that_have_it(tmp_path: Path, monkeypatch, able: bool) -> None:
    monkeypatch.setattr("lora3d_splat.pretraining.trainer.has_bfloat16", lambda device: able)
    trainer = Trainer(replace(tiny(tmp_path), precision="auto"))
    assert next(trainer.worker.parameters()).dtype == (torch.bfloat16 if able else torch.float32)
    assert next(trainer.master.parameters()).dtype == torch.float32
    asked = Trainer(replace(tiny(tmp_path), precision="bfloat16"))
    assert next(asked.worker.parameters()).dtype == torch.bfloat16


def test_a_resumed_run_keeps_its_scenes(tmp_path: Path) -> None:
    """A checkpoint says which scenes it was trained on; one that does not is of the time when all were plain."""
    trainer = Trainer(replace(tiny(tmp_path), scenes="rich"))
    trainer.step()
    trainer.save(tmp_path / "rich.pt")
    state = torch.load(tmp_path / "rich.pt", weights_only=True)
    del state["scenes"]
    torch.save(state, tmp_path / "old.pt")
    for name, expected in (("rich", "rich"), ("old", "plain")):
        resumed = Trainer(replace(tiny(tmp_path), scenes="plain" if name == "rich" else "rich"))
        resumed.restore(tmp_path / f"{name}.pt")
        assert resumed.config.scenes == resumed.pool.config.scenes == expected


def test_pretrain_exports_a_loadable_network(tmp_path: Path) -> None:
    """The whole command on a tiny budget: progress file, checkpoint, export."""
    target = pretrain(replace(tiny(tmp_path), steps=2))
    assert load_compact(target).architecture == TINY
    assert (tmp_path / "progress.json").is_file()
    assert (tmp_path / "checkpoint.pt").is_file()
    curves = ElementTree.parse(tmp_path / "progress.svg").getroot()
    assert sum(each.get("class") == "title" for each in curves.iter(f"{SVG}text")) == 1, "no validation, no such panels"


def test_curves_show_every_column_of_the_history(tmp_path: Path) -> None:
    """Two columns in each of four panels, one dot a row; the picture falls where the numbers fall."""
    columns = ("point_loss", "match_loss", "e1", "e2", "rotation", "direction", "confidence_rank", "matches")
    history = [{"pairs_seen": 1000.0 * k, **dict.fromkeys(columns, 1.0 / (k + 1))} for k in range(5)]
    root = ElementTree.parse(write_curves(history, tmp_path / "progress.svg")).getroot()
    lines = [each for each in root.iter(f"{SVG}polyline")]
    assert len(lines) == len(columns)
    assert len(list(root.iter(f"{SVG}circle"))) == 5 * len(columns)
    for line in lines:
        down = [float(point.split(",")[1]) for point in line.get("points", "").split()]
        assert down == sorted(down), "y grows downwards in an SVG"


def test_the_preview_is_a_sheet_of_the_scenes_that_training_draws(tmp_path: Path) -> None:
    """Three rows of six pictures; the first tile is the first view of the chosen pair of the first scene."""
    config = replace(tiny(tmp_path), preview=3, sizes=((96, 128),), final_sizes=((128, 96),))
    sheet = np.array(Image.open(write_preview(config)))
    assert sheet.shape == (3 * (TILE[0] + CAPTION + GAP), 6 * (TILE[1] + GAP), 3)
    first = ScenePool(config, slots=[(0, (96, 128))]).scenes[0]
    i, _ = first.pairs[len(first.pairs) // 2]
    shown = Image.fromarray(first.scene.images[i].numpy()).resize((TILE[1], TILE[0]), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(sheet[CAPTION : CAPTION + TILE[0], : TILE[1]], np.array(shown))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_settings_are_checked() -> None:
    """Sizes off the patch and empty budgets are refused before any work."""
    with pytest.raises(InputError, match="multiples of 16"):
        PretrainConfig(sizes=((100, 128),))
    with pytest.raises(InputError, match="budget"):
        PretrainConfig(hours=0)


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="no packaged checkpoint in this tree")
def test_shipped_checkpoint_beats_blind_predictors(tmp_path: Path) -> None:
    """On held-out scenes: better than a constant depth and than the training mean, in both views and in rotation."""
    network, scenes, size = load_compact(), 16, (96, 128)
    accuracy, plane = evaluate(network, scenes, size), evaluate_predictor(constant_depth, scenes, size)
    mean = evaluate_predictor(training_mean(PretrainConfig(folder=tmp_path), 12, size), scenes, size)
    assert accuracy.e1 < min(plane.e1, mean.e1)
    assert accuracy.e2 < min(plane.e2, mean.e2)
    assert accuracy.rotation < 0.9 * min(accuracy.moved, mean.rotation)
    assert accuracy.matches > 0.6
    assert accuracy.confidence_rank > 0.1


def test_averaged_weights_lie_between_two_trainings(tmp_path):
    """A share of the way from one file to the other, tensor by tensor; the ends are the files themselves."""
    first = load_compact(CHECKPOINT).state_dict()
    stored = {name: (value + 1.0).half() for name, value in first.items()}
    with safe_open(str(CHECKPOINT), framework="pt") as packaged:
        metadata = packaged.metadata()
    save_file(stored, str(tmp_path / "second.safetensors"), metadata)
    average_weights(CHECKPOINT, tmp_path / "second.safetensors", 0.25, tmp_path / "third.safetensors")
    third = load_compact(tmp_path / "third.safetensors").state_dict()
    for name, value in third.items():
        torch.testing.assert_close(value, first[name] + 0.25, atol=5e-3, rtol=5e-3)
    with pytest.raises(InputError, match="share"):
        average_weights(CHECKPOINT, CHECKPOINT, 1.5, tmp_path / "fourth.safetensors")


def test_averaging_with_a_deeper_training(tmp_path: Path) -> None:
    """Blocks that only the second training has enter by its share; the file says that it is as deep as the second."""
    shallow = CompactNetwork(TINY)
    deep = deepen(shallow, replace(TINY, decoder_depth=2))
    torch.nn.init.ones_(deep.dec_blocks[1].mlp.fc2.weight)
    for name, network in (("first", shallow), ("second", deep)):
        metadata = {"architecture": architecture_json(network), "long_side": "96"}
        save_file(network.state_dict(), str(tmp_path / f"{name}.safetensors"), metadata)
    average_weights(*(tmp_path / f"{name}.safetensors" for name in ("first", "second")), 0.75, tmp_path / "third")
    third = load_compact(tmp_path / "third")
    assert (third.architecture, third.long_side) == (deep.architecture, 96)
    torch.testing.assert_close(third.dec_blocks[1].mlp.fc2.weight, torch.full((32, 128), 0.75))


def test_the_stored_command_asks_for_the_same_training(tmp_path: Path) -> None:
    """What `command` writes is understood by the command line that it names."""
    config = replace(tiny(tmp_path), workers=2, motion=(0.1, 1.5))
    words = command(config).split()[2:]
    again = tyro.cli(PretrainConfig, args=words)
    assert replace(again, folder=config.folder) == config
