"""`ns-lora3d export` of a run: optimised cameras and trained Gaussians, opened by other programs' readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_example import make_calibration
from test_export_splats import random_splat

from lora3d_splat.calibration_files import save_calibration
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera, photograph_cameras
from lora3d_splat.export.colmap import read_colmap
from lora3d_splat.export.glb import read_glb
from lora3d_splat.export.scene_json import read_scene_json, write_scene_json
from lora3d_splat.export.splat import read_splat_ply, write_splat_ply
from lora3d_splat.export.transforms_json import read_transforms_json
from lora3d_splat.export.video import VideoConfig
from lora3d_splat.run_export import WRITERS, export_source

SHORT = VideoConfig(0.25, 8, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a finished run: three views whose cameras moved, a held-out one, and some Gaussians."""
    folder = tmp_path_factory.mktemp("run")
    calibration = make_calibration(folder)
    save_calibration(calibration, folder / "calibration")
    write_splat_ply(folder / "splat.ply", random_splat(60))
    cameras = [moved(camera) for camera in photograph_cameras(calibration.views, calibration.scene)]
    heldout = replace(cameras[0], file="held.png")
    write_scene_json(folder / "cameras.json", "true", "none", [*cameras, heldout])
    return folder


def moved(camera: PhotographCamera) -> PhotographCamera:
    """As if optimised: elsewhere, and with another focal length."""
    pose = camera.T_world_camera.copy()
    pose[:3, 3] += (0.1, -0.2, 0.3)
    return replace(camera, T_world_camera=pose, fx=camera.fx * 1.01, fy=camera.fy * 1.01)


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Every format of it."""
    export_source(run, run / "export", tuple(WRITERS), SHORT)
    return run / "export"


def test_every_format_holds_the_optimised_cameras(run: Path, exported: Path) -> None:
    """cameras.json with the held-out view; COLMAP, transforms.json and GLB with the training views, all moved."""
    wanted = read_scene_json(run / "cameras.json")[1]
    assert [camera.file for camera in read_scene_json(exported / "cameras.json")[1]] == [c.file for c in wanted]
    colmap = read_colmap(exported / "colmap/sparse/0")
    for cameras in (colmap.cameras, read_transforms_json(exported / "transforms.json")):
        assert len(cameras) == 3
        for got, camera in zip(cameras, wanted, strict=False):
            np.testing.assert_allclose(got.T_world_camera, camera.T_world_camera, atol=1e-9)
            assert (got.fx, got.width) == (camera.fx, camera.width)
    splat = read_splat_ply(run / "splat.ply")
    for points in (colmap.points_world, read_glb(exported / "scene.glb").points_world):
        np.testing.assert_allclose(points, splat.means)
    again = read_splat_ply(exported / "splat.ply")
    np.testing.assert_array_equal(again.sh_rest, splat.sh_rest)
    names = {path.name for path in exported.iterdir()}
    assert {"scene.splat", "scene.spz", "inputs.mp4", "orbit.mp4", "seed.ply", "NOTICE.txt"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_pycolmap_reads_the_model(run: Path, exported: Path) -> None:
    """Poses, intrinsics, names and points as exported."""
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(exported / "colmap/sparse/0"))
    wanted = {camera.file: camera for camera in read_scene_json(run / "cameras.json")[1]}
    assert model.num_points3D() == 60
    assert model.num_images() == 3
    for image in model.images.values():
        camera = wanted[image.name]
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        np.testing.assert_allclose(np.vstack([pose.inverse().matrix(), [0, 0, 0, 1]]), camera.T_world_camera, atol=1e-9)
        np.testing.assert_allclose(
            model.cameras[image.camera_id].params, [camera.fx, camera.fy, camera.cx, camera.cy], rtol=1e-12
        )
    points = np.stack([point.xyz for _, point in sorted(model.points3D.items())])
    np.testing.assert_allclose(points, read_splat_ply(run / "splat.ply").means)


def test_cameras_json_is_plain_json(run: Path, exported: Path) -> None:
    """Read with nothing of ours: the held-out camera included, poses as 4 x 4 matrices, pixels of the photographs."""
    document = json.loads((exported / "cameras.json").read_text())
    wanted = read_scene_json(run / "cameras.json")[1]
    assert (document["format"], document["axes"]) == (1, "opencv")
    assert [view["file"] for view in document["views"]] == [camera.file for camera in wanted]
    for view, camera in zip(document["views"], wanted, strict=True):
        np.testing.assert_array_equal(view["T_world_camera"], camera.T_world_camera)
        assert [view[name] for name in ("fx", "fy", "cx", "cy", "width", "height")] == [
            camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height,
        ]  # fmt: skip


def test_nerfstudio_reads_the_transforms(run: Path, exported: Path) -> None:
    """nerfstudio's own dataparser finds the cameras, up to the similarity that it says it applies to every scene."""
    parsers = pytest.importorskip("nerfstudio.data.dataparsers.nerfstudio_dataparser")
    config = parsers.NerfstudioDataParserConfig(data=exported, load_3D_points=False, eval_mode="all")
    outputs = config.setup().get_dataparser_outputs("train")
    transform = np.vstack([outputs.dataparser_transform.numpy(), [0, 0, 0, 1]])
    wanted = {camera.file: camera for camera in read_scene_json(run / "cameras.json")[1]}
    assert len(outputs.image_filenames) == 3
    for index, name in enumerate(outputs.image_filenames):
        camera = wanted[name.name]
        pose = transform @ camera.T_world_camera @ np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] *= outputs.dataparser_scale
        np.testing.assert_allclose(outputs.cameras[index].camera_to_worlds.numpy(), pose[:3], atol=1e-5)
        assert float(outputs.cameras.fx[index]) == pytest.approx(camera.fx)


def test_others_read_the_splat(run: Path, exported: Path) -> None:
    """splat.ply as two other programs see it: every Gaussian in its place, with its opacity and its size."""
    plyfile, gsply = pytest.importorskip("plyfile"), pytest.importorskip("gsply")
    splat = read_splat_ply(run / "splat.ply")
    vertices = plyfile.PlyData.read(str(exported / "splat.ply"))["vertex"]
    assert vertices.count == 60
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], 1), splat.means)
    other = gsply.plyread(str(exported / "splat.ply"))
    np.testing.assert_array_equal(other.means, splat.means)
    np.testing.assert_array_equal(other.opacities, np.asarray(vertices["opacity"]))
    np.testing.assert_array_equal(other.scales, np.stack([vertices[f"scale_{k}"] for k in range(3)], 1))


def test_a_run_without_its_end_gives_its_calibration(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The cameras as calibrated, with a warning; formats of Gaussians are refused with a sentence."""
    save_calibration(make_calibration(tmp_path), tmp_path / "run" / "calibration")
    export_source(tmp_path / "run", tmp_path / "out", ("cameras",))
    assert "not reached its end" in capsys.readouterr().out
    assert (tmp_path / "out" / "scene.json").is_file()
    with pytest.raises(InputError, match="train first"):
        export_source(tmp_path / "run", tmp_path / "out", ("spz",))
