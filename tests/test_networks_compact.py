"""The compact network: shapes, independence of batch rows, gradients at the LoRA targets, checkpoint errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora3d_splat.errors import CheckpointError, InputError
from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.geometry.relative_pose import RelativePose
from lora3d_splat.geometry.transforms import so3_exp, so3_log
from lora3d_splat.lora.adapter import disabled, inject
from lora3d_splat.networks.base import EncodedViews, PointmapNetwork
from lora3d_splat.networks.compact import (
    START_FOCAL,
    CompactArchitecture,
    CompactNetwork,
    architecture_json,
    cell_rays,
    load_compact,
    overlap,
)
from lora3d_splat.networks.compact_layers import Window
from lora3d_splat.networks.compact_settle import Decoded, Matched, settled
from lora3d_splat.synthetic.pairs import scene_pairs
from lora3d_splat.synthetic.render import render_scene

SMALL = CompactArchitecture(width=64, heads=4, encoder_depth=1, decoder_depth=2, match_width=32)


@pytest.fixture(scope="module")
def network() -> CompactNetwork:
    torch.manual_seed(0)
    return CompactNetwork(SMALL).eval()


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise images in [-1, 1]."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_meets_the_protocol(network: CompactNetwork) -> None:
    """Every attribute and method of PointmapNetwork is there."""
    assert isinstance(network, PointmapNetwork)


@pytest.mark.parametrize(
    ("size_1", "size_2"), [((32, 48), (32, 48)), ((48, 32), (48, 32)), ((32, 64), (48, 32)), ((32, 32), (64, 48))]
)
def test_output_has_the_size_of_each_image(network: CompactNetwork, size_1, size_2) -> None:
    """Landscape, portrait and mixed sizes: pointmaps at full image size, finite, confidence at least one."""
    with torch.no_grad():
        output = network.decode(network.encode(images(2, *size_1)), network.encode(images(2, *size_2, seed=1)))
    assert output.points_reference.shape == (2, *size_1, 3)
    assert output.points_other.shape == (2, *size_2, 3)
    assert output.confidence_reference.shape == (2, *size_1)
    assert output.confidence_other.shape == (2, *size_2)
    for values in vars(output).values():
        assert torch.isfinite(values).all()
    assert min(output.confidence_reference.min(), output.confidence_other.min()) >= 1


def test_rows_of_a_batch_are_independent(network: CompactNetwork) -> None:
    """A pair decoded alone equals the same pair decoded in a batch."""
    first, second = images(3, 32, 48), images(3, 32, 48, seed=1)
    with torch.no_grad():
        views = network.encode(torch.cat([first, second]))
        together = network.decode(views.select(torch.tensor([0, 1, 2])), views.select(torch.tensor([3, 4, 5])))
        alone = network.decode(network.encode(first[1:2]), network.encode(second[1:2]))
    for name, values in vars(together).items():
        torch.testing.assert_close(values[1:2], getattr(alone, name), rtol=1e-3, atol=1e-4)


def test_stacking_encoded_views_equals_encoding_together(network: CompactNetwork) -> None:
    """EncodedViews.stack keeps the packed detail with its view."""
    batch = images(2, 32, 48)
    with torch.no_grad():
        whole = network.encode(batch)
        stacked = EncodedViews.stack([network.encode(batch[:1]), network.encode(batch[1:])])
    assert whole.detail is not None
    assert stacked.detail is not None
    torch.testing.assert_close(stacked.detail, whole.detail, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stacked.tokens, whole.tokens, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_lora_target(network: CompactNetwork) -> None:
    """Every linear layer named by lora_targets is called, and the points depend on its weight."""
    names = [name for name, _ in network.named_modules() if name.split(".")[-1] in network.lora_targets]
    called: set[str] = set()
    modules = dict(network.named_modules())
    hooks = [modules[n].register_forward_hook(lambda *_, n=n: called.add(n)) for n in names]
    views = network.encode(images(2, 32, 48))
    output = network.decode(views.select(torch.tensor([0])), views.select(torch.tensor([1])))
    (output.points_reference.square().sum() + output.points_other.square().sum()).backward()
    for hook in hooks:
        hook.remove()
    assert called == set(names)
    assert len(names) == SMALL.encoder_depth + 4 * SMALL.decoder_depth
    for name in names:
        weight = modules[name].weight
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0, name
    network.zero_grad()


def test_sizes_off_the_patch_are_refused(network: CompactNetwork) -> None:
    """The error names the size that was found."""
    with pytest.raises(InputError, match="50x32"):
        network.encode(images(1, 32, 50))


def test_checkpoint_round_trip_and_errors(network: CompactNetwork, tmp_path) -> None:
    """Saved float16 weights come back; a missing, renamed or absent file raises CheckpointError with a remedy."""
    weights = {key: value.half() for key, value in network.state_dict().items()}
    path = tmp_path / "net.safetensors"
    save_file(weights, str(path), {"architecture": architecture_json(network), "long_side": "96"})
    loaded = load_compact(path)
    assert loaded.long_side == 96
    assert loaded.architecture == SMALL
    torch.testing.assert_close(loaded.head.out.weight, network.head.out.weight, rtol=1e-3, atol=1e-4)
    broken = dict(weights)
    broken["unheard_of"] = broken.pop("head.out.weight")
    save_file(broken, str(path), {"architecture": architecture_json(network)})
    with pytest.raises(CheckpointError, match=r"head\.out\.weight"):
        load_compact(path)
    save_file(weights, str(path))
    with pytest.raises(CheckpointError, match="architecture"):
        load_compact(path)
    with pytest.raises(CheckpointError, match="no file"):
        load_compact(tmp_path / "absent.safetensors")


def test_pictures_of_different_scenes_get_no_confidence() -> None:
    """The packaged network: pairs within held-out scenes keep votes, pairs across scenes lose them."""
    network, size = load_compact(), (96, 128)
    scenes = [render_scene(seed, size, 6, "heldout") for seed in range(6)]
    usable = [(scene, *scene_pairs(scene)[0]) for scene in scenes if scene_pairs(scene)]
    first, second = (torch.from_numpy(np.stack([entry[0].images[entry[k]] for entry in usable])) for k in (1, 2))
    views = [network.encode(each.permute(0, 3, 1, 2).float() / 127.5 - 1) for each in (first, second)]
    order = torch.arange(len(usable))
    with torch.no_grad():
        within = network.decode_half(*views)[0].cycle
        across = torch.cat([network.decode_half(views[0], views[1].select(order.roll(k)))[0].cycle for k in (1, 2, 3)])
        apart = network.decode(views[0], views[1].select(order.roll(1)))
    assert (overlap(within) > 0).float().mean() >= 0.8
    assert (overlap(across) == 0).float().mean() >= 0.8
    lost = overlap(across[: len(order)]) == 0
    assert (apart.confidence_reference[lost] == 1).all()


@pytest.mark.parametrize("lean", [0.0, 0.1])
def test_settling_puts_a_displaced_view_where_the_matches_say(lean):
    """Exact matches, a decoder that forgot half of the motion, shapes that may lean: the settled points are right."""
    torch.manual_seed(0)
    grid = (12, 16)
    rays = cell_rays(*grid, torch.zeros(1))
    focal = 2 * START_FOCAL
    R = so3_exp(torch.deg2rad(torch.tensor([2.0, 12.0, 1.0])))
    middle = torch.tensor([0.0, 0.0, 2.0])
    t = middle - R @ middle
    depth = [1.5 + torch.rand(1, len(rays)) for _ in range(2)]
    own = [rays * each[..., None] for each in depth]
    seen_by_2, seen_by_1 = (own[0] - t) @ R, own[1] @ R.T + t
    windows = [
        Window(
            focal * seen[..., :2] / seen[..., 2:], torch.full(seen.shape[:2], 0.01), *[torch.ones(seen.shape[:2])] * 2
        )
        for seen in (seen_by_2, seen_by_1)
    ]
    half = so3_exp(0.5 * so3_log(R))
    leaning = own[0] * (lean * rays[:, :1] / rays[:, 0].max()).exp()
    step = middle - half @ middle
    decoded = own[1] @ half.T + step
    pose = RelativePose(R[None], t[None], torch.zeros(1), torch.zeros(1))
    matched = Matched((grid, grid), (depth[0], depth[1]), (windows[0], windows[1]), focal, pose)
    shape, sure = (1, *grid), torch.full((1, *grid), 2.0)
    there = Decoded(leaning.view(*shape, 3), decoded.view(*shape, 3), sure, sure)
    back = Decoded(0.7 * own[1].view(*shape, 3), 0.7 * ((leaning - step) @ half).view(*shape, 3), sure, sure)
    found = settled(there, back, matched)
    assert (decoded - seen_by_1).norm(dim=-1).median() > 0.03
    if lean:
        assert (leaning - own[0]).norm(dim=-1).median() > 0.03
    unit = own[0].norm(dim=-1).median() / found[0][0].flatten(1, 2).norm(dim=-1).median()
    for points, true in zip((*found[0], *found[1]), (own[0], seen_by_1, own[1], seen_by_2), strict=True):
        assert (unit * points.flatten(1, 2) - true).norm(dim=-1).median() < 0.01


def test_both_orders_of_a_pair_are_given_the_same_scene(network: CompactNetwork) -> None:
    """One similarity carries either order's points onto the other's; alone, an order is what it is beside the other."""
    pictures = images(2, 64, 96)
    with torch.no_grad():
        views = [network.encode(each[None]) for each in pictures]
        there, back = network.decode_both(*views)
        alone, swapped = network.decode(*views), network.decode_both(views[1], views[0])
    torch.testing.assert_close(alone.points_other, there.points_other)
    near = weighted_similarity(
        *(p.flatten(1, 2) for p in (back.points_reference, there.points_other)), torch.ones(1, 64 * 96)
    )
    for source, target in ((back.points_reference, there.points_other), (back.points_other, there.points_reference)):
        moved = (
            near.scale[:, None, None] * source.flatten(1, 2) @ near.rotation.transpose(1, 2) + near.translation[:, None]
        )
        assert (moved - target.flatten(1, 2)).norm(dim=-1).max() < 1e-3 * target.norm(dim=-1).median()
    for one, other in ((there, swapped[1]), (back, swapped[0])):
        ratio = one.points_reference.norm(dim=-1) / other.points_reference.norm(dim=-1)
        assert (ratio / ratio.median() - 1).abs().quantile(0.9) < 0.05
        assert torch.allclose(one.confidence_other, other.confidence_other, rtol=1e-3)


def test_mirrored_pictures_give_mirrored_predictions(network: CompactNetwork) -> None:
    """Both are averaged, so the network cannot tell left from right; up to the unit, and not while it learns."""
    pictures = images(2, 64, 96)

    def decoded(shown: torch.Tensor):
        views = [network.encode(each[None]) for each in shown]
        return network.decode_half(*views)[0]

    with torch.no_grad():
        straight, mirrored = decoded(pictures), decoded(pictures.flip(-1))
    for side in ("reference", "other"):
        back = getattr(mirrored, f"settled_{side}").flip(2) * torch.tensor([-1.0, 1.0, 1.0])
        ratio = getattr(straight, f"settled_{side}").norm(dim=-1) / back.norm(dim=-1)
        assert (ratio / ratio.median() - 1).abs().quantile(0.9) < 0.02
        confidence = getattr(mirrored, f"confidence_{side}").flip(2)
        assert torch.allclose(getattr(straight, f"confidence_{side}"), confidence, rtol=1e-3)
    learning, turned = decoded(pictures), decoded(pictures.flip(-1))
    assert not torch.allclose(learning.confidence_reference, turned.confidence_reference.flip(2), rtol=1e-3)


def test_what_learns_does_not_settle_and_the_base_does(network: CompactNetwork) -> None:
    own = CompactNetwork(SMALL).eval()
    own.load_state_dict(network.state_dict())
    pictures = images(2, 64, 96)

    def other() -> torch.Tensor:
        return own.decode(own.encode(pictures[:1]), own.encode(pictures[1:])).points_other

    plain = other().detach()
    with torch.no_grad():
        settled = other()
    inject(own)
    learning = other().detach()
    with torch.no_grad():
        assert torch.allclose(other(), learning, atol=1e-5)
        with disabled(own):
            assert torch.allclose(other(), settled, atol=1e-5)
    assert not torch.allclose(settled, plain, atol=1e-3)
