"""Lens distortion: its maps are inverse, straight lines become straight, exports and training tell the same camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.colmap import read_colmap_cameras, write_colmap
from lora3d_splat.export.scene_json import read_scene_json, write_scene_json
from lora3d_splat.export.transforms_json import read_transforms_json, write_transforms_json
from lora3d_splat.geometry.lens import radial_of_slopes, straight_pixels, taken_pixels
from lora3d_splat.images.load import load_view
from lora3d_splat.images.straighten import straight_view
from lora3d_splat.plugin.photographs import prepare_mask, prepare_photograph
from lora3d_splat.records import View


@pytest.fixture
def bent(tmp_path: Path) -> View:
    """A 320 x 240 photograph of a white upright line on black, bent by a lens with k1 = 0.2 at a focal of 250."""
    columns, rows = np.meshgrid(np.arange(320) + 0.5, np.arange(240) + 0.5)
    view = View("a.png", tmp_path / "a.png", 320, 240, np.zeros((8, 8, 3), np.uint8), None, "")  # type: ignore[arg-type]
    radial = radial_of_slopes(0.2, 250.0, view)
    straight = straight_pixels(torch.from_numpy(np.stack([columns, rows], -1)), view, radial)
    line = np.exp(-((straight[..., 0].numpy() - 40.5) ** 2) / 4)
    Image.fromarray((255 * line).astype(np.uint8)).convert("RGB").save(view.path)
    return replace(load_view(view.path, view.file, 320, 16), radial=radial)


def test_maps_are_inverse_and_are_opencvs(bent: View) -> None:
    places = torch.tensor([[0.0, 0.0], [320.0, 10.0], [160.0, 120.0], [77.0, 201.0]], dtype=torch.float64)
    taken = taken_pixels(places, bent, bent.radial)
    torch.testing.assert_close(straight_pixels(taken, bent, bent.radial), places, atol=1e-6, rtol=0)
    points = np.c_[(places.numpy() - [160, 120]) / 250.0, np.ones(4)]
    matrix = np.array([[250.0, 0, 160], [0, 250, 120], [0, 0, 1]])
    wanted = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array([0.2, 0, 0, 0]))[0][:, 0]
    np.testing.assert_allclose(taken.numpy(), wanted, atol=1e-9)


def test_a_bent_line_is_straight_in_the_view_and_in_the_training_picture(bent: View, tmp_path: Path) -> None:
    """In the photograph the line leaves its column by more than three pixels, in the pictures by less than one."""
    as_taken = np.asarray(Image.open(bent.path))[:, :, 0][5:-5].argmax(1)
    assert np.ptp(as_taken) > 3
    view = straight_view(replace(bent, radial=0.0), bent.radial)
    photograph = prepare_photograph(view, 320, tmp_path / "cache")
    for picture in (view.image, np.asarray(Image.open(photograph.path))):
        assert np.abs(picture[5:-5, :, 0].argmax(1) - 40).max() <= 1
    assert prepare_photograph(replace(view, radial=0.0), 320, tmp_path / "cache").path == bent.path


def test_what_the_photograph_does_not_show_is_masked(bent: View, tmp_path: Path) -> None:
    """Beyond the edges of a photograph that the lens has pulled outwards, the pinhole camera sees nothing known."""
    view = straight_view(replace(bent, radial=0.0), bent.radial)
    assert view.mask is not None
    assert view.mask[[0, 120], [0, 160]].tolist() == [False, True]
    counted = np.asarray(Image.open(prepare_mask(view, prepare_photograph(view, 320, tmp_path), tmp_path)))
    assert counted[[0, 120], [0, 160]].tolist() == [0, 255]
    assert straight_view(replace(bent, radial=0.0), -bent.radial).mask is None


def test_exports_carry_the_distortion(tmp_path: Path) -> None:
    pose = np.eye(4)
    cameras = tuple(
        PhotographCamera(f"{k}.png", 320, 240, 250.0, 251.0, 160.0, 120.0, pose, k1=value)
        for k, value in enumerate((0.0, -0.04))
    )
    write_scene_json(tmp_path / "scene.json", "compact", "", cameras)
    write_transforms_json(tmp_path / "transforms.json", cameras, ["0.png", "1.png"])
    write_colmap(tmp_path, cameras, np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    for read in (
        read_scene_json(tmp_path / "scene.json")[1],
        read_transforms_json(tmp_path / "transforms.json"),
        read_colmap_cameras(tmp_path),
    ):
        assert [camera.k1 for camera in read] == [0.0, -0.04]
        assert [(camera.fx, camera.fy) for camera in read] == [(250.0, 251.0)] * 2
