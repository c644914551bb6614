"""Who judges the adapter: the scene on tracks where there is one, the networks' own agreement where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora3d_splat.alignment import AlignmentConfig
from lora3d_splat.lora.finetune import FinetuneConfig
from lora3d_splat.networks.compact import load_compact
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.records import ImagePair, PseudoLabels, SparseScene
from lora3d_splat.self_calibration import ROBUST, TRACKED, TRACKED_ROBUST, CalibrationConfig, _Run, calibrate

EXAMPLE = Path(__file__).parents[1] / "examples" / "tabletop" / "images"


def judged(judged: float | None, tracked: float | None, registered: int = 4) -> SimpleNamespace:
    """What `_decide` looks at."""
    scene = SimpleNamespace(registered=(True,) * registered + (False,) * (4 - registered))
    return SimpleNamespace(judged_residual=judged, tracked_residual=tracked, residual=0.05, scene=scene)


@pytest.mark.parametrize(
    ("before", "after", "kept", "words"),
    [
        (judged(0.02, 0.09), judged(0.03, 0.05), True, "against the scene on tracks went from 9.000% to 5.000%"),
        (judged(0.03, 0.05), judged(0.02, 0.09), False, "against the scene on tracks went from 5.000% to 9.000%"),
        (judged(0.03, None), judged(0.02, None), True, "robust residual went from 3.000% to 2.000%"),
        (judged(0.02, None), judged(0.03, 0.05), False, "robust residual went from 2.000% to 3.000%"),
        (judged(0.02, 0.09), judged(0.01, 0.05, registered=3), False, "1 fewer views"),
    ],
)
def test_tracks_outrank_the_networks_own_agreement(before, after, kept: bool, words: str) -> None:
    run = _Run.__new__(_Run)
    run.unseen, run.views = (ImagePair(0, 1), ImagePair(1, 0)), (None,) * 4
    decision = run._decide(before, after)
    assert decision[0] == kept
    assert words in decision[1]


def on_tracks(placed: tuple[bool, ...]) -> SparseScene:
    """Features place these views; nothing else is looked at."""
    nothing = torch.zeros(0)
    return SparseScene(placed, nothing, nothing, nothing, nothing, nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("placed", "words"),
    [
        ((True, True, False, True), "none of the pairs left out to judge it connects two cameras that features place"),
        ((True, True, True, False), None),
    ],
)
def test_nothing_is_learnt_that_tracks_cannot_judge(placed: tuple[bool, ...], words: str | None) -> None:
    """The pair left out is that of views 0 and 2; `compact` does not judge itself."""
    pairs = complete_pairs(4)
    run = _Run.__new__(_Run)
    run.network, run.config, run.views = load_compact(), CalibrationConfig(network="compact"), (None,) * 4
    run.unseen = (ImagePair(0, 2), ImagePair(2, 0))
    run.training = tuple(pair for pair in pairs if pair not in run.unseen)
    whole = torch.ones(2, 2, dtype=torch.bool)
    labels = tuple(PseudoLabels(pair, torch.ones(2, 2, 3), whole, torch.ones(2, 2, 3), whole) for pair in pairs)
    teacher = SimpleNamespace(name=TRACKED_ROBUST, scene=SimpleNamespace(pairs=pairs))
    refusal = run._refusal(teacher, labels, on_tracks(placed))
    assert (refusal is None) == (words is None)
    if words is not None:
        assert words in refusal.reason


def test_views_that_features_do_not_place_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the labels of all pairs those stay whose views both are placed; without tracks all stay."""
    pairs = complete_pairs(3)
    labels = [SimpleNamespace(pair=pair) for pair in pairs]
    monkeypatch.setattr("lora3d_splat.self_calibration.make_pseudo_labels", lambda *_: labels)
    run = _Run.__new__(_Run)
    run.network, run.config, run.views = load_compact(), CalibrationConfig(network="compact"), (None,) * 3
    teacher = SimpleNamespace(scene=None, confidence=None)
    kept = run._labels(teacher, on_tracks((True, False, True)))
    assert [label.pair for label in kept] == [ImagePair(0, 2), ImagePair(2, 0)]
    assert [label.pair for label in run._labels(teacher, None)] == list(pairs)


def test_the_bundled_example_is_judged_by_its_tracks(tmp_path: Path) -> None:
    """Five photographs whose features match: decision and scene agree, and both residuals are against the tracks."""
    settings = CalibrationConfig(
        network="compact", long_side=64, device="cpu", cache=tmp_path / "cache", sharpen_depth="off",
        alignment=AlignmentConfig(steps=30, samples_per_view=200), finetune=FinetuneConfig(rank=4, epochs=3),
    )  # fmt: skip
    found = calibrate(sorted(EXAMPLE.glob("*.jpg"))[2:7], settings)
    assert found.rows[3].name == (TRACKED if found.adapter is not None else TRACKED_ROBUST)
    assert found.rows[3].residual is not None
    assert "pairs left out of the fine-tuning the robust residual against the scene on tracks went" in found.decision
    assert ("adapter was kept" in found.decision) == (found.adapter is not None)
    assert next(row for row in found.rows if row.name == ROBUST).heldout_residual is not None
