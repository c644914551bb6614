"""The dataset half of the plugin: splits, photographs, frames, and the dataparser on a calibration known to be true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nerfstudio")

from plugin_scene import FOCAL, HEIGHT, WIDTH, camera_pose, fake_self_calibration, true_calibration, write_photographs

from lora3d_splat.errors import InputError
from lora3d_splat.geometry.transforms import opencv_to_opengl
from lora3d_splat.images.load import load_views
from lora3d_splat.plugin.context import RunContext, running
from lora3d_splat.plugin.dataparser import Lora3DDataParserConfig
from lora3d_splat.plugin.normalise import LEAST_EXTENT, normalisation
from lora3d_splat.plugin.photographs import prepare_photograph
from lora3d_splat.plugin.split import split_photographs
from lora3d_splat.self_calibration import CalibrationConfig


def paths(count: int) -> list[Path]:
    return [Path(f"{index:03d}.jpg") for index in range(count)]


def parser_of(tmp_path: Path, **settings):
    config = Lora3DDataParserConfig(
        data=tmp_path / "photos", calibration=CalibrationConfig(cache=tmp_path / "cache"), **settings
    )
    return config.setup()


def test_interval_split_is_nerfstudios():
    """Every eighth photograph, the first one included, is held out."""
    from nerfstudio.data.utils.dataparsers_utils import get_train_eval_split_fraction, get_train_eval_split_interval

    names = paths(20)
    train, held = get_train_eval_split_interval(names, 8)
    split = split_photographs(names, "interval", 8, 0.9)
    assert split.train == tuple(names[i] for i in train)
    assert split.heldout == tuple(names[i] for i in held)
    train, held = get_train_eval_split_fraction(names, 0.7)
    split = split_photographs(names, "fraction", 8, 0.7)
    assert split.train == tuple(names[i] for i in train)
    assert split.heldout == tuple(names[i] for i in held)


def test_two_photographs_both_train():
    """Nothing is held out where one photograph would be left; three spare one."""
    two, three = split_photographs(paths(2), "interval", 8, 0.9), split_photographs(paths(3), "interval", 8, 0.9)
    assert (len(two.train), len(two.heldout)) == (2, 0)
    assert "none can be spared" in (two.reason or "")
    assert (len(three.train), len(three.heldout)) == (2, 1)


def test_filename_split_and_its_error():
    """Roles come from names; a name without a role is refused by name."""
    names = [Path("a_train.png"), Path("b_train.png"), Path("c_eval.png")]
    assert split_photographs(names, "filename", 8, 0.9).heldout == (names[2],)
    with pytest.raises(InputError, match=r"d\.png"):
        split_photographs([*names, Path("d.png")], "filename", 8, 0.9)
    with pytest.raises(InputError, match="eval_interval=1"):
        split_photographs(names, "interval", 1, 0.9)


def test_small_upright_photograph_is_used_as_it_is(tmp_path):
    """No copy where none is needed."""
    write_photographs(tmp_path / "photos", 1)
    view = load_views([tmp_path / "photos" / "000.png"], WIDTH, 8, minimum=1).views[0]
    prepared = prepare_photograph(view, 512, tmp_path / "cache")
    assert prepared.path == (tmp_path / "photos" / "000.png").absolute()
    assert (prepared.scale_x, prepared.scale_y) == (1.0, 1.0)
    assert not (tmp_path / "cache").exists()


def test_turned_and_large_photographs_are_copied(tmp_path):
    """An EXIF orientation is applied, a large picture reduced, and the scales carry pixels over exactly."""
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[:, 25:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; upright is 30 wide, 50 high
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    view = load_views([tmp_path / "turned.jpg"], 48, 8, minimum=1).views[0]
    whole = prepare_photograph(view, 512, tmp_path / "cache")
    assert Image.open(whole.path).size == (whole.width, whole.height) == (30, 50)
    assert np.asarray(Image.open(whole.path))[40:, :].mean() > 250
    half = prepare_photograph(view, 25, tmp_path / "cache")
    assert (half.width, half.height) == (15, 25)
    assert half.scale_x == 0.5
    stamp = half.path.stat().st_mtime_ns
    assert prepare_photograph(view, 25, tmp_path / "cache").path.stat().st_mtime_ns == stamp


def test_normalisation_round_trip_and_bounds():
    """Cameras come back from the normalised frame exactly, lie within the unit ball, and up is +z."""
    poses = torch.stack([camera_pose(index) for index in range(5)])
    frame = normalisation(poses, median_depth=2.0)
    normalised = frame.camera_to_worlds(poses)
    assert torch.allclose(frame.T_world_camera(normalised), poses, atol=1e-6)
    assert normalised[:, :, 3].norm(dim=1).max() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(normalised[:, :, 3].mean(dim=0), torch.zeros(3), atol=1e-5)
    assert torch.nn.functional.normalize(normalised[:, :, 1].mean(dim=0), dim=0)[2] > 0.999
    assert torch.allclose(frame.rotation @ frame.rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_cameras_in_one_place_do_not_blow_up():
    """Without a baseline the median depth sets the scale; upside-down cameras are no special case."""
    pose = camera_pose(0)[None].repeat(3, 1, 1)
    assert normalisation(pose, 2.0).scale == pytest.approx(1 / (2.0 * LEAST_EXTENT))
    turned = pose @ torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    assert torch.linalg.det(normalisation(turned, 2.0).rotation) == pytest.approx(1.0)


def test_dataparser_gives_true_cameras(tmp_path, monkeypatch):
    """Cameras are the true ones in the normalised frame, in pixels of the reduced photographs; calibrated once."""
    write_photographs(tmp_path / "photos", 9, 2 * WIDTH, 2 * HEIGHT)
    calls = fake_self_calibration(monkeypatch, tmp_path / "calibration")
    parser = parser_of(tmp_path, long_side=WIDTH)
    train, held = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
    assert len(calls) == 1
    assert [path.name for path in calls[0]] == [f"{i:03d}.png" for i in (1, 2, 3, 4, 5, 6, 7)]
    assert (len(train.image_filenames), len(held.image_filenames)) == (7, 2)
    assert Image.open(train.image_filenames[0]).size == (WIDTH, HEIGHT)
    assert torch.allclose(train.cameras.fx, torch.full((7, 1), FOCAL), atol=1e-3)
    assert torch.allclose(train.cameras.cx, torch.full((7, 1), WIDTH / 2), atol=1e-3)
    assert train.cameras.metadata["train_view"][:, 0].tolist() == list(range(7))
    assert held.cameras.metadata["train_view"][:, 0].tolist() == [-1, -1]
    back = train.transform_poses_to_original_space(train.cameras.camera_to_worlds, "opengl")
    expected = opencv_to_opengl(torch.stack([camera_pose(i) for i in range(1, 8)]))[:, :3].float()
    assert torch.allclose(back, expected, atol=1e-5)


def test_seed_points_project_onto_their_photographs(tmp_path, monkeypatch):
    """Seeds lie on the room's planes, with the photograph's colour, in the frame of the cameras."""
    write_photographs(tmp_path / "photos", 4)
    fake_self_calibration(monkeypatch, tmp_path / "calibration")
    outputs = parser_of(tmp_path).get_dataparser_outputs("train")
    points, rgb = outputs.metadata["points3D_xyz"], outputs.metadata["points3D_rgb"]
    rotation, translation = outputs.dataparser_transform[:, :3], outputs.dataparser_transform[:, 3]
    world = (points / outputs.dataparser_scale - translation) @ rotation
    assert world.abs().amin(dim=1).max() < 1e-4
    expected = (0.5 + 0.25 * torch.sin(6.0 * world) + 0.2 * torch.cos(9.0 * world.roll(1, dims=-1))).clamp(0, 1)
    assert (rgb.float() / 255 - expected).abs().max() < 0.01
    of_points = {"points3D_xyz", "points3D_rgb", "points3D_conf", "points3D_scale"}
    of_views = {"train_camera_to_worlds", "train_camera_tracked", "depth_priors"}
    assert set(outputs.metadata) == of_points | of_views
    assert all(len(outputs.metadata[name]) == len(points) for name in of_points)
    assert all(len(outputs.metadata[name]) == len(outputs.image_filenames) for name in of_views)


def test_recalibration_only_while_training(tmp_path, monkeypatch):
    """A stored `recalibrate` must not make every later tool calibrate again."""
    from lora3d_splat import self_calibration

    write_photographs(tmp_path / "photos", 3)
    fake_self_calibration(monkeypatch, tmp_path / "calibration")
    asked: list[bool] = []
    known = self_calibration.calibrate
    monkeypatch.setattr(
        self_calibration, "calibrate", lambda images, config: (asked.append(config.recompute), known(images, config))[1]
    )
    for training in (True, False):
        with running(RunContext("cpu", training=training)):
            parser_of(tmp_path, recalibrate=True).get_dataparser_outputs("train")
    assert asked == [True, False]


def test_without_heldout_views_the_training_views_stand_in(tmp_path, monkeypatch):
    """Two photographs: the evaluation split is the training views, and the scene says why."""
    write_photographs(tmp_path / "photos", 2)
    fake_self_calibration(monkeypatch, tmp_path / "calibration")
    parser = parser_of(tmp_path)
    assert len(parser.get_dataparser_outputs("test").image_filenames) == 2
    assert "none can be spared" in parser.scene.no_heldout


def test_given_cameras_replace_the_calibrated_ones(tmp_path, monkeypatch):
    """All photographs are calibrated together; cameras come from the file, seeds from the training views alone."""
    from dataclasses import replace

    from lora3d_splat.export.cameras import photograph_cameras
    from lora3d_splat.export.scene_json import write_scene_json

    photos = write_photographs(tmp_path / "photos", 9)
    calls = fake_self_calibration(monkeypatch, tmp_path / "calibration")
    known = true_calibration(sorted(photos.glob("*.png")), tmp_path / "known")
    cameras = [
        replace(camera, T_world_camera=camera.T_world_camera.copy(), fx=FOCAL * 1.1)
        for camera in photograph_cameras(known.views, known.scene)
    ]
    cameras[3].T_world_camera[:3, 3] += 0.1
    write_scene_json(tmp_path / "cameras.json", "true", "none", cameras)
    parser = parser_of(tmp_path, cameras=tmp_path / "cameras.json")
    train, held = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
    assert [len(call) for call in calls] == [9]
    assert [path.name for path in held.image_filenames] == ["000.png", "008.png"]
    assert torch.allclose(train.cameras.fx, torch.full((7, 1), 1.1 * FOCAL), atol=1e-3)
    back = train.transform_poses_to_original_space(train.cameras.camera_to_worlds, "opengl")
    moved = camera_pose(3)
    moved[:3, 3] += 0.1
    assert torch.allclose(back[2], opencv_to_opengl(moved)[:3].float(), atol=1e-5)
    assert list(parser.scene.calibration.scene.registered) == [False, *[True] * 7, False]
    write_scene_json(tmp_path / "others.json", "true", "none", [replace(cameras[0], file="else.png")])
    with pytest.raises(InputError, match="other photographs"):
        _ = parser_of(tmp_path, cameras=tmp_path / "others.json").scene
