"""The compiled CPU kernels against the formulas of every gsplat release in float64 torch, on ten scenes.

Each scene stresses one rule.
"""

from __future__ import annotations

import pytest
import torch
from rasterize_scenes import TRAINED, Scene, make_scene

from lora3d_splat.rasterize import rasterization, set_rules
from lora3d_splat.rasterize.reference import rasterization as reference_rasterization
from lora3d_splat.rasterize.rules import RULES, release_line

BAND = 3e-5
TOLERANCE = 2e-5


@pytest.fixture
def rules():
    """`set_rules` for the length of a test."""
    yield set_rules
    set_rules(None)


def with_difficult_places() -> Scene:
    """Gaussians behind the camera, just past the near plane and far outside the frustum."""
    scene = make_scene(8, render_mode="RGB+ED")
    tensors = {name: tensor.clone() for name, tensor in scene.tensors.items()}
    view = tensors["viewmats"][0]
    view[:3, 3] = 0  # a depth of 0.0101 as a difference of larger world coordinates would not survive float32
    camera_points = tensors["means"] @ view[:3, :3].T + view[:3, 3]
    camera_points[:20, 2] *= -1
    camera_points[20:24] = torch.tensor([0.0, 0.0, 0.0101])
    tensors["scales"][20:24] = 2e-5
    camera_points[24:60, 0] = camera_points[24:60, 2] * torch.linspace(0.7, 1.2, 36).double()
    tensors["scales"][24:60] *= 12
    tensors["means"] = (camera_points - view[:3, 3]) @ view[:3, :3]
    return Scene(tensors, scene.width, scene.height, scene.settings)


def with_equal_depths() -> Scene:
    """Every Gaussian shares its centre, hence its depth, with two others."""
    scene = make_scene(9, render_mode="RGB+D")
    means = scene.tensors["means"][: 250 // 3 + 1].repeat(3, 1)[:250]
    return Scene({**scene.tensors, "means": means}, scene.width, scene.height, scene.settings)


def with_odd_parameters() -> Scene:
    """Faint splats, quaternions of any length, colours clamped at zero."""
    scene = make_scene(10, opacity=(0.002, 0.3), radius_clip=4.0, eps2d=0.1, render_mode="RGB+ED")
    lengths = torch.linspace(0.2, 3.0, 250, dtype=torch.float64)[:, None]
    colors = scene.tensors["colors"].clone()
    colors[:, 0] -= 1.5
    tensors = {**scene.tensors, "quats": scene.tensors["quats"] * lengths, "colors": colors}
    return Scene(tensors, scene.width, scene.height, scene.settings)


CASES = {
    "harmonics and expected depth": make_scene(1, render_mode="RGB+ED"),
    "plain colours and depth": make_scene(2, sh=False, render_mode="RGB+D"),
    "antialiased": make_scene(3, rasterize_mode="antialiased", render_mode="RGB+ED"),
    "background": make_scene(4, backgrounds=torch.tensor([[0.2, 0.7, 0.4]]), render_mode="RGB"),
    "opaque, alpha clamp and early stop": make_scene(5, count=400, opacity=(0.97, 1.0), render_mode="RGB+ED"),
    "splats over many tiles": make_scene(6, count=80, splat_pixels=(8, 30), render_mode="RGB+ED"),
    "ragged tiles": make_scene(7, size=(131, 77), render_mode="RGB+ED"),
    "behind, near plane, outside the frustum": with_difficult_places(),
    "equal depths": with_equal_depths(),
    "faint, clipped, unnormalised, clamped colours": with_odd_parameters(),
}


@pytest.mark.parametrize("release", RULES)
@pytest.mark.parametrize("name", CASES)
def test_images_and_gradients_equal_the_reference(name: str, release: str, rules):
    """Expected: radii equal, images within 2e-5 and gradients within 2e-5 relative L2, away from thresholds."""
    scene = CASES[name]
    rules(release)
    wide, narrow = scene.leaves(torch.float64), scene.leaves(torch.float32)
    settings = {**scene.settings}
    backgrounds = settings.pop("backgrounds", None)
    expected, expected_alphas, expected_meta = reference_rasterization(
        **wide, width=scene.width, height=scene.height, band=BAND, **settings,
        backgrounds=None if backgrounds is None else backgrounds.double(),
    )  # fmt: skip
    image, alphas, meta = rasterization(
        **narrow, width=scene.width, height=scene.height, backgrounds=backgrounds, **settings
    )
    assert torch.equal(meta["radii"], expected_meta["radii"])
    certain = ~expected_meta["doubtful"][..., None]
    assert certain.float().mean() > 0.9
    scale = expected.detach().abs().amax().clamp(min=1.0)
    assert ((image - expected) * certain).abs().max() < TOLERANCE * scale
    assert ((alphas - expected_alphas) * certain).abs().max() < TOLERANCE

    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64) * certain
    alpha_weights = torch.randn(alphas.shape, generator=generator, dtype=torch.float64) * certain
    ((expected * weights).sum() + (expected_alphas * alpha_weights).sum()).backward()
    ((image * weights.float()).sum() + (alphas * alpha_weights.float()).sum()).backward()
    for parameter in TRAINED:
        wanted, got = wide[parameter].grad, narrow[parameter].grad
        error = (got - wanted).norm() / wanted.norm()
        assert error < TOLERANCE, f"gradient of {parameter}: relative error {error:.1e}"


def test_reference_finds_doubtful_pixels():
    """Expected: a pixel whose alpha sits within the band of 1/255 is reported, and only with a band."""
    scene = CASES["harmonics and expected depth"]
    tensors = {name: tensor.detach() for name, tensor in scene.leaves(torch.float64).items()}
    for band, some in ((0.0, False), (1e-2, True)):
        _, _, meta = reference_rasterization(
            **tensors, width=scene.width, height=scene.height, band=band, **scene.settings
        )
        assert bool(meta["doubtful"].any()) is some


def test_releases_differ_where_they_should(rules):
    """Expected: wide splats are cut at 3 sigma by 1.4 alone, opaque ones clamped at 0.99 by 1.6 alone; radii per axis
    from 1.5 on."""
    outcomes = {}
    scenes = {
        "wide": make_scene(11, count=150, size=(131, 77), splat_pixels=(4, 9), opacity=(0.85, 0.95)),
        "opaque": CASES["opaque, alpha clamp and early stop"],
    }
    for release in RULES:
        rules(release)
        for name, scene in scenes.items():
            tensors = {key: tensor.detach() for key, tensor in scene.leaves(torch.float32).items()}
            outcomes[release, name] = rasterization(**tensors, width=scene.width, height=scene.height, **scene.settings)

    def gap(one: str, other: str, name: str) -> float:
        return float((outcomes[one, name][0] - outcomes[other, name][0])[..., :3].abs().max())

    assert gap("1.4", "1.5", "wide") > 1e-3
    assert gap("1.5", "1.6", "wide") < 1e-6
    assert gap("1.5", "1.6", "opaque") > 1e-3
    assert [outcomes[release, "wide"][2]["radii"].dim() for release in RULES] == [2, 3, 3]


@pytest.mark.parametrize(
    ("version", "line"), [("1.3.0", "1.4"), ("1.4.0", "1.4"), ("1.5.3", "1.5"), ("1.6.0rc1", "1.6"), ("2.0", "1.6")]
)
def test_rules_follow_the_release(version: str, line: str):
    """Expected: the newest known line that is not newer."""
    assert release_line(version) == line
