"""All pairs through a network: each image once, any mixture of sizes, order kept, memory respected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dust3r_recipe import random_view, recipe_network

from lora3d_splat.errors import InputError
from lora3d_splat.networks.base import EncodedViews, PairOutput
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import PredictionConfig, images_tensor, predict_pairs

SIZES = ((32, 48), (48, 32), (32, 48), (48, 32), (32, 32))
VIEWS = [random_view(index, size) for index, size in enumerate(SIZES)]


class CountingNetwork(torch.nn.Module):
    """Answers with each image's mean; counts images encoded, and refuses batches above a limit like a full GPU."""

    name, licence, patch_size, long_side = "counting", "none", 16, 48
    lora_targets, confidence_floor, confidence_cutoff = (), 0.5, None

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.limit, self.encoded, self.batches = limit, 0, []

    def encode(self, images: torch.Tensor) -> EncodedViews:
        self.encoded += len(images)
        return EncodedViews(
            (images.shape[2], images.shape[3]), images.mean((1, 2, 3))[:, None, None], torch.zeros(len(images), 1, 2)
        )

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        count = len(reference.tokens)
        if count > self.limit:
            raise torch.OutOfMemoryError("full")
        self.batches.append(count)

        def maps(view: EncodedViews) -> tuple[torch.Tensor, torch.Tensor]:
            value = view.tokens[:, :, 0, None].expand(count, *view.size)
            return value[..., None].expand(*value.shape, 3), value

        return PairOutput(*maps(reference), *maps(other))


def test_every_pair_gets_its_own_answer_in_the_order_asked():
    """Each map has the size of its own view and the mean of its own image, whatever was batched together."""
    pairs = complete_pairs(5)[::-1]
    network = CountingNetwork()
    counted: list[int] = []
    predictions = predict_pairs(network, VIEWS, pairs, PredictionConfig(batch_size=3), counted.append)
    means = [images_tensor([view]).mean().item() for view in VIEWS]
    assert [prediction.pair for prediction in predictions] == list(pairs)
    assert network.encoded == 5
    assert sum(counted) == len(pairs) == 20
    for prediction in predictions:
        reference, other = prediction.pair.reference, prediction.pair.other
        assert prediction.points_reference.shape == (*SIZES[reference], 3)
        assert prediction.confidence_other.shape == SIZES[other]
        assert prediction.points_reference.mean().item() == pytest.approx(means[reference], abs=1e-5)
        assert prediction.points_other.mean().item() == pytest.approx(means[other], abs=1e-5)


def test_results_can_enter_optimisation():
    """Predictions are plain float32 tensors on the CPU that autograd accepts, not views of the batch."""
    prediction = predict_pairs(CountingNetwork(), VIEWS, complete_pairs(5)[:1])[0]
    scale = torch.ones((), requires_grad=True)
    (scale * prediction.points_reference).sum().backward()
    assert scale.grad is not None
    assert prediction.points_other.is_contiguous()
    assert (prediction.points_reference.dtype, prediction.points_reference.device.type) == (torch.float32, "cpu")


def test_running_out_of_memory_halves_the_batch():
    """With room for two pairs, batches of eight become four, then two, and nothing is lost."""
    views = [random_view(index, (32, 48)) for index in range(4)]
    network = CountingNetwork(limit=2)
    predictions = predict_pairs(network, views, complete_pairs(4), PredictionConfig(batch_size=8))
    assert network.batches == [2] * 6
    assert len(predictions) == 12


def test_no_room_for_one_pair_is_an_error_with_a_remedy():
    """Where a single pair does not fit the message proposes smaller images."""
    with pytest.raises(InputError, match="lower the long side"):
        predict_pairs(CountingNetwork(limit=0), VIEWS, complete_pairs(2))


@torch.no_grad()
def test_batched_predictions_are_those_of_single_pairs():
    """A real network in batches agrees with one pair at a time to rounding, and with its own two halves."""
    network = recipe_network()
    pairs = complete_pairs(5)
    together = predict_pairs(network, VIEWS, pairs)
    single = predict_pairs(network, VIEWS, pairs, PredictionConfig(batch_size=1))
    for a, b in zip(together, single, strict=True):
        np.testing.assert_allclose(a.points_other, b.points_other, atol=1e-4, rtol=1e-4)
    direct = network.decode(network.encode(images_tensor(VIEWS[:1])), network.encode(images_tensor(VIEWS[1:2])))
    np.testing.assert_allclose(single[0].points_reference, direct.points_reference[0], atol=1e-5, rtol=1e-5)
