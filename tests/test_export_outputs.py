"""The output folder of a calibration: what is promised is there and agrees with itself."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_example import SCALE, make_calibration
from PIL import Image
from safetensors import safe_open

from lora3d_splat.calibration_files import load_calibration
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import photograph_cameras
from lora3d_splat.export.colmap import read_colmap
from lora3d_splat.export.ply import read_points_ply
from lora3d_splat.export.scene_json import read_scene_json
from lora3d_splat.export.splat import Splat, read_splat_ply, write_splat_ply
from lora3d_splat.export.transforms_json import read_transforms_json
from lora3d_splat.outputs import find_calibration, weights_notice, write_formats, write_outputs


def test_everything_that_is_promised_is_written(tmp_path: Path) -> None:
    write_outputs(make_calibration(tmp_path), tmp_path / "out", None)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    model = {f"colmap/sparse/0/{name}.bin" for name in ("cameras", "images", "points3D")}
    assert names == model | {
        "scene.json", "scene.safetensors", "transforms.json", "seed.ply", "report.json", "report.html", "NOTICE.txt",
    }  # fmt: skip


def test_the_licence_of_the_weights_is_in_everything_made_with_them(tmp_path: Path) -> None:
    """By name in every format that has room for it, and in a note beside the binary files of COLMAP."""
    calibration = replace(make_calibration(tmp_path), network="dust3r-512", licence="CC BY-NC-SA 4.0 (non-commercial)")
    out = tmp_path / "out"
    write_outputs(calibration, out, None)
    write_splat_ply(out / "splat.ply", gaussians(), weights_notice(calibration))
    assert len(read_splat_ply(out / "splat.ply").means) == 1
    assert read_points_ply(out / "seed.ply")[0].shape[1] == 3
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".bin":
            content = path.read_bytes()
            assert b"dust3r-512" in content, path
            assert b"CC BY-NC-SA 4.0 (non-commercial)" in content, path


def gaussians() -> Splat:
    """One of them."""
    point, empty = np.zeros((1, 3), np.float32), np.zeros((1, 0, 3), np.float32)
    return Splat(point, point, empty, np.zeros(1, np.float32), point, np.ones((1, 4), np.float32))


def test_cameras_are_in_photograph_pixels(tmp_path: Path) -> None:
    """Four photograph pixels a network pixel: focal 30 becomes 120, the centre stays the centre."""
    calibration = make_calibration(tmp_path)
    for camera in photograph_cameras(calibration.views, calibration.scene):
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (30.0 * SCALE, 30.0 * SCALE, 64.0, 48.0)


def test_all_formats_hold_the_same_cameras(tmp_path: Path) -> None:
    """scene.json, transforms.json and the COLMAP model agree; only scene.json names the unregistered view."""
    out = tmp_path / "out"
    write_outputs(make_calibration(tmp_path, lost=1), out, None)
    scene = read_scene_json(out / "scene.json")[1]
    assert [camera.registered for camera in scene] == [True, False, True]
    assert scene[1].reason == "it fits no other view"
    kept = [camera for camera in scene if camera.registered]
    for others in (read_transforms_json(out / "transforms.json"), read_colmap(out / "colmap/sparse/0").cameras):
        assert len(others) == len(kept)
        for a, b in zip(others, kept, strict=True):
            np.testing.assert_allclose(a.T_world_camera, b.T_world_camera, atol=1e-12)
            assert (a.fx, a.cy, a.width) == (b.fx, b.cy, b.width)


def test_points_project_where_their_colour_came_from(tmp_path: Path) -> None:
    """The seed points, seen by the cameras of the COLMAP model, lie before a camera and within its photograph."""
    out = tmp_path / "out"
    write_outputs(make_calibration(tmp_path), out, None)
    model = read_colmap(out / "colmap/sparse/0")
    points, rgb = read_points_ply(out / "seed.ply")
    np.testing.assert_allclose(model.points_world, points)
    np.testing.assert_array_equal(model.rgb, rgb)
    inside = np.zeros(len(points), bool)
    for camera in model.cameras:
        local = (points - camera.T_world_camera[:3, 3]) @ camera.T_world_camera[:3, :3]
        u = camera.fx * local[:, 0] / local[:, 2] + camera.cx
        v = camera.fy * local[:, 1] / local[:, 2] + camera.cy
        inside |= (local[:, 2] > 0) & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
    assert inside.all()


def test_scene_safetensors_is_readable_by_other_programs(tmp_path: Path) -> None:
    calibration = make_calibration(tmp_path)
    write_outputs(calibration, tmp_path / "out", None)
    with safe_open(tmp_path / "out" / "scene.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["views"]) == ["0.png", "1.png", "2.png"]
        for index in range(3):
            np.testing.assert_array_equal(file.get_tensor(f"depth.{index}"), calibration.scene.depth[index].numpy())
            trust = calibration.confidence.view_confidence[index].numpy()
            np.testing.assert_array_equal(file.get_tensor(f"calibrated_confidence.{index}"), trust)
            raw = calibration.confidence.view_raw_confidence[index].numpy()
            np.testing.assert_array_equal(file.get_tensor(f"confidence.{index}"), raw)


def test_a_turned_photograph_makes_upright_copies_of_all(tmp_path: Path) -> None:
    """Readers that ignore EXIF see pixels that fit the cameras."""
    out = tmp_path / "out"
    write_outputs(make_calibration(tmp_path, orientation=6), out, None)
    for camera in read_transforms_json(out / "transforms.json"):
        with Image.open(out / camera.file) as photo:
            assert photo.size == (camera.width, camera.height)
            assert photo.getexif().get(0x0112, 1) == 1


def test_untouched_photographs_are_referred_to(tmp_path: Path) -> None:
    calibration = make_calibration(tmp_path)
    write_outputs(calibration, tmp_path / "out", None)
    files = [Path(camera.file) for camera in read_transforms_json(tmp_path / "out" / "transforms.json")]
    assert files == [view.path for view in calibration.views]
    assert not (tmp_path / "out" / "images").exists()


def test_formats_can_be_written_again_from_the_folder(tmp_path: Path) -> None:
    write_outputs(make_calibration(tmp_path), tmp_path / "run" / "calibration", None)
    calibration = load_calibration(find_calibration(tmp_path / "run"))
    written = write_formats(calibration, tmp_path / "again", ("colmap", "ply"))
    assert [path.exists() for path in written] == [True, True]
    for name in ("cameras", "images", "points3D"):
        path = Path("colmap/sparse/0") / f"{name}.bin"
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "run/calibration" / path).read_bytes()
    (count,) = struct.unpack_from("<Q", (tmp_path / "again/colmap/sparse/0/images.bin").read_bytes())
    assert count == 3


def test_a_folder_without_calibration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no scene\.safetensors"):
        find_calibration(tmp_path)


def test_a_damaged_calibration_is_refused(tmp_path: Path) -> None:
    write_outputs(make_calibration(tmp_path), tmp_path / "out", None)
    path = tmp_path / "out" / "scene.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        load_calibration(tmp_path / "out")
