"""Triplet consistency: what the loss sees, who meets whom, and that an adapter learns from it without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dust3r_recipe import random_view, recipe_network

from lora3d_splat.errors import InputError
from lora3d_splat.lora.adapter import adapter_state
from lora3d_splat.lora.finetune import FinetuneConfig, finetune_triplets, triplet_count
from lora3d_splat.lora.triplet import can_form_triplets, draw_triplets, triplet_loss
from lora3d_splat.networks.base import PairOutput
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.records import ImagePair
from lora3d_splat.self_calibration import ADAPTED, CalibrationConfig, calibrate

VIEWS = [random_view(index, size) for index, size in enumerate(((32, 32), (32, 32), (32, 16), (32, 32)))]
PAIRS = complete_pairs(4)
EXAMPLE = Path(__file__).parents[1] / "examples" / "tabletop" / "images"


def output(points: torch.Tensor) -> PairOutput:
    confidence = torch.full(points.shape[:-1], 2.0)
    return PairOutput(points, confidence, points, confidence)


def test_the_loss_is_a_mean_over_coordinates_of_maps_without_scale() -> None:
    """Maps (1, 0, 0) and (0, 2, 0) are (1, 0, 0) and (0, 1, 0) without scale: |1| + |-1| over 3 coordinates."""
    counted = torch.ones(1, 2, 2, dtype=torch.bool)
    along_x, along_y = (torch.tensor(axis).expand(1, 2, 2, 3) for axis in ((1.0, 0.0, 0.0), (0.0, 2.0, 0.0)))
    torch.testing.assert_close(triplet_loss(output(along_x), output(along_y), counted), torch.tensor(2 / 3))
    points = torch.randn(2, 4, 4, 3)
    assert triplet_loss(output(points), output(5 * points), torch.ones(2, 4, 4, dtype=torch.bool)) < 1e-6


def test_masked_pixels_have_no_effect() -> None:
    """Neither their points nor their scale reach the loss, not even as nan; without any pixel it is zero."""
    points, counted = torch.randn(1, 4, 4, 3), torch.ones(1, 4, 4, dtype=torch.bool)
    counted[0, 0] = False
    wrong = points.clone()
    wrong[0, 0] = float("nan")
    assert triplet_loss(output(points), output(wrong), counted) < 1e-6
    assert triplet_loss(output(points), output(points + 1), counted & False) == 0


def test_every_pair_meets_another_once_an_epoch() -> None:
    """Four views: each of four references has three partners, so two triplets, and every ordered pair occurs."""
    triplets = draw_triplets(PAIRS, torch.Generator().manual_seed(3))
    assert len(triplets) == triplet_count(PAIRS) == 8
    met = {(each.reference, other) for each in triplets for other in (each.first, each.second)}
    assert met == {(pair.reference, pair.other) for pair in PAIRS}
    assert triplets != draw_triplets(PAIRS, torch.Generator().manual_seed(4))


def test_loss_falls_and_only_the_adapter_changes() -> None:
    """Twelve epochs at least halve the inconsistency; the base weights stay; another seed gives another adapter."""
    network = recipe_network()
    base = {key: value.clone() for key, value in network.state_dict().items()}
    counted: list[int] = []
    config = FinetuneConfig(rank=4, lora_alpha=4, learning_rate=5e-3, epochs=12)
    result = finetune_triplets(network, VIEWS, PAIRS, config, counted.append)
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert sum(counted) == 12 * triplet_count(PAIRS)
    after = {key.replace(".base_layer.", "."): value for key, value in network.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in base.items())
    assert any(value.abs().max() > 0 for key, value in adapter_state(network).items() if "lora_B" in key)


def test_an_interrupted_run_continues_to_the_same_result(tmp_path: Path) -> None:
    """Two epochs kept, two more: losses and adapter equal those of four epochs in one go."""
    config = FinetuneConfig(rank=2, lora_alpha=2, epochs=4)
    whole, resumed = recipe_network(), recipe_network()
    expected = finetune_triplets(whole, VIEWS, PAIRS, config)
    seen = 0

    def stop(triplets: int) -> None:
        nonlocal seen
        seen += triplets
        if seen > 2.5 * triplet_count(PAIRS):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_triplets(recipe_network(), VIEWS, PAIRS, config, stop, tmp_path / "state.pt")
    counted: list[int] = []
    result = finetune_triplets(resumed, VIEWS, PAIRS, config, counted.append, tmp_path / "state.pt")
    assert counted[0] == 2 * triplet_count(PAIRS), "two finished epochs were kept"
    assert result.losses == expected.losses
    wanted, got = adapter_state(whole), adapter_state(resumed)
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_pairs_that_share_no_reference_are_refused() -> None:
    pairs = [ImagePair(0, 1), ImagePair(1, 2)]
    assert not can_form_triplets(pairs)
    with pytest.raises(InputError, match="three photographs"):
        finetune_triplets(recipe_network(), VIEWS, pairs)


def test_the_bundled_example_is_adapted_on_triplets(tmp_path: Path) -> None:
    """Four photographs, two epochs: an adapter other than that of pseudo labels, judged, under an entry of its own."""
    photos = sorted(EXAMPLE.glob("*.jpg"))[3:9:2] + sorted(EXAMPLE.glob("*.jpg"))[4:5]
    settings = CalibrationConfig(
        network="compact", long_side=64, adapt="triplet", tracks="off", device="cpu", cache=tmp_path / "cache",
        finetune=FinetuneConfig(rank=2, epochs=2),
    )  # fmt: skip
    found = {adapt: calibrate(photos, replace(settings, adapt=adapt)) for adapt in ("triplet", "pseudo-labels", "none")}
    triplet, labels, none = found.values()
    assert [row.name for row in triplet.rows][2] == ADAPTED
    assert triplet.rows[2].residual is not None, triplet.rows[2].reason
    assert triplet.rows[2].residual != labels.rows[2].residual
    assert len(triplet.finetune_losses) == 2
    assert np.isfinite(triplet.finetune_losses).all()
    assert triplet.rows[1].residual == none.rows[1].residual
    assert len({each.folder for each in found.values()}) == 3
