"""Cameras and masks from files: formats read alike, names matched, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_example import make_calibration
from PIL import Image

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import photograph_cameras
from lora3d_splat.export.colmap import read_colmap_cameras, write_colmap
from lora3d_splat.export.scene_json import write_scene_json
from lora3d_splat.export.transforms_json import write_transforms_json
from lora3d_splat.images.load import load_view, upright_mask
from lora3d_splat.known_cameras import KnownCamerasConfig, anchored, camera_priors
from lora3d_splat.records import Calibration

TEXT_CAMERAS = "# comment\n1 SIMPLE_RADIAL 128 96 120 64 48 0.01\n"
TEXT_IMAGES = "# comment\n1 1 0 0 0 0.5 -1 2 1 1.png\n10 20 -1\n2 1 0 0 0 0 0 1 1 2.png\n\n"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Calibration:
    return make_calibration(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def files(calibration: Calibration, tmp_path: Path) -> dict[str, Path]:
    cameras = photograph_cameras(calibration.views, calibration.scene)
    write_scene_json(tmp_path / "scene.json", "compact", "Apache-2.0", cameras)
    write_transforms_json(tmp_path / "transforms.json", cameras, [f"images/{camera.file}" for camera in cameras], None)
    write_colmap(tmp_path / "sparse", cameras, np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    return {"scene": tmp_path / "scene.json", "nerfstudio": tmp_path / "transforms.json", "colmap": tmp_path / "sparse"}


@pytest.mark.parametrize("kind", ["scene", "nerfstudio", "colmap"])
def test_every_format_gives_the_cameras_back(calibration: Calibration, files: dict[str, Path], kind: str):
    priors = camera_priors(calibration.views, KnownCamerasConfig(files[kind], principal_point=True))
    torch.testing.assert_close(priors.focal, calibration.scene.focal)
    torch.testing.assert_close(priors.principal_point, calibration.scene.principal_point)
    torch.testing.assert_close(priors.T_world_camera, calibration.scene.T_world_camera)
    assert bool(priors.fixed_pose.all())


def test_only_what_is_asked_for_is_taken(calibration: Calibration, files: dict[str, Path]):
    intrinsics = camera_priors(calibration.views, KnownCamerasConfig(files["scene"], use="intrinsics"))
    poses = camera_priors(calibration.views, KnownCamerasConfig(files["scene"], use="poses", position_sigma=0.1))
    assert not bool(intrinsics.posed.any())
    assert bool(poses.focal.isnan().all())
    assert bool(poses.posed.all())
    assert not bool(poses.fixed_pose.any())


def test_cameras_of_another_resolution_are_scaled(calibration: Calibration, files: dict[str, Path]):
    double = [replace(view, width=2 * view.width, height=2 * view.height) for view in calibration.views]
    priors = camera_priors(double, KnownCamerasConfig(files["scene"], use="intrinsics"))
    torch.testing.assert_close(priors.focal, 2 * calibration.scene.focal)


def test_a_colmap_model_in_text_is_read(tmp_path: Path):
    (tmp_path / "cameras.txt").write_text(TEXT_CAMERAS)
    (tmp_path / "images.txt").write_text(TEXT_IMAGES)
    first, second = read_colmap_cameras(tmp_path)
    assert (first.file, first.fx, first.fy, first.cx, first.cy) == ("1.png", 120, 120, 64, 48)
    np.testing.assert_allclose(first.T_world_camera[:3, 3], [-0.5, 1, -2])
    assert second.file == "2.png"


def test_foreign_and_broken_files_are_refused(calibration: Calibration, files: dict[str, Path], tmp_path: Path):
    strangers = [replace(view, file=f"other{k}.png") for k, view in enumerate(calibration.views)]
    with pytest.raises(InputError, match="names none"):
        camera_priors(strangers, KnownCamerasConfig(files["scene"]))
    (tmp_path / "broken.json").write_text("{")
    for path in (tmp_path / "broken.json", tmp_path / "nothing.json", tmp_path):
        with pytest.raises(InputError):
            camera_priors(calibration.views, KnownCamerasConfig(path))


def test_a_distance_and_positions_anchor_the_scene(calibration: Calibration, tmp_path: Path):
    scene, views = calibration.scene, calibration.views
    near = anchored(scene, views, KnownCamerasConfig(distance=("0.png", "2.png", 2.0)))
    assert float((near.T_world_camera[0, :3, 3] - near.T_world_camera[2, :3, 3]).norm()) == pytest.approx(2.0)
    wanted = 3 * scene.T_world_camera[:, :3, 3] + 1
    lines = [f"{view.file} {x} {y} {z}" for view, (x, y, z) in zip(views, wanted.tolist(), strict=True)]
    (tmp_path / "positions.txt").write_text("# file x y z\n" + "\n".join(lines))
    moved = anchored(scene, views, KnownCamerasConfig(positions=tmp_path / "positions.txt"))
    torch.testing.assert_close(moved.T_world_camera[:, :3, 3], wanted)


def test_masks_come_from_a_folder_or_from_alpha(tmp_path: Path):
    photos = tmp_path / "photos"
    (tmp_path / "masks").mkdir()
    photos.mkdir()
    pixels = np.full((48, 64, 4), 200, np.uint8)
    pixels[:, :16, 3] = 0
    pixels[:, 16:, 3] = 255
    Image.fromarray(pixels).save(photos / "alpha.png")
    Image.fromarray(pixels[..., :3]).save(photos / "folder.jpg")
    Image.fromarray(pixels[..., :3]).save(photos / "plain.jpg")
    half = np.zeros((24, 32), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "masks" / "folder.jpg.png")
    alpha, folder, plain = (load_view(photos / name, name, 64, 16) for name in ("alpha.png", "folder.jpg", "plain.jpg"))
    assert alpha.mask is not None
    assert not alpha.mask[:, :15].any()
    assert alpha.mask[:, 17:].all()
    assert folder.mask is not None
    assert not folder.mask[:, :31].any()
    assert folder.mask[:, 33:].all()
    assert plain.mask is None
    assert load_view(photos / "alpha.png", "alpha.png", 64, 16, masked=False).mask is None
    mask = upright_mask(photos / "folder.jpg")
    assert mask is not None
    assert mask.size == (64, 48)
    (tmp_path / "masks" / "plain.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="mask that cannot be read"):
        load_view(photos / "plain.jpg", "plain.jpg", 64, 16)
