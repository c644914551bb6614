"""The same answers on a GPU as on the CPU; skipped where there is none.

LORA3D_TEST_DEVICE=cpu compares the CPU with itself, which tries the tests.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from dust3r_recipe import DESCRIPTORS, TINY, TINY_DPT, random_view, recipe_network
from rasterize_scenes import Scene, make_scene
from torch import Tensor

from lora3d_splat.geometry.transforms import se3_exp
from lora3d_splat.lora.adapter import adapter_state, disabled, merge
from lora3d_splat.lora.finetune import FinetuneConfig, finetune, finetune_triplets
from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig, align_pose
from lora3d_splat.networks import network_digest
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.compact import load_compact
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.prediction import PredictionConfig, PredictionPass, predict_pairs
from lora3d_splat.rasterize import rasterization
from lora3d_splat.records import PairPrediction, PseudoLabels

DEVICE = os.environ.get("LORA3D_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")

VIEWS = [random_view(index, size) for index, size in enumerate(((64, 96), (64, 96), (96, 64)))]
PAIRS = list(complete_pairs(3))
NETWORKS = {
    "compact": load_compact,
    "linear": lambda: recipe_network(TINY),
    "dpt": lambda: recipe_network(TINY_DPT),
    "mast3r": lambda: recipe_network(TINY_DPT | DESCRIPTORS),
}


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Convolutions in full float32: PyTorch's default on GPUs is TF32, off by 1e-3."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def gap(found: tuple[PairPrediction, ...], wanted: tuple[PairPrediction, ...]) -> float:
    """Median distance of the points of all pairs over their median size."""
    ours, theirs = (
        torch.cat([p.reshape(-1, 3) for each in items for p in (each.points_reference, each.points_other)])
        for items in (found, wanted)
    )
    return float((ours - theirs).norm(dim=-1).median() / theirs.norm(dim=-1).median())


def labels() -> list[PseudoLabels]:
    """What another network says, enlarged."""
    predictions = predict_pairs(recipe_network(salt=1), VIEWS, PAIRS)
    return [
        PseudoLabels(
            p.pair, 3 * p.points_reference, p.confidence_reference > 1.3, 3 * p.points_other, p.confidence_other > 1.3
        )
        for p in predictions
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_agree(name: str):
    """Expected: within 1e-4 in float32 and 5 % in bfloat16; results lie on the CPU in float32."""
    network: Any = NETWORKS[name]()
    wanted = predict_pairs(network, VIEWS, PAIRS)
    network = network.to(DEVICE)
    for precision, most in (("float32", 1e-4), ("bfloat16", 0.05)):
        found = predict_pairs(network, VIEWS, PAIRS, PredictionConfig(2, precision))
        assert {each.points_other.device.type for each in found} == {"cpu"}
        assert {each.points_other.dtype for each in found} == {torch.float32}
        assert gap(found, wanted) < most, precision


def test_similarity_and_digest_agree():
    """Expected: similarities within 1e-4, the digest of the weights equal."""
    network = load_compact()
    wanted, digest = PredictionPass(network, VIEWS).similarity(), network_digest(network)
    network = network.to(DEVICE)
    torch.testing.assert_close(PredictionPass(network, VIEWS).similarity(), wanted, rtol=0, atol=1e-4)
    assert network_digest(network) == digest


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fine_tuning_agrees(precision: str, tmp_path):
    """Expected: losses within 1 % in float32, 5 % in bfloat16; a stored state continues to the same losses."""
    config = FinetuneConfig(rank=4, lora_alpha=4, epochs=3, precision="float32")
    wanted = finetune(recipe_network(TINY_DPT), VIEWS, labels(), config).losses
    config = replace(config, precision=precision)
    network: PointmapNetwork = recipe_network(TINY_DPT).to(DEVICE)
    found = finetune(network, VIEWS, labels(), config, checkpoint=tmp_path / "state.pt").losses
    most = 0.01 if precision == "float32" else 0.05
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=most, atol=0)
    assert {value.device.type for value in adapter_state(network).values()} == {"cpu"}
    again = finetune(recipe_network(TINY_DPT).to(DEVICE), VIEWS, labels(), config, checkpoint=tmp_path / "state.pt")
    assert again.losses == found


def test_triplets_and_merged_adapters_agree():
    """Expected: triplet losses within 1 %; merged weights predict what the adapter does, within 1e-4."""
    config = FinetuneConfig(rank=4, lora_alpha=4, epochs=2)
    cpu, network = recipe_network(TINY_DPT), recipe_network(TINY_DPT).to(DEVICE)
    wanted, found = (finetune_triplets(each, VIEWS, PAIRS, config).losses for each in (cpu, network))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0.01, atol=0)
    adapted = predict_pairs(network, VIEWS, PAIRS)
    assert gap(predict_pairs(merge(copy.deepcopy(network)), VIEWS, PAIRS), adapted) < 1e-4
    with disabled(network):
        assert gap(predict_pairs(network, VIEWS, PAIRS), predict_pairs(recipe_network(TINY_DPT), VIEWS, PAIRS)) < 1e-4


def test_photometric_loss_agrees():
    """Expected: value within 1e-5, gradient within 1e-3."""
    pytest.importorskip("pytorch_msssim")
    from lora3d_splat.photometric import photo_loss

    generator = torch.Generator().manual_seed(0)
    photo, other = torch.rand(2, 60, 80, 3, generator=generator)
    results: list[tuple[float, Tensor]] = []
    for device in ("cpu", DEVICE):
        rendered = (0.7 * photo + 0.3 * other).to(device).requires_grad_()
        loss = photo_loss(rendered, photo.to(device), 0.2)
        (gradient,) = torch.autograd.grad(loss, rendered)
        results.append((float(loss.detach()), gradient.cpu()))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert (results[1][1] - results[0][1]).norm() < 1e-3 * results[0][1].norm()


@pytest.mark.parametrize(
    "settings",
    [{}, {"rasterize_mode": "antialiased"}, {"packed": True}, {"packed": True, "sparse_grad": True}],
    ids=["classic", "antialiased", "packed", "sparse"],
)
def test_rasteriser_agrees(settings: dict[str, Any]):
    """Expected: images within 1e-5 in the mean, gradients within 1e-3; two cameras, colours and expected depth."""
    if DEVICE == "cuda":
        pytest.importorskip("gsplat")
    scene = make_scene(3, cameras=2)
    results = []
    for device in ("cpu", DEVICE):
        chosen = {"packed": False, "render_mode": "RGB+ED", "sh_degree": 3, **settings}
        if device == "cpu":
            chosen.pop("sparse_grad", None)
        leaves = {name: leaf.detach().to(device).requires_grad_(name != "Ks") for name, leaf in tensors(scene).items()}
        image, alphas, _ = rasterization(**leaves, width=scene.width, height=scene.height, **chosen)
        (image.square().sum() + alphas.sum()).backward()
        grads = {name: leaf.grad.to_dense().cpu() for name, leaf in leaves.items() if leaf.grad is not None}
        results.append((image.detach().cpu(), grads))
    (wanted, wanted_grads), (found, found_grads) = results
    assert (found - wanted).abs().mean() < 1e-5
    assert found_grads.keys() == wanted_grads.keys()
    for name, gradient in wanted_grads.items():
        assert (found_grads[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def test_held_out_camera_is_found_again():
    """Expected: through the rasteriser, a camera off by 0.02 units and a degree comes back to a fifth of that."""
    if DEVICE == "cuda":
        pytest.importorskip("gsplat")
    scene = make_scene(5, count=400, splat_pixels=(2.0, 8.0), opacity=(0.5, 0.9))
    leaves = {name: leaf.detach().to(DEVICE) for name, leaf in tensors(scene).items()}
    pose = torch.linalg.inv(leaves.pop("viewmats")[0])
    K = leaves.pop("Ks")

    def render(T_world_camera: Tensor, level: int) -> tuple[Tensor, Tensor]:
        scale = torch.tensor([1 / level, 1 / level, 1.0], device=DEVICE)[:, None]
        size = {"width": scene.width // level, "height": scene.height // level}
        view = torch.linalg.inv(T_world_camera)[None]
        image, alphas, _ = rasterization(**leaves, viewmats=view, Ks=scale * K, **size, sh_degree=3, packed=False)
        return image[0], alphas[0]

    twist = torch.tensor([0.02, -0.02, 0.02, 0.01, -0.01, 0.01], device=DEVICE)
    photo = render(pose, 1)[0].detach()
    config = PoseAlignmentConfig(steps=150, levels=(1,)).resolved(DEVICE)
    found = align_pose(render, photo, pose @ se3_exp(twist), config)
    assert (found.T_world_camera[:3, 3] - pose[:3, 3]).norm() < 0.2 * twist[:3].norm()
    assert found.loss_after < 0.2 * found.loss_before


def tensors(scene: Scene) -> dict[str, Tensor]:
    """float32 tensors of a scene."""
    return {name: tensor.float() for name, tensor in scene.tensors.items()}
