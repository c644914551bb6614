"""All pairs through a network: each image once, any mixture of sizes, order kept, memory respected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dust3r_recipe import random_view, recipe_network

from lora3d_splat import precision
from lora3d_splat.batching import is_out_of_memory
from lora3d_splat.errors import InputError
from lora3d_splat.networks import attention
from lora3d_splat.networks.base import EncodedViews, PairOutput
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.precision import choose_precision
from lora3d_splat.prediction import PredictionConfig, PredictionPass, images_tensor, predict_pairs
from lora3d_splat.records import ImagePair

SIZES = ((32, 48), (48, 32), (32, 48), (48, 32), (32, 32))
VIEWS = [random_view(index, size) for index, size in enumerate(SIZES)]


class CountingNetwork(torch.nn.Module):
    """Answers with each image's mean; counts images encoded, and refuses batches above a limit like a full GPU."""

    name, licence, patch_size, long_side = "counting", "none", 16, 48
    lora_targets, confidence_floor, confidence_cutoff = (), 0.5, None

    def __init__(self, limit: int = 10**9, failure: Exception | None = None) -> None:
        super().__init__()
        self.limit, self.encoded, self.batches = limit, 0, []
        self.failure = failure or torch.OutOfMemoryError("full")

    def encode(self, images: torch.Tensor) -> EncodedViews:
        self.encoded += len(images)
        return EncodedViews(
            (images.shape[2], images.shape[3]), images.mean((1, 2, 3))[:, None, None], torch.zeros(len(images), 1, 2)
        )

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        count = len(reference.tokens)
        if count > self.limit:
            raise self.failure
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


class BothWays(CountingNetwork):
    """The same, decoding both orders of pairs at once, which doubles the confidence."""

    def decode_both(self, reference: EncodedViews, other: EncodedViews) -> tuple[PairOutput, PairOutput]:
        there, back = self.decode(reference, other), self.decode(other, reference)
        return tuple(replace(each, confidence_other=2 * each.confidence_other) for each in (there, back))


def test_both_orders_are_decoded_at_once_where_a_network_can():
    """Every pair gets its own answer; a pair whose other order is not asked for may be decoded alone."""
    pairs = [*complete_pairs(5)[::-1]]
    pairs.remove(ImagePair(1, 3))
    network, counted = BothWays(), []
    predictions = predict_pairs(network, VIEWS, pairs, PredictionConfig(batch_size=2), counted.append)
    means = [images_tensor([view]).mean().item() for view in VIEWS]
    assert [prediction.pair for prediction in predictions] == pairs
    assert sum(counted) == 19
    assert sum(network.batches) == 19
    for prediction in predictions:
        reference, other = prediction.pair.reference, prediction.pair.other
        assert prediction.points_reference.mean().item() == pytest.approx(means[reference], abs=1e-5)
        expected = means[other] * (1 if prediction.pair == ImagePair(3, 1) else 2)
        assert prediction.confidence_other.mean().item() == pytest.approx(expected, abs=1e-5)


def test_results_can_enter_optimisation():
    """Predictions are plain float32 tensors on the CPU that autograd accepts, not views of the batch."""
    prediction = predict_pairs(CountingNetwork(), VIEWS, complete_pairs(5)[:1])[0]
    scale = torch.ones((), requires_grad=True)
    (scale * prediction.points_reference).sum().backward()
    assert scale.grad is not None
    assert prediction.points_other.is_contiguous()
    assert (prediction.points_reference.dtype, prediction.points_reference.device.type) == (torch.float32, "cpu")


FAILURES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 3.00 GiB for an array"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=["cuda", "cpu", "cublas", "numpy"])
def test_running_out_of_memory_halves_the_batch(failure):
    """With room for two pairs, batches of eight become four, then two, and the answers stay the same."""
    views = [random_view(index, (32, 48)) for index in range(4)]
    network, pairs = CountingNetwork(2, failure), complete_pairs(4)
    predictions = predict_pairs(network, views, pairs, PredictionConfig(batch_size=8))
    assert network.batches == [2] * 6
    for found, expected in zip(predictions, predict_pairs(CountingNetwork(), views, pairs), strict=True):
        assert found.pair == expected.pair
        assert torch.equal(found.points_other, expected.points_other)


def test_what_the_allocator_says_is_understood():
    """The text of the message is PyTorch's own and may change with its version."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        predict_pairs(CountingNetwork(0, RuntimeError("shapes do not match")), VIEWS, complete_pairs(2))


def test_each_image_is_encoded_once_in_a_pass():
    """Likeness, the cost of a pair and any number of predictions share what was encoded."""
    network = CountingNetwork()
    run = PredictionPass(network, VIEWS)
    assert run.similarity().shape == (5, 5)
    assert run.cost().bytes == pytest.approx(16 * 2 * np.mean([h * w for h, w in SIZES]))
    list(run.predict(complete_pairs(5)[:7]))
    list(run.predict(complete_pairs(5)))
    assert network.encoded == 5


def test_views_are_like_themselves_and_their_copies():
    """Cosines: one on the diagonal and for two prints of one photograph, less for others."""
    views = [VIEWS[0], VIEWS[2], VIEWS[0], random_view(9, (32, 48))]
    similarity = PredictionPass(recipe_network(), views).similarity()
    torch.testing.assert_close(similarity.diagonal(), torch.ones(4))
    torch.testing.assert_close(similarity, similarity.T)
    assert similarity[0, 2] > 0.999 > similarity[0, 1]


def test_half_precision_is_close_and_its_maps_are_float32():
    """A trunk in bfloat16 moves points by about a percent of their size; heads and outputs stay in float32."""
    network, pairs = recipe_network(), complete_pairs(5)
    full = predict_pairs(network, VIEWS, pairs, PredictionConfig(precision="float32"))
    half = predict_pairs(network, VIEWS, pairs, PredictionConfig(precision="bfloat16"))
    for a, b in zip(full, half, strict=True):
        for field in ("points_reference", "points_other", "confidence_other"):
            exact, rounded = getattr(a, field), getattr(b, field)
            assert rounded.dtype == torch.float32
            assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.03


def test_precision_follows_hardware_and_size(monkeypatch):
    """auto takes bfloat16 where the processor has it and the network is large; a word of the user's stands."""
    small, large = torch.nn.Linear(2, 2), torch.nn.Linear(precision.LARGE_PARAMETERS, 1, device="meta")
    for there in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device, there=there: there)
        assert choose_precision("auto", small) == "float32"
        assert choose_precision("auto", large) == ("bfloat16" if there else "float32")
        assert choose_precision("bfloat16", small) == "bfloat16"
        assert choose_precision("float32", large) == "float32"


def test_compiling_is_asked_for_by_a_setting(monkeypatch):
    """Both halves of the network run compiled, and answer as before."""
    compiled: list[str] = []

    def stand_in(function):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    plain = predict_pairs(CountingNetwork(), VIEWS, complete_pairs(5))
    assert compiled == []
    fast = predict_pairs(CountingNetwork(), VIEWS, complete_pairs(5), PredictionConfig(compile=True))
    assert compiled == ["encode", "decode"]
    assert all(torch.equal(a.points_other, b.points_other) for a, b in zip(plain, fast, strict=True))


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


@pytest.mark.parametrize("flags", [frozenset({"avx512_bf16"}), frozenset({"avx512_bf16", "amx_bf16"})])
def test_both_ways_of_attention_agree(flags, monkeypatch):
    """In bfloat16, fused where the processor has AMX and as two products where not; against float64."""
    monkeypatch.setattr(attention, "cpu_flags", lambda: flags)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 8, generator=generator).bfloat16() for count in (5, 7, 7))
    exact = torch.softmax(q.double() @ k.double().transpose(2, 3) / 8**0.5, dim=-1) @ v.double()
    found = attention.attend(q, k, v)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)
