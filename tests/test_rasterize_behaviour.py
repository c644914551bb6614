"""What the CPU rasteriser promises beyond numbers: determinism, cameras, empty scenes, errors, strategy contract."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from rasterize_scenes import TRAINED, Scene, make_scene

from lora3d_splat.errors import InputError
from lora3d_splat.rasterize import rasterization, set_num_threads, spare_cores_for_kernels, threads


def render(scene: Scene, **changes):
    """Render in float32; returns leaves, image, alphas, meta."""
    leaves = scene.leaves(torch.float32)
    result = rasterization(**leaves, width=scene.width, height=scene.height, **{**scene.settings, **changes})
    return leaves, *result


def test_results_do_not_depend_on_the_number_of_threads():
    """Expected: images and gradients equal bit for bit with one, two and five threads."""
    scene = make_scene(31, count=9000, size=(160, 120), render_mode="RGB+ED")
    outcomes = []
    try:
        for count in (1, 2, 5):
            set_num_threads(count)
            leaves, image, alphas, _ = render(scene)
            (image.square().sum() + alphas.sum()).backward()
            outcomes.append([image, alphas, *(leaves[name].grad for name in TRAINED)])
    finally:
        set_num_threads(None)
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_several_cameras_equal_single_calls():
    """Expected: images stack and gradients add up."""
    scene = make_scene(32, cameras=3, render_mode="RGB+D")
    leaves, image, _, meta = render(scene)
    image.square().sum().backward()
    total = {name: torch.zeros_like(leaves[name]) for name in TRAINED}
    for camera in range(3):
        own = {k: v[camera : camera + 1] if k in ("viewmats", "Ks") else v for k, v in scene.tensors.items()}
        single, one, _, _ = render(Scene(own, scene.width, scene.height, scene.settings))
        assert torch.equal(one[0], image[camera])
        one.square().sum().backward()
        for name in TRAINED:
            target = total[name][camera : camera + 1] if name == "viewmats" else total[name]
            target += single[name].grad
    for name in TRAINED:
        torch.testing.assert_close(leaves[name].grad, total[name], rtol=1e-4, atol=1e-4)
    assert meta["n_cameras"] == 3
    assert meta["radii"].shape == (3, 250)


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_visible_shows_the_background(count: int):
    """Expected: the background, alpha 0, zero gradients, whether there are no Gaussians or all lie behind."""
    scene = make_scene(33, count=count)
    if count:
        view = scene.tensors["viewmats"][0]
        behind = torch.tensor([0.0, 0.0, -3.0], dtype=torch.float64)
        scene.tensors["means"][:] = (behind - view[:3, 3]) @ view[:3, :3]
    backgrounds = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    leaves, image, alphas, _ = render(scene, backgrounds=backgrounds)
    assert torch.equal(image, backgrounds.expand_as(image))
    assert not alphas.any()
    image.sum().backward()
    assert not leaves["means"].grad.any()
    assert torch.equal(backgrounds.grad, torch.full((1, 3), float(scene.width * scene.height)))


def test_means2d_carries_what_densification_reads():
    """Expected: retain_grad works, culled Gaussians have zero gradient, the keys of gsplat's strategies exist."""
    scene = make_scene(34)
    _, image, _, meta = render(scene)
    meta["means2d"].retain_grad()
    image.square().sum().backward()
    assert meta["means2d"].grad.shape == (1, 250, 2)
    assert not meta["means2d"].grad[meta["radii"] <= 0].any()
    assert meta["means2d"].grad.any()
    assert meta["radii"].dtype == torch.int32
    assert {"width", "height", "n_cameras", "radii", "gaussian_ids", "means2d", "depths"} <= set(meta)


def test_render_modes_agree():
    """Expected: the depth of D is that of RGB+D, and ED is D divided by alpha."""
    scene = make_scene(35)
    _, both, alphas, _ = render(scene, render_mode="RGB+D")
    _, depth, _, _ = render(scene, render_mode="D")
    _, expected, _, _ = render(scene, render_mode="ED")
    _, colour, _, _ = render(scene, render_mode="RGB")
    assert torch.equal(both[..., 3:], depth)
    assert torch.equal(both[..., :3], colour)
    torch.testing.assert_close(expected, depth / alphas.clamp(min=1e-10))


def test_any_number_of_channels():
    """Expected: seven channels equal three calls on slices of them."""
    scene = make_scene(36, sh=False)
    colors = torch.rand(250, 7, generator=torch.Generator().manual_seed(1))
    scene.tensors["colors"] = colors
    backgrounds = torch.linspace(0, 1, 7)[None]
    _, image, _, _ = render(scene, backgrounds=backgrounds, render_mode="RGB+D")
    assert image.shape[-1] == 8
    for first in (0, 3, 4):
        scene.tensors["colors"] = colors[:, first : first + 3]
        _, part, _, _ = render(scene, backgrounds=backgrounds[:, first : first + 3], render_mode="RGB+D")
        torch.testing.assert_close(image[..., first : first + 3], part[..., :3])
        torch.testing.assert_close(image[..., 7:], part[..., 3:])


@pytest.mark.parametrize("name", ["means", "scales", "opacities", "colors"])
def test_non_finite_values_are_refused(name: str):
    """Expected: a sentence that names the Gaussian, not a silent black image."""
    scene = make_scene(37)
    visible = int(torch.nonzero(render(scene)[3]["radii"][0])[7])
    scene.tensors[name][visible] = float("nan")
    with pytest.raises(InputError, match=f"Gaussian {visible}"):
        render(scene)


@pytest.mark.parametrize(
    "changes",
    [{"tile_size": 8}, {"sh_degree": 4}, {"render_mode": "depth"}, {"camera_model": "fisheye"}, {"sh_degree": None}],
)
def test_unsupported_requests_are_refused(changes: dict):
    """Expected: InputError before any work."""
    with pytest.raises(InputError):
        render(make_scene(38), **changes)


def test_threads_follow_the_affinity_and_can_be_fixed():
    """Expected: the fixed number, then one per core of the affinity mask again."""
    set_num_threads(3)
    assert threads.get_num_threads() == 3
    set_num_threads(None)
    assert threads.get_num_threads() == threads.available_cores()
    with pytest.raises(InputError):
        set_num_threads(0)


def test_importing_the_package_does_not_import_numba():
    """Expected: numba and gsplat appear in no top-level import of the modules that the package imports at once."""
    room = Path(threads.__file__).parent
    for name in ("__init__.py", "api.py", "threads.py"):
        for node in ast.parse((room / name).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(heavy in ast.unparse(node) for heavy in ("numba", "gsplat", "autograd", "numerics"))


@pytest.mark.parametrize("name", ["DefaultStrategy", "MCMCStrategy"])
def test_gsplats_strategies_read_what_they_need(name: str):
    """Expected: the installed gsplat's own strategy takes a step on our `meta` without complaint."""
    strategies = pytest.importorskip("gsplat.strategy")
    scene = make_scene(39)
    leaves, image, _, meta = render(scene, packed=False)
    params = {
        "means": leaves["means"],
        "scales": leaves["scales"].detach().log().requires_grad_(),
        "quats": leaves["quats"],
        "opacities": leaves["opacities"].detach().logit().requires_grad_(),
    }
    optimizers = {key: torch.optim.Adam([value]) for key, value in params.items()}
    strategy = getattr(strategies, name)()
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    strategy.step_pre_backward(params, optimizers, state, 0, meta)
    image.square().sum().backward()
    if name == "DefaultStrategy":
        strategy._update_state(params, state, meta, packed=False)
        seen = (meta["radii"] > 0).any(0) if meta["radii"].dim() == 2 else (meta["radii"] > 0).all(-1).any(0)
        assert torch.equal(state["count"] > 0, seen)
        assert state["grad2d"].any()


@pytest.mark.parametrize(
    ("kernels", "before", "policy", "after"),
    [(2, 2, "", 1), (16, 16, "active", 4), (16, 3, "", 3), (2, 2, "PASSIVE", 2)],
)
def test_torch_leaves_cores_to_the_kernels(monkeypatch, kernels: int, before: int, policy: str, after: int):
    """A quarter of them stays torch's, never more than it had; all where its threads do not spin."""
    usual = torch.get_num_threads()
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    try:
        set_num_threads(kernels)
        torch.set_num_threads(before)
        spare_cores_for_kernels()
        assert torch.get_num_threads() == after
    finally:
        set_num_threads(None)
        torch.set_num_threads(usual)
