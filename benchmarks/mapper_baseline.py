"""COLMAP's incremental mapper with its defaults (pycolmap), as the yardstick of `benchmarks/tracks.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap


@dataclass(frozen=True)
class MappedScene:
    """The largest model that the mapper found."""

    T_world_camera: dict[str, np.ndarray]
    """(4, 4) by image name; only the registered ones"""
    focal: float
    """pixels of the photograph, NaN where no model was found"""
    radial: float
    """the one distortion parameter of SIMPLE_RADIAL"""
    points_world: np.ndarray
    """(N, 3)"""
    rgb: np.ndarray
    """(N, 3) uint8"""
    seen_by: tuple[frozenset[str], ...]
    """names of the images that show each point"""
    seconds: float


def map_photographs(paths: Sequence[Path], seed: int = 0) -> MappedScene:
    """Features, exhaustive matches and incremental mapping of photographs that share one SIMPLE_RADIAL camera."""
    began = time.perf_counter()
    pycolmap.set_random_seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        for path in paths:
            (images / path.name).symlink_to(path.absolute())
        database = folder / "database.db"
        reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
        pycolmap.extract_features(
            database,
            images,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=pycolmap.FeatureExtractionOptions(num_threads=1),
            device=pycolmap.Device.cpu,
        )
        pycolmap.match_exhaustive(
            database, matching_options=pycolmap.FeatureMatchingOptions(num_threads=1), device=pycolmap.Device.cpu
        )
        options = pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=seed)
        models = pycolmap.incremental_mapping(database, images, folder / "models", options)
        best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
        return _result(best, time.perf_counter() - began)


def _result(model: pycolmap.Reconstruction | None, seconds: float) -> MappedScene:
    if model is None:
        return MappedScene({}, float("nan"), float("nan"), np.zeros((0, 3)), np.zeros((0, 3), np.uint8), (), seconds)
    poses = {}
    for image in model.images.values():
        if image.has_pose:
            T_camera_world = np.eye(4)
            T_camera_world[:3] = image.cam_from_world().matrix()
            poses[image.name] = np.linalg.inv(T_camera_world)
    camera = next(iter(model.cameras.values()))
    points = list(model.points3D.values())
    xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
    rgb = np.array([point.color for point in points]).reshape(-1, 3).astype(np.uint8)
    seen = tuple(frozenset(model.images[mark.image_id].name for mark in point.track.elements) for point in points)
    return MappedScene(poses, float(camera.params[0]), float(camera.params[3]), xyz, rgb, seen, seconds)
