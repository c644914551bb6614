"""Cameras from tracks: exact where marks are exact, robust to wrong ones, and nothing where there is no evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from track_scene import FOCAL, HEIGHT, WIDTH, TrackScene, bowl, make_track_scene, trajectory_error

from lora3d_splat.alignment import AlignmentConfig
from lora3d_splat.alignment.tracks import (
    find_tracks,
    heldout,
    lens_radials,
    place_by_tracks,
    settle,
    solve,
    straightened,
)
from lora3d_splat.alignment.tracks.bend import bend_depth
from lora3d_splat.alignment.tracks.bundle import BundleConfig, _derivatives, adjust
from lora3d_splat.alignment.tracks.follow import follow_marks
from lora3d_splat.alignment.tracks.guided import guided_matches
from lora3d_splat.alignment.tracks.mapper import resect
from lora3d_splat.alignment.tracks.problem import Marks, Rig, camera_points, errors, project, slopes_of, unplaced
from lora3d_splat.alignment.tracks.sharpen import sharpen
from lora3d_splat.alignment.tracks.triangulate import triangulate
from lora3d_splat.alignment.tracks.two_view import focal_by_essentials, relative_poses
from lora3d_splat.alignment.tracks.views import to_image
from lora3d_splat.export.cameras import photograph_cameras
from lora3d_splat.geometry.lens import network_pixels
from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import invert_rigid, rotation_angle_deg, so3_exp, transform_points
from lora3d_splat.images.load import load_views
from lora3d_splat.matching import Features
from lora3d_splat.records import AlignedScene, ImagePair, PairPrediction, SparseScene

DIAGONAL = float(np.hypot(WIDTH, HEIGHT))


def rig_of(scene: TrackScene, focal: float = FOCAL, radial: float = 0.0) -> Rig:
    """The true cameras."""
    world_to_camera = invert_rigid(scene.T_world_camera).numpy()
    count = len(scene.views)
    return Rig(
        world_to_camera[:, :3, :3],
        world_to_camera[:, :3, 3],
        np.zeros(count, int),
        np.array([focal / DIAGONAL]),
        np.array([radial]),
        np.ones(count, bool),
        np.zeros(count),
    )


def marks_of(scene: TrackScene) -> Marks:
    """Every point in every view."""
    count = len(scene.views)
    view = np.repeat(np.arange(count), 300)
    pixels = np.concatenate([item.pixels for item in scene.features])
    image = to_image(scene.views, pixels, view)
    track = np.tile(np.arange(300), count)
    return Marks(track, view, image, np.full(len(view), 0.5 / DIAGONAL), np.full(len(view), np.nan))


def aligned(scene: TrackScene, poses: torch.Tensor | None = None) -> AlignedScene:
    """An aligned scene with the true depths, and poses that may be wrong."""
    count = len(scene.views)
    pairs = tuple(ImagePair(i, j) for i in range(count) for j in range(count) if i != j)
    poses = scene.T_world_camera if poses is None else poses
    focal = torch.full((count,), 0.1 * FOCAL, dtype=torch.float64)
    centre = torch.tensor([[32.0, 24.0]], dtype=torch.float64).repeat(count, 1)
    everyone, nothing = (True,) * count, (None,) * count
    scale = torch.ones(len(pairs), dtype=torch.float64)
    frames = poses[[pair.reference for pair in pairs]]
    return AlignedScene(everyone, nothing, poses, focal, centre, scene.depth, pairs, frames, scale, 0.04, 0.0)


def predictions(scene: TrackScene) -> tuple[PairPrediction, ...]:
    """Exact pointmaps of all ordered pairs."""
    reference = aligned(scene)
    clouds = [
        unproject(depth.double(), reference.focal[k], reference.principal_point[k])
        for k, depth in enumerate(scene.depth)
    ]
    sure = torch.full(clouds[0].shape[:2], 20.0)
    found = []
    for pair in reference.pairs:
        T_reference_other = invert_rigid(scene.T_world_camera[pair.reference]) @ scene.T_world_camera[pair.other]
        other = transform_points(T_reference_other, clouds[pair.other].flatten(0, 1)).view_as(clouds[pair.other])
        found.append(PairPrediction(pair, clouds[pair.reference].float(), sure, other.float(), sure))
    return tuple(found)


def solved(scene: TrackScene, focal_guess: float = 0.8) -> SparseScene | None:
    """`solve_tracks` on the scene's features, all pairs matched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        matching = solve.match_views(scene.views)
    lenses = solve.Lenses(np.zeros(len(scene.views), int), np.array([np.nan]), np.array([focal_guess]))
    return solve.solve_tracks(scene.views, matching, scene.depth, lenses)


def test_derivatives_are_those_of_finite_differences() -> None:
    """Of the marks' two coordinates and, as third, of the depth that the pointmap tells."""
    scene = make_track_scene(2)
    rig, marks = rig_of(scene, radial=-0.08), marks_of(scene)
    marks = replace(marks.where(marks.track < 20), depth=np.linspace(2.0, 5.0, 40))
    config = BundleConfig(depth_sigma=0.1)
    to_pose, to_lens, to_point, _ = _derivatives(rig, scene.points_world, marks, config)

    def image(moved: Rig, points: np.ndarray) -> np.ndarray:
        return _derivatives(moved, points, marks, config)[3]

    step, base = 1e-6, image(rig, scene.points_world)
    for axis in range(3):
        points = scene.points_world + step * np.eye(3)[axis]
        assert np.allclose((image(rig, points) - base) / step, to_point[:, :, axis], atol=1e-2)
        moved = replace(rig, translation=rig.translation + step * np.eye(3)[axis])
        assert np.allclose((image(moved, scene.points_world) - base) / step, to_pose[:, :, axis], atol=2e-2)
        turn = np.eye(3) + np.cross(step * np.eye(3)[axis], np.eye(3)).T
        moved = replace(rig, rotation=turn @ rig.rotation, translation=rig.translation @ turn.T)
        assert np.allclose((image(moved, scene.points_world) - base) / step, to_pose[:, :, 3 + axis], atol=2e-2)
    moved = replace(rig, ruler=rig.ruler + step)
    assert np.allclose((image(moved, scene.points_world) - base) / step, to_pose[:, :, 6], atol=1e-2)
    moved = replace(rig, focal=rig.focal * np.exp(step))
    assert np.allclose((image(moved, scene.points_world) - base) / step, to_lens[:, :, 0], atol=1e-2)
    moved = replace(rig, radial=rig.radial + step)
    assert np.allclose((image(moved, scene.points_world) - base) / step, to_lens[:, :, 1], atol=1e-2)


def test_adjustment_finds_the_optimum_of_exact_marks() -> None:
    """Expected: no error left, the true focal and distortion, from cameras, points and a lens that are all off."""
    scene = make_track_scene(5, radial=-0.05)
    true, marks = rig_of(scene, radial=-0.05), marks_of(scene)
    noise = np.random.default_rng(3)
    start = replace(true, translation=true.translation + 0.02 * noise.normal(size=(5, 3)), radial=np.zeros(1))
    start = start.with_focal(1.05 * true.focal)
    points = scene.points_world + 0.02 * noise.normal(size=(300, 3))
    config = BundleConfig(steps=60, tolerance=1e-12, free_radial=True, focal_prior=1e3, radial_prior=1e3)
    found, points = adjust(start, points, marks, config)
    assert errors(found, points, marks).max() < 1e-3
    assert found.focal[0] == pytest.approx(true.focal[0], rel=1e-4)
    assert found.radial[0] == pytest.approx(-0.05, abs=1e-4)


@pytest.mark.parametrize(("count", "gain"), [(15, 0.8), (300, 1.03)])
def test_pointmaps_matter_where_marks_are_few(count: int, gain: float) -> None:
    """Marks are a pixel off, pointmaps 5 %: with them points are a fifth nearer to the truth, or no farther from it."""
    miss = {None: 0.0, 0.1: 0.0}
    for seed in range(3):
        scene = make_track_scene(3, noise=1.0, seed=seed)
        true, marks = rig_of(scene), marks_of(scene)
        marks = marks.where(marks.track < count)
        noise = 0.05 * np.random.default_rng(seed).normal(size=len(marks.view))
        depth = camera_points(true, scene.points_world, marks)[:, 2] * np.exp(noise)
        for sigma in miss:
            config = BundleConfig(steps=60, depth_sigma=sigma)
            _, found = adjust(true, scene.points_world, replace(marks, depth=depth), config)
            points, wanted = torch.from_numpy(found[:count]), torch.from_numpy(scene.points_world[:count])
            miss[sigma] += float((align_trajectories(points, wanted).apply(points) - wanted).norm(dim=-1).mean())
    assert miss[0.1] < gain * miss[None]


def test_wrong_marks_lose_their_say() -> None:
    """A tenth of the marks is off by tens of pixels; the focal stays within a thousandth."""
    scene = make_track_scene(5)
    true, marks = rig_of(scene), marks_of(scene)
    wrong = np.random.default_rng(4).random(len(marks.view)) < 0.1
    image = marks.image + np.where(wrong, 0.06, 0.0)[:, None]
    found, _ = adjust(true, scene.points_world, replace(marks, image=image), BundleConfig(steps=40))
    assert found.focal[0] == pytest.approx(true.focal[0], rel=1e-3)


def test_slopes_invert_the_projection() -> None:
    scene = make_track_scene(1, radial=-0.1)
    rig, marks = rig_of(scene, radial=-0.1), marks_of(scene)
    inside = camera_points(rig, scene.points_world, marks)
    assert np.allclose(slopes_of(rig, marks.image, marks.view), inside[:, :2] / inside[:, 2:], atol=1e-6)


def test_triangulation_drops_the_mark_that_misses() -> None:
    scene = make_track_scene(4)
    marks = marks_of(scene)
    image = marks.image.copy()
    image[300:310] += 0.1  # points 0 to 9 in view 1
    points, held, kept = triangulate(rig_of(scene), replace(marks, image=image), 300, 5.0, 1.5)
    assert held.all()
    assert np.allclose(points, scene.points_world, atol=1e-5)
    assert np.flatnonzero(~kept).tolist() == list(range(300, 310))


def test_points_without_parallax_do_not_hold() -> None:
    scene = make_track_scene(2)
    scene = replace(scene, T_world_camera=scene.T_world_camera[:1].repeat(2, 1, 1))
    marks = marks_of(scene)
    marks = replace(marks, image=np.tile(marks.image[:300], (2, 1)))
    assert not triangulate(rig_of(scene), marks, 300, 5.0, 1.5)[1].any()


def test_where_no_mark_counts_no_point_holds() -> None:
    scene = make_track_scene(2)
    rig, marks = rig_of(scene), marks_of(scene)
    nowhere = replace(rig, placed=np.zeros_like(rig.placed))
    assert not triangulate(nowhere, marks, 300, 5.0, 1.5)[1].any()


def test_a_small_plane_leaves_two_poses_and_the_marks_decide() -> None:
    """Seen from the side, marks half a pixel off: the other pose is some 90 degrees away, the true one is found."""
    for seed in range(100, 112):
        noise = np.random.default_rng(seed)
        points = np.c_[noise.uniform(-0.2, 0.2, (60, 2)), np.full(60, 4.0)]
        turn = so3_exp(torch.tensor([0.1, 0.6 + 0.02 * (seed - 100), 0.05], dtype=torch.float64)).numpy()
        shift = np.array([0.0, 0.0, 4.0]) - turn @ np.array([0.0, 0.0, 4.0])
        rig = unplaced(np.zeros(1, int), np.array([FOCAL / DIAGONAL]), np.zeros(1))
        everyone = np.arange(60)
        seen = project(rig, points @ turn.T + shift, 0 * everyone) + 0.5 / DIAGONAL * noise.normal(size=(60, 2))
        marks = Marks(everyone, 0 * everyone, seen, np.full(60, 0.5 / DIAGONAL), np.full(60, np.nan))
        found = resect(rig, points, marks)
        assert found is not None
        assert np.degrees(np.arccos((np.trace(found[0] @ turn.T) - 1) / 2)) < 5.0


def test_two_views_tell_pose_and_three_the_focal_length() -> None:
    scene = make_track_scene(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        matching = solve.match_views(scene.views)
    couples = solve.evidence(scene.views, matching.features, matching.pairs, scene.depth).couples
    focal, clarity = focal_by_essentials(couples)
    assert focal == pytest.approx(FOCAL / DIAGONAL, rel=0.04)
    assert clarity < 0.2
    pose = relative_poses(couples[2], FOCAL / DIAGONAL, FOCAL / DIAGONAL)[0]
    T_second_first = invert_rigid(scene.T_world_camera[couples[2].second]) @ scene.T_world_camera[couples[2].first]
    assert rotation_angle_deg(torch.from_numpy(pose.rotation), T_second_first[:3, :3]) < 0.05
    direction = torch.nn.functional.normalize(T_second_first[:3, 3], dim=0).numpy()
    assert pose.translation @ direction > 0.9999


def test_a_scene_is_solved_from_features_alone() -> None:
    """Noise of a third of a pixel: centres within 0.5 % of their extent, the focal within 2 %, from 30 % off."""
    scene = make_track_scene(6, noise=0.3)
    sparse = solved(scene, 1.3 * FOCAL / DIAGONAL)
    assert sparse is not None
    assert all(sparse.placed)
    assert trajectory_error(sparse, scene) < 0.005
    assert float(sparse.focal[0]) == pytest.approx(FOCAL, rel=0.02)


def test_a_view_that_shares_no_point_is_placed_by_the_pointmap_as_a_ruler() -> None:
    """View 2 sees only points that the others saw in pairs with it: no track has three views."""
    scene = make_track_scene(3, seen=[slice(0, 300), slice(0, 150), slice(150, 300)])
    sparse = solved(scene)
    assert sparse is not None
    assert all(sparse.placed)
    assert trajectory_error(sparse, scene) < 0.05


def repeated_texture(wrong: np.ndarray, right: np.ndarray) -> TrackScene:
    """Two views; the second shows what looks like the points `wrong` 2.4 to the side of where they are."""
    scene = make_track_scene(2)
    rig = rig_of(scene)
    moved = scene.points_world + np.where(wrong, 2.4, 0.0)[:, None] * [1.0, 0.0, 0.0]
    moved[:, 2] = bowl(moved)
    marks = marks_of(scene).where(np.arange(600) >= 300)
    seen = project(rig, camera_points(rig, moved, marks), marks.view) * DIAGONAL + [WIDTH / 2, HEIGHT / 2]
    first, second = scene.features
    features = [replace(first, pixels=first.pixels), replace(second, pixels=seen)]
    kept = wrong | right
    return replace(scene, features=tuple(Features(f.pixels[kept], f.size[kept], f.descriptors[kept]) for f in features))


def test_repeated_texture_is_settled_by_the_pointmaps() -> None:
    """More matches agree on a wrong place than on the right one: pointmaps leave the right ones, alone they lose."""
    points = make_track_scene(2).points_world
    wrong = points[:, 0] < -0.3
    right = ~wrong & (np.arange(300) < 70)
    assert wrong.sum() > 1.5 * right.sum()
    scene = repeated_texture(wrong, right)
    is_wrong = wrong[wrong | right]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        alone = solve.match_views(scene.views).pairs[0].matches
        checked = solve.match_views(scene.views, None, predictions(scene)).pairs[0].matches
    assert is_wrong[alone[:, 0]].mean() > 0.5
    assert not is_wrong[checked[:, 0]].any()
    assert len(checked) > 0.9 * right.sum()


def test_pointmaps_that_err_more_than_matches_reject_none() -> None:
    """Pointmaps off by half the depth throughout: their word counts for nothing, exact matches all stay."""
    scene = make_track_scene(2)
    noise = torch.Generator().manual_seed(1)
    junk = [
        replace(item, points_other=item.points_other + 2.0 * torch.randn(item.points_other.shape, generator=noise))
        for item in predictions(scene)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        assert len(solve.match_views(scene.views, None, junk).pairs[0].matches) == 300


@pytest.mark.parametrize("focal", [0.6, 1.4])
def test_few_views_find_a_focal_far_from_the_pointmaps(focal: float) -> None:
    """Three views, and pointmaps whose focal length is off by a factor: the map with the true one explains most."""
    scene = make_track_scene(3, noise=0.2)
    sparse = solved(scene, focal * FOCAL / DIAGONAL)
    assert sparse is not None
    assert float(sparse.focal[0]) == pytest.approx(FOCAL, rel=0.06)


def test_no_texture_and_the_mode_off_give_nothing(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (320, 240), (100 + index, 90, 80)).save(tmp_path / f"{index}.png")
    views = load_views(sorted(tmp_path.iterdir()), 64, 16).views
    scene = make_track_scene(3)
    assert find_tracks(views, aligned(scene), (), AlignmentConfig()) is None
    assert find_tracks(scene.views, aligned(scene), (), AlignmentConfig(), "off") is None


def test_a_map_of_few_views_does_not_overrule_the_alignment_of_many() -> None:
    """Two of five views have features: unasked, the alignment stands; asked for, the map of two is used."""
    nothing = slice(0, 3)
    scene = make_track_scene(5, seen=[slice(None), slice(None), nothing, nothing, nothing])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        assert find_tracks(scene.views, aligned(scene), predictions(scene), AlignmentConfig()) is None
        asked = find_tracks(scene.views, aligned(scene), predictions(scene), AlignmentConfig(), "on")
    assert asked is not None
    assert sum(asked.placed) == 2


def test_a_map_that_contradicts_its_marks_is_not_believed_unasked() -> None:
    scene = make_track_scene(3)
    sparse = solved(scene)
    assert sparse is not None
    assert sparse.explained > 0.99
    contradicted = replace(sparse, explained=0.65)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        patch.setattr("lora3d_splat.alignment.tracks.find.solve_tracks", lambda *_: contradicted)
        assert find_tracks(scene.views, aligned(scene), (), AlignmentConfig()) is None
        assert find_tracks(scene.views, aligned(scene), (), AlignmentConfig(), "on") is contradicted


def test_known_cameras_settle_ambiguous_matches() -> None:
    """Twins of a third of the points have nearly their descriptors: alone they match nothing, with cameras all do."""
    scene = make_track_scene(4, noise=0.2)
    generator = np.random.default_rng(2)
    features = []
    for item in scene.features:
        shift = 0.55 * generator.normal(size=(100, 128)).astype(np.float32) / 128**0.5
        near = item.descriptors.copy()
        near[:100] += 0.45 * generator.normal(size=(100, 128)).astype(np.float32) / 128**0.5
        near[:100] /= np.linalg.norm(near[:100], axis=1, keepdims=True)
        twins = near[:100] + shift
        twins /= np.linalg.norm(twins, axis=1, keepdims=True)
        places = generator.uniform([0, 0], [WIDTH, HEIGHT], (100, 2))
        features.append(
            Features(
                np.concatenate([item.pixels, places]),
                np.concatenate([item.size, item.size[:100]]),
                np.concatenate([near, twins]),
            )
        )
    scene = replace(scene, features=tuple(features))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "detect", lambda view: scene.features[int(view.digest)])
        matching = solve.match_views(scene.views)
    alone = sum(len(pair.matches) for pair in matching.pairs)
    guided = guided_matches(scene.views, scene.features, rig_of(scene), matching.candidates)
    true = sum(int((pair.matches[:, 0] == pair.matches[:, 1]).sum()) for pair in guided)
    assert true > 1.1 * alone
    assert true > 0.99 * sum(len(pair.matches) for pair in guided)


def test_tracks_win_over_wrong_poses_and_an_unplaced_view_follows_by_pointmaps() -> None:
    """Poses of the alignment are off by a lot; view 3 has no features: all four end where they are."""
    scene = make_track_scene(4, seen=[slice(None), slice(None), slice(None), slice(0, 3)])
    noise = torch.Generator().manual_seed(0)
    wrong = scene.T_world_camera.clone()
    wrong[:, :3, 3] += 0.3 * torch.randn(4, 3, generator=noise, dtype=torch.float64)
    sparse = solved(scene)
    assert sparse is not None
    assert sparse.placed == (True, True, True, False)
    settled, confidence = settle(scene.views, aligned(scene, wrong), predictions(scene), sparse, AlignmentConfig(), 0.5)
    assert all(settled.registered)
    everyone = replace(sparse, placed=settled.registered, T_world_camera=settled.T_world_camera)
    assert trajectory_error(everyone, scene) < 0.02
    assert settled.residual < 0.01
    assert len(confidence.pair_weights) == len(settled.pairs) == 12


def test_a_scene_on_tracks_is_one_of_pinholes() -> None:
    """Where a point is marked in a bent photograph, the straight view has it where a pinhole camera would."""
    scene = make_track_scene(4, radial=-0.08)
    sparse = solved(scene)
    assert sparse is not None
    assert float(sparse.radial.max()) < -0.02
    radials = lens_radials(scene.views, sparse)
    views, bent, moved = straightened(scene.views, aligned(scene), predictions(scene), radials)
    for index, view in enumerate(views):
        mine = sparse.mark_view == index
        points = sparse.points_world[sparse.mark_point[mine]]
        inside = (points - sparse.T_world_camera[index, :3, 3]) @ sparse.T_world_camera[index, :3, :3]
        pinhole = float(sparse.focal[index]) * inside[:, :2] / inside[:, 2:] + torch.tensor([WIDTH / 2, HEIGHT / 2])
        found = network_pixels(view, sparse.mark_pixels[mine]) / view.affine.scale_x
        assert float((found - pinhole).norm(dim=-1).max()) < 0.2
        assert float((sparse.mark_pixels[mine] - pinhole).norm(dim=-1).max()) > 1.0
    # In the network's 64 by 48 pixels: what was seen nearer to the centre lies farther out.
    scale, offset = 1 + radials[0] * (16.5**2 + 8.5**2) / (64**2 + 48**2), torch.tensor([16.5, 8.5])
    column, row = (torch.tensor([32.0, 24.0]) + offset * scale).floor().long().tolist()
    assert float(bent.depth[0][32, 48]) == float(scene.depth[0][row, column])
    taken = predictions(scene)[0].points_reference
    assert moved[0].points_reference[32, 48].tolist() == taken[row, column].tolist()
    network = replace(aligned(scene), focal=sparse.focal * 0.1)
    assert [camera.k1 for camera in photograph_cameras(views, network)] == pytest.approx(sparse.radial.tolist())


def test_heldout_views_are_placed_in_the_frame_of_the_settled_scene() -> None:
    scene = make_track_scene(5)
    train, one = [0, 1, 3, 4], 2
    part = TrackScene(
        tuple(scene.views[k] for k in train),
        scene.T_world_camera[train],
        scene.points_world,
        tuple(scene.features[k] for k in train),
        tuple(scene.depth[k] for k in train),
    )
    part = replace(part, views=tuple(replace(view, digest=str(k)) for k, view in enumerate(part.views)))
    sparse = solved(part)
    assert sparse is not None
    settled, _ = settle(part.views, aligned(part), predictions(part), sparse, AlignmentConfig(), 0.5)
    features = {id(view): item for view, item in zip(part.views, part.features, strict=True)}
    features[id(scene.views[one])] = scene.features[one]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "detect", lambda view: features[id(view)])
        poses = place_by_tracks([scene.views[one]], part.views, settled, sparse)
    everyone = torch.cat([settled.T_world_camera, poses[0][None]])
    order = [0, 1, 4, 2, 3]
    whole = replace(sparse, placed=(True,) * 5, T_world_camera=everyone[order])
    assert trajectory_error(whole, scene) < 0.005


def test_depth_is_bent_to_the_marks_and_left_alone_without_them() -> None:
    """A depth map off by a smooth factor meets the truth within 2 % from 200 marks, three of them wrong."""
    scene = make_track_scene(1)
    depth = scene.depth[0]
    rows, columns = torch.meshgrid(torch.arange(48) / 48, torch.arange(64) / 64, indexing="ij")
    warped = 0.4 * depth * (0.5 * torch.sin(3 * columns) + 0.3 * rows).exp()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(200, 2, generator=generator, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    wanted = depth[pixels[:, 1].long(), pixels[:, 0].long()].double()
    wanted[:3] *= 3
    bent = bend_depth(warped, pixels, wanted)
    assert ((bent - depth).abs() / depth).median() < 0.02
    assert torch.equal(bend_depth(depth, torch.zeros(0, 2).double(), torch.zeros(0).double()), depth)


def textured_plane(scene: AlignedScene, distance: float, plain: bool = False) -> list[torch.Tensor]:
    """(H, W, 3) uint8 pictures of a wall across the first camera's axis."""
    pictures = []
    for index, pose in enumerate(scene.T_world_camera):
        rays = unproject(torch.ones(48, 64).double(), scene.focal[index], scene.principal_point[index])
        directions = rays @ pose[:3, :3].T
        points = pose[:3, 3] + directions * ((distance - pose[2, 3]) / directions[..., 2])[..., None]
        x, y = points[..., 0], points[..., 1]
        grey = sum(torch.sin(a * x + b * y + c) for a, b, c in ((9, 4, 0), (-15, 11, 1), (24, -3, 2), (2, 17, 3)))
        values = 128 + 30 * grey if not plain else torch.full_like(grey, 128.0)
        pictures.append(values.clamp(0, 255)[..., None].repeat(1, 1, 3).to(torch.uint8))
    return pictures


def side_by_side(depth: float) -> AlignedScene:
    """Four cameras on a line that look straight ahead, all of whose pixels are said to be so far away."""
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.25, 0.5, -0.25]).double()
    depths = tuple(torch.full((48, 64), depth) for _ in range(4))
    return replace(aligned(make_track_scene(4)), T_world_camera=poses, depth=depths)


def test_plane_sweep_finds_the_wall_and_claims_nothing_on_a_plain_one() -> None:
    scene = side_by_side(3.7)
    near = scene.depth
    depth, sureness = sharpen(textured_plane(scene, 4.0), scene, (True,) * 4)
    sure = sureness[0] > 0
    assert sure.float().mean() > 0.3
    assert ((depth[0][sure] - 4.0).abs() / 4.0).median() < 0.015
    same, nothing = sharpen(textured_plane(scene, 4.0, plain=True), scene, (True,) * 4)
    assert not any(bool((values > 0).any()) for values in nothing)
    assert all(torch.equal(a, b) for a, b in zip(same, near, strict=True))


def test_a_guess_reaches_a_wall_far_outside_the_band() -> None:
    """Depths off by half are beyond the search; with a guess near the truth beside them, the sweep finds the wall."""
    scene = side_by_side(2.4)
    images, guesses = textured_plane(scene, 4.0), [torch.full((48, 64), 3.85)] * 4
    for told, found in ((None, False), (guesses, True)):
        depth, sureness = sharpen(images, scene, (True,) * 4, guesses=told)
        right = (sureness[0] > 0) & ((depth[0] - 4.0).abs() < 0.12)
        assert (float(right.float().mean()) > 0.3) == found


def test_depth_follows_the_nearest_marks_of_its_own_colour() -> None:
    """Marks on a far red house, mapped too near, pull it back up to its outline and leave the grey wall before it."""
    depth, image = torch.full((40, 60), 2.0), torch.full((40, 60, 3), 120, dtype=torch.uint8)
    image[:, 30:] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    row, column = torch.meshgrid(torch.arange(2, 40, 6), torch.arange(2, 60, 6), indexing="ij")
    pixels = torch.stack([column, row], dim=-1).reshape(-1, 2).double() + 0.5
    wanted = torch.where(pixels[:, 0] < 30, 2.0, 9.0).double()
    followed = follow_marks(depth, image, pixels, wanted)
    assert (followed[:, :30] - 2.0).abs().max() < 0.1
    assert followed[:, 30:].median() > 8.0
    assert torch.equal(follow_marks(depth, image, pixels[:3], wanted[:3]), depth), "too few marks"
    far = follow_marks(depth, image, *(part[pixels[:, 0] > 50] for part in (pixels, wanted)))
    assert (far[:, :30] - 2.0).abs().max() < 0.05, "nothing asks there"
