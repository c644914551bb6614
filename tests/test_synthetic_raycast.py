"""Rendered depth against closed forms, determinism, and agreement between views."""

from __future__ import annotations

import numpy as np
import pytest

from lora3d_splat.errors import InputError
from lora3d_splat.synthetic.cameras import look_at
from lora3d_splat.synthetic.foreign_textures import FOREIGN
from lora3d_splat.synthetic.pairs import counterparts, covisibility, scene_pairs, unproject
from lora3d_splat.synthetic.raycast import CYLINDER, SPHERE
from lora3d_splat.synthetic.render import SceneFeatures, cast, draw_lens, render_scene
from lora3d_splat.synthetic.scenes import showpiece
from lora3d_splat.synthetic.textures import SIZE as SIZE_OF_TEXTURE
from lora3d_splat.synthetic.textures import atlas
from lora3d_splat.synthetic.world import Look, WorldBuilder, turn

SIZE, FOCAL = (36, 48), 40.0


def builder() -> WorldBuilder:
    """An empty lit world."""
    build = WorldBuilder(np.random.default_rng(0), atlas("train"))
    build.sun((0, -1, 2), 1.0, 0.4)
    return build


def world_rays(pose: np.ndarray) -> np.ndarray:
    """(H, W, 3) world directions of unit camera z through the pixel centres."""
    height, width = SIZE
    x, y = np.meshgrid((np.arange(width) + 0.5 - width / 2) / FOCAL, (np.arange(height) + 0.5 - height / 2) / FOCAL)
    return np.stack([x, y, np.ones_like(x)], -1) @ pose[:3, :3].T


def test_depth_of_a_plane_is_exact() -> None:
    """Floor z = 0 seen from above: z-depth = height / -direction_z along rays of unit camera z."""
    build = builder()
    build.box((0, 0, -1), (50, 50, 1), build.look("checks"))
    pose = look_at(np.array([0.3, -2.0, 2.0]), np.array([0.0, 0.0, 0.0]), 0.2)
    _, depth = cast(build.finish(), atlas("train"), pose, FOCAL, SIZE)
    down = world_rays(pose)[..., 2]
    expected = np.where(down < 0, 2.0 / np.maximum(-down, 1e-9), 0)
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


def test_depth_of_a_sphere_is_exact() -> None:
    """The nearer root of |o + t d - c|^2 = r^2; zero where the ray misses."""
    build = builder()
    centre, radius = np.array([0.2, 0.1, 0.9]), 0.6
    build.add(SPHERE, centre, np.full(3, radius), build.look("noise"))
    pose = look_at(np.array([0.0, -2.5, 1.2]), centre, 0.0)
    _, depth = cast(build.finish(), atlas("train"), pose, FOCAL, SIZE)
    rays, offset = world_rays(pose), pose[:3, 3] - centre
    a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - radius**2
    root = b * b - a * c
    expected = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    np.testing.assert_allclose(depth, expected, rtol=1e-4, atol=1e-6)
    assert (depth > 0).sum() > 100


def test_a_cylinder_has_a_flat_lid() -> None:
    """Looking straight down, the lid's depth is constant and its outline is a disc."""
    build = builder()
    build.add(CYLINDER, (0, 0, 0.5), (0.4, 0.4, 0.5), build.look("text"))
    pose = look_at(np.array([0.0, 0.001, 3.0]), np.array([0.0, 0.0, 0.0]), 0.0)
    _, depth = cast(build.finish(), atlas("train"), pose, FOCAL, SIZE)
    lid = depth[SIZE[0] // 2 - 5 : SIZE[0] // 2 + 5, SIZE[1] // 2 - 5 : SIZE[1] // 2 + 5]
    np.testing.assert_allclose(lid, 2.0, rtol=1e-3)


@pytest.mark.parametrize("style", ["train", "heldout", "foreign"])
def test_scenes_depend_on_their_seed_alone(style: str) -> None:
    """Same seed, same bytes; another seed, another picture."""
    first, again, other = (render_scene(seed, (32, 48), 2, style) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.depth, again.depth)
    assert not np.array_equal(first.images, other.images)


def test_styles_differ_in_textures_and_scenes() -> None:
    """The held-out scene of a seed is not the training scene of that seed."""
    train, heldout = (render_scene(1, (32, 32), 2, style) for style in ("train", "heldout"))
    assert not np.array_equal(train.images, heldout.images)
    with pytest.raises(InputError, match="heldout"):
        render_scene(1, (32, 32), 2, "test")


def test_views_agree_where_they_overlap() -> None:
    """Points of one view, projected into another that sees them, meet the same depth and nearly the same colour."""
    compared, differences = 0, []
    for seed in range(6):
        scene = render_scene(seed, (48, 64), 4)
        for i, j in scene_pairs(scene, 0.3):
            points = unproject(scene.depth[i], scene.focal[i])
            T_j_i = np.linalg.inv(scene.T_world_camera[j]) @ scene.T_world_camera[i]
            moved = points @ T_j_i[:3, :3].T + T_j_i[:3, 3]
            z = np.maximum(moved[..., 2], 1e-6)
            u = np.floor(scene.focal[j] * moved[..., 0] / z + 32).astype(int)
            v = np.floor(scene.focal[j] * moved[..., 1] / z + 24).astype(int)
            inside = (scene.depth[i] > 0) & (moved[..., 2] > 0) & (u >= 0) & (u < 64) & (v >= 0) & (v < 48)
            u, v = u.clip(0, 63), v.clip(0, 47)
            same = inside & (np.abs(scene.depth[j][v, u] - z) < 0.03 * z)
            compared += int(same.sum())
            differences.append(np.abs(scene.images[j][v, u].astype(float) - scene.images[i])[same].mean())
    assert compared > 2000
    assert np.median(differences) < 25, "colours of the same surface must agree between views"


def test_covisibility_is_one_on_the_diagonal_and_symmetric_in_its_pairs() -> None:
    """Shares lie in [0, 1]; usable pairs are ordered i < j."""
    scene = render_scene(2, (48, 64), 4)
    seen = covisibility(scene)
    assert (np.diag(seen) == 1).all()
    assert ((seen >= 0) & (seen <= 1)).all()
    assert all(i < j and min(seen[i, j], seen[j, i]) >= 0.15 for i, j in scene_pairs(scene))


def test_a_mirror_shows_what_its_image_would() -> None:
    """A ball before a perfect mirror: the mirror shows what the reflected camera sees of the ball from behind it."""
    pose = look_at(np.array([0.0, -2.0, 0.8]), np.array([0.0, 0.0, 0.8]), 0.0)
    build = builder()
    build.add(SPHERE, (0.0, -0.6, 0.3), np.full(3, 0.25), build.look("checks"))
    build.box((0, 0.05, 1.0), (0.8, 0.05, 0.8), Look(0, mirror=1.0))
    world = build.finish()
    shown, depth = cast(world, atlas("train"), pose, FOCAL, SIZE)
    # Reflected in the plane y = 0 a camera is left-handed; turning its x axis round makes it a camera, and its picture
    # the mirror image.
    reflected = np.diag([1.0, -1, 1, 1]) @ pose @ np.diag([-1.0, 1, 1, 1])
    seen, ball_depth = (each[:, ::-1] for each in cast(world.first(1), atlas("train"), reflected, FOCAL, SIZE))
    on_mirror = (ball_depth > 0) & np.isclose(depth, 2.0, rtol=1e-4)
    assert on_mirror.sum() > 20
    assert np.abs(seen[on_mirror].astype(float) - shown[on_mirror]).mean() < 12
    assert np.isclose(depth, 2.0, rtol=1e-4).mean() > 0.3, "depth is the mirror's, not what it shows"


def test_moving_things_have_exact_depth_and_no_matches() -> None:
    """Where nothing moves, depth equals that of the same place without movers; each view finds its own world."""
    features = SceneFeatures(movers=1.0)
    scene = next(s for s in (render_scene(k, (48, 64), 3, features=features) for k in range(20)) if s.moving.any())
    assert scene.moving.any(axis=(1, 2)).sum() >= 1
    build = WorldBuilder(np.random.default_rng(0), atlas("train"))
    build.box((0, 0, -1), (9, 9, 1), Look(0))
    build.add(SPHERE, (0, 0, 0.5), np.full(3, 0.5), Look(1))
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = turn(2, 0.7), (0.4, 0.2, 0.1)
    moved, direct = build.finish().moved(slice(1, 2), turned), builder()
    direct.box((0, 0, -1), (9, 9, 1), Look(0))
    direct.add(SPHERE, turned[:3, :3] @ (0, 0, 0.5) + turned[:3, 3], np.full(3, 0.5), Look(1), turned[:3, :3])
    pose = look_at(np.array([0.5, -3.0, 1.5]), np.array([0.0, 0.0, 0.5]), 0.0)
    depths = [cast(world, atlas("train"), pose, FOCAL, SIZE)[1] for world in (moved, direct.finish())]
    np.testing.assert_allclose(*depths, rtol=1e-5)
    i, j = 0, 1
    assert not (counterparts(scene, i, j).visible & scene.moving[i]).any()


def test_features_change_only_what_is_asked_for() -> None:
    """Without features a seed draws what it draws by default; streets are streets; shares are checked."""
    plain = render_scene(3, (32, 48), 2)
    np.testing.assert_array_equal(plain.images, render_scene(3, (32, 48), 2, features=SceneFeatures()).images)
    assert render_scene(3, (32, 48), 2, features=SceneFeatures(streets=1.0)).kind == "street"
    polished = [render_scene(k, (32, 48), 2, features=SceneFeatures(mirrors=1.0)) for k in range(4)]
    same = [np.array_equal(each.images, render_scene(k, (32, 48), 2).images) for k, each in enumerate(polished)]
    assert not all(same), "half of the scenes are polished"
    for k, each in enumerate(polished):
        np.testing.assert_array_equal(each.depth, render_scene(k, (32, 48), 2).depth)
    with pytest.raises(InputError, match="share"):
        SceneFeatures(movers=1.5)


def test_everyday_lenses_are_mostly_those_of_phones() -> None:
    """Half of them lie within 13 % of 0.82 long sides, others reach from wide to long."""
    rng, extra = np.random.default_rng(0), np.random.default_rng(1)
    focal = np.array([draw_lens(rng, extra, 0.75) for _ in range(2000)])
    assert 0.45 < np.mean(np.abs(np.log(focal / 0.82)) < 0.13) < 0.65
    assert 0.5 < focal.min() < 0.6
    assert 1.8 < focal.max() <= 2.0
    even = np.array([draw_lens(rng, extra, 0.0) for _ in range(200)])
    assert 0.59 < even.min() < even.max() < 1.38
    wide = render_scene(5, (32, 48), 2, features=SceneFeatures(everyday_lenses=1.0))
    assert not np.array_equal(wide.focal, render_scene(5, (32, 48), 2).focal)


def test_a_showpiece_stands_alone_and_fills_the_picture_through_any_lens() -> None:
    """There is nothing around it, no view is empty of it, and long lenses show it from as much farther off."""
    features = SceneFeatures(showpieces=1.0, movers=1.0)
    scenes = [render_scene(seed, (32, 48), 3, features=features) for seed in range(12)]
    assert {scene.kind for scene in scenes} == {"showpiece"}
    assert all(scene.moving is None for scene in scenes)
    seen = np.array([(scene.depth > 0).mean((1, 2)) for scene in scenes])
    assert seen.min() > 0.08
    assert np.median(seen) < 0.7
    stand = showpiece(WorldBuilder(np.random.default_rng(0), atlas("train")))
    far = stand.stepped_back(2.0)
    np.testing.assert_allclose(far.eye - far.target, 2 * (stand.eye - stand.target))


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_textures_keep_the_contract(name: str) -> None:
    """(SIZE, SIZE, 3), finite, near [0, 1], by the seed alone, without a visible seam."""
    image = FOREIGN[name](np.random.default_rng(3))
    assert image.shape == (SIZE_OF_TEXTURE, SIZE_OF_TEXTURE, 3)
    assert image.min() > -0.1
    assert image.max() < 1.4
    np.testing.assert_array_equal(image, FOREIGN[name](np.random.default_rng(3)))
    inner = np.abs(np.diff(image, axis=0)).mean((1, 2)).max()
    assert np.abs(image[0] - image[-1]).mean() <= inner * 1.5 + 0.02
