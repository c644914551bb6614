"""Predictions beyond the memory they may take lie on disk and are the same."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle_network import OracleNetwork, write_photographs

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.artifacts import StageCache
from lora3d_splat.errors import InputError
from lora3d_splat.images.load import load_views
from lora3d_splat.mapped_prediction import MappedPrediction
from lora3d_splat.pair_cache import STAGE, cached_predictions
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import GIB, PredictionConfig, PredictionPass, prediction_bytes
from lora3d_splat.records import ImagePair, PairPrediction

FIELDS = ("points_reference", "confidence_reference", "points_other", "confidence_other")
PAIRS = complete_pairs(4)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory):
    return load_views(write_photographs(tmp_path_factory.mktemp("photographs"), range(4)), 64, 16).views


def predictions(folder: Path, views, memory: float) -> tuple[PairPrediction, ...]:
    run = PredictionPass(OracleNetwork(), views, PredictionConfig(memory=memory))
    return cached_predictions(StageCache(folder), "oracle", run, PAIRS, "prediction").value


def test_mapped_predictions_are_those_in_memory(tmp_path: Path, views):
    """Field by field and bit by bit, freshly predicted and found again; the limit is the size of all together."""
    limit = prediction_bytes(views, PAIRS) / GIB
    held = predictions(tmp_path / "held", views, limit)
    fresh = predictions(tmp_path / "mapped", views, 0.99 * limit)
    found = predictions(tmp_path / "mapped", views, 0.99 * limit)
    assert all(isinstance(item, PairPrediction) for item in held)
    for a, b, c in zip(held, fresh, found, strict=True):
        assert isinstance(b, MappedPrediction)
        assert isinstance(c, MappedPrediction)
        assert a.pair == b.pair == c.pair
        assert all(torch.equal(getattr(a, name), getattr(item, name)) for name in FIELDS for item in (b, c))


def test_a_prediction_takes_as_much_as_is_reckoned(tmp_path: Path, views):
    held = predictions(tmp_path, views, 1.0)
    total = sum(getattr(item, name).nbytes for item in held for name in FIELDS)
    assert total == prediction_bytes(views, PAIRS)


def test_what_follows_sees_no_difference(tmp_path: Path, views):
    """The alignment of mapped predictions is that of predictions in memory."""
    config = AlignmentConfig(steps=4)
    scenes = [align(predictions(tmp_path, views, memory), config, views=views)[0] for memory in (1.0, 0.0)]
    assert torch.equal(scenes[0].T_world_camera, scenes[1].T_world_camera)


def test_a_mapped_prediction_can_be_renumbered(tmp_path: Path, views):
    item = predictions(tmp_path, views, 0.0)[0]
    moved = replace(item, pair=ImagePair(7, 8))
    assert moved.pair == ImagePair(7, 8)
    assert torch.equal(moved.points_other, item.points_other)


def test_a_mapped_prediction_keeps_nothing_in_memory(tmp_path: Path, views):
    """What was mapped goes when its user lets go of it, though the prediction stays."""
    item = predictions(tmp_path, views, 0.0)[0]
    points = item.points_other
    gone = weakref.ref(points)
    del points
    assert gone() is None


def test_a_file_that_has_gone_is_an_error_with_a_remedy(tmp_path: Path, views):
    item = predictions(tmp_path, views, 0.0)[0]
    for path in (tmp_path / STAGE).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"cannot be read any more.*run the same command again"):
        _ = item.points_other
