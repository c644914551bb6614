"""Every export is read back by its own reader; layouts are also checked byte by byte against their published form."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.colmap import read_colmap, write_colmap
from lora3d_splat.export.ply import read_points_ply, read_vertices, write_points_ply
from lora3d_splat.export.scene_json import read_scene_json, write_scene_json
from lora3d_splat.export.splat import Splat, read_splat_ply, write_splat_ply
from lora3d_splat.export.transforms_json import read_transforms_json, write_transforms_json
from lora3d_splat.geometry.transforms import se3_exp


def cameras(count: int = 3) -> tuple[PhotographCamera, ...]:
    twists = torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    poses = se3_exp(twists).numpy()
    return tuple(
        PhotographCamera(f"sub/ü {i}.jpg", 640 + i, 480, 500.5 + i, 501.25, 320.125, 239.5, poses[i])
        for i in range(count)
    )


def assert_same(found: PhotographCamera, expected: PhotographCamera, tolerance: float = 1e-12) -> None:
    assert replace(found, T_world_camera=None) == replace(expected, T_world_camera=None)
    np.testing.assert_allclose(found.T_world_camera, expected.T_world_camera, rtol=0, atol=tolerance)


def test_scene_json_round_trip_is_exact(tmp_path: Path) -> None:
    """Registered and unregistered views come back, floats bit by bit."""
    written = (*cameras(2), replace(cameras(1)[0], file="lost.jpg", registered=False, reason="no overlap"))
    write_scene_json(tmp_path / "scene.json", "compact", "Apache-2.0", written)
    network, found = read_scene_json(tmp_path / "scene.json")
    assert network == "compact"
    for a, b in zip(found, written, strict=True):
        assert_same(a, b, 0.0)


def test_scene_json_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    write_scene_json(tmp_path / "scene.json", "compact", "Apache-2.0", cameras(1))
    content = json.loads((tmp_path / "scene.json").read_text())
    assert {key: content[key] for key in ("format", "axes", "network")} == {
        "format": 1,
        "axes": "opencv",
        "network": "compact",
    }
    keys = {"file", "width", "height", "fx", "fy", "cx", "cy", "T_world_camera", "registered", "reason"}
    assert set(content["views"][0]) == keys


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "axes": "opencv", "network": "x", "views": []}', "[1]"])
def test_other_files_are_refused_as_scene_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(InputError, match=r"scene\.json"):
        read_scene_json(tmp_path / "scene.json")


def test_transforms_json_round_trip(tmp_path: Path) -> None:
    """Cameras come back in OpenCV axes; an unregistered one is not written."""
    lost = replace(cameras(1)[0], registered=False)
    images = ["images/0.jpg", "images/1.jpg", "images/2.jpg", "lost.jpg"]
    write_transforms_json(tmp_path / "transforms.json", (*cameras(), lost), images)
    found = read_transforms_json(tmp_path / "transforms.json")
    assert len(found) == 3
    for a, b, image in zip(found, cameras(), images, strict=False):
        assert_same(a, replace(b, file=image))
    assert json.loads((tmp_path / "transforms.json").read_text())["ply_file_path"] == "seed.ply"


def test_transforms_json_looks_along_minus_z(tmp_path: Path) -> None:
    """An OpenCV camera looking along world z becomes an OpenGL one whose third column points to -z; its place stays."""
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    write_transforms_json(tmp_path / "t.json", [replace(cameras(1)[0], T_world_camera=pose)], ["a.jpg"])
    matrix = np.array(json.loads((tmp_path / "t.json").read_text())["frames"][0]["transform_matrix"])
    expected = [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(matrix, expected)


def test_colmap_round_trip(tmp_path: Path) -> None:
    points, rgb = np.random.default_rng(0).normal(size=(50, 3)), np.arange(150, dtype=np.uint8).reshape(50, 3)
    write_colmap(tmp_path, (*cameras(), replace(cameras(1)[0], registered=False)), points, rgb)
    model = read_colmap(tmp_path)
    assert len(model.cameras) == 3
    for a, b in zip(model.cameras, cameras(), strict=True):
        assert_same(a, b)
    np.testing.assert_array_equal(model.points_world, points)
    np.testing.assert_array_equal(model.rgb, rgb)


def test_colmap_bytes_follow_the_published_layout(tmp_path: Path) -> None:
    """A camera at (0, 0, -2) without rotation: quaternion (1, 0, 0, 0), translation (0, 0, 2); sizes as documented."""
    pose = np.eye(4)
    pose[2, 3] = -2.0
    camera = PhotographCamera("a.jpg", 640, 480, 500.0, 501.0, 320.0, 240.0, pose)
    write_colmap(tmp_path, [camera], np.array([[1.0, 2.0, 3.0]]), np.array([[9, 8, 7]], np.uint8))
    expected = struct.pack("<QiiQQ4d", 1, 1, 1, 640, 480, 500.0, 501.0, 320.0, 240.0)
    assert (tmp_path / "cameras.bin").read_bytes() == expected
    image = (tmp_path / "images.bin").read_bytes()
    assert struct.unpack_from("<Qi4d3di", image) == (1, 1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1)
    assert image[struct.calcsize("<Qi4d3di") :] == b"a.jpg\0" + struct.pack("<Q", 0)
    point = struct.pack("<QQ3d3BdQ", 1, 1, 1.0, 2.0, 3.0, 9, 8, 7, 0.0, 0)
    assert (tmp_path / "points3D.bin").read_bytes() == point


def test_points_ply_round_trip(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    rgb = np.arange(120, dtype=np.uint8).reshape(40, 3)
    write_points_ply(tmp_path / "seed.ply", points, rgb)
    found_points, found_rgb = read_points_ply(tmp_path / "seed.ply")
    np.testing.assert_array_equal(found_points, points)
    np.testing.assert_array_equal(found_rgb, rgb)


def test_points_ply_may_be_empty(tmp_path: Path) -> None:
    write_points_ply(tmp_path / "seed.ply", np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8))
    assert read_points_ply(tmp_path / "seed.ply")[0].shape == (0, 3)


@pytest.mark.parametrize("content", [b"", b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n"])
def test_other_files_are_refused_as_ply(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ply").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ply"):
        read_vertices(tmp_path / "x.ply")


def test_a_ply_cut_short_is_refused(tmp_path: Path) -> None:
    write_points_ply(tmp_path / "x.ply", np.zeros((4, 3), np.float32), np.zeros((4, 3), np.uint8))
    (tmp_path / "x.ply").write_bytes((tmp_path / "x.ply").read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short"):
        read_vertices(tmp_path / "x.ply")


def splat(count: int, rest: int) -> Splat:
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(count, 4)).astype(np.float32)
    return Splat(
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.normal(size=(count, rest, 3)).astype(np.float32),
        rng.normal(size=count).astype(np.float32),
        rng.normal(size=(count, 3)).astype(np.float32),
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
    )


@pytest.mark.parametrize(("count", "rest"), [(0, 15), (7, 0), (7, 3), (7, 15)])
def test_splat_ply_round_trip(tmp_path: Path, count: int, rest: int) -> None:
    """Every array comes back unchanged (quaternions are unit already) for each degree of the harmonics."""
    written = splat(count, rest)
    write_splat_ply(tmp_path / "splat.ply", written)
    found = read_splat_ply(tmp_path / "splat.ply")
    for name, values in vars(written).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-6, atol=1e-7)


def test_splat_ply_columns_are_those_that_viewers_read(tmp_path: Path) -> None:
    """62 floats a Gaussian at degree 3; f_rest runs over the coefficients of red before those of green."""
    written = splat(5, 15)
    write_splat_ply(tmp_path / "splat.ply", written)
    table = read_vertices(tmp_path / "splat.ply")
    names = table.dtype.names
    assert len(names) == 62
    assert names[:9] == ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2")
    assert names[-8:] == ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
    np.testing.assert_array_equal(table["f_rest_0"], written.sh_rest[:, 0, 0])
    np.testing.assert_array_equal(table["f_rest_14"], written.sh_rest[:, 14, 0])
    np.testing.assert_array_equal(table["f_rest_15"], written.sh_rest[:, 0, 1])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "seed.ply"
    write_points_ply(path, np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8))
    before = path.read_bytes()
    with pytest.raises((ValueError, IndexError)):
        write_points_ply(path, np.zeros((2, 3), np.float32), np.zeros((1, 1), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
