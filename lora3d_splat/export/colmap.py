"""COLMAP's binary model: cameras.bin, images.bin and points3D.bin (little-endian, PINHOLE cameras).

Layout: https://colmap.github.io/format.html. COLMAP's pixels are corner-based as ours, its axes OpenCV's. Points carry
no tracks, since pointmaps are not feature matches; programs that start Gaussians from points3D.bin need none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.files import atomic_file
from lora3d_splat.geometry.transforms import invert_rigid, rigid, rotation_to_wxyz, wxyz_to_rotation

PINHOLE = 1
"""COLMAP's number of the camera model with fx, fy, cx, cy."""
_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ4d")
_IMAGE = struct.Struct("<i4d3di")
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track_length", "<u8")])


@dataclass(frozen=True)
class ColmapModel:
    """What a model holds: registered cameras and coloured points."""

    cameras: tuple[PhotographCamera, ...]
    points_world: np.ndarray
    """(N, 3) float64"""
    rgb: np.ndarray
    """(N, 3) uint8"""


def write_colmap(folder: Path, cameras: Sequence[PhotographCamera], points_world: np.ndarray, rgb: np.ndarray) -> None:
    """Write the three files into `folder`; unregistered cameras are left out, names are the views' files."""
    kept = [camera for camera in cameras if camera.registered]
    _write(folder / "cameras.bin", len(kept), b"".join(_camera_bytes(i, c) for i, c in enumerate(kept, start=1)))
    _write(folder / "images.bin", len(kept), b"".join(_image_bytes(i, c) for i, c in enumerate(kept, start=1)))
    points = np.zeros(len(points_world), _POINT)
    points["id"] = np.arange(1, len(points) + 1)
    points["xyz"] = points_world
    points["rgb"] = rgb
    _write(folder / "points3D.bin", len(points), points.tobytes())


def read_colmap(folder: Path) -> ColmapModel:
    """Read a model of PINHOLE cameras and trackless points, as `write_colmap` writes it, ordered by image id."""
    intrinsics = _read_cameras((folder / "cameras.bin").read_bytes())
    cameras = _read_images((folder / "images.bin").read_bytes(), intrinsics)
    content = (folder / "points3D.bin").read_bytes()
    points = np.frombuffer(content, _POINT, count=_COUNT.unpack_from(content)[0], offset=_COUNT.size)
    return ColmapModel(cameras, points["xyz"].copy(), points["rgb"].copy())


def _write(path: Path, count: int, body: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(_COUNT.pack(count) + body)


def _camera_bytes(identifier: int, camera: PhotographCamera) -> bytes:
    parameters = (camera.fx, camera.fy, camera.cx, camera.cy)
    return _CAMERA.pack(identifier, PINHOLE, camera.width, camera.height, *parameters)


def _image_bytes(identifier: int, camera: PhotographCamera) -> bytes:
    T_camera_world = invert_rigid(torch.from_numpy(camera.T_world_camera))
    quaternion = rotation_to_wxyz(T_camera_world[:3, :3]).tolist()
    pose = _IMAGE.pack(identifier, *quaternion, *T_camera_world[:3, 3].tolist(), identifier)
    return pose + camera.file.encode() + b"\0" + _COUNT.pack(0)


def _read_cameras(content: bytes) -> dict[int, tuple[float, ...]]:
    """(width, height, fx, fy, cx, cy) by camera id."""
    (count,) = _COUNT.unpack_from(content)
    records = (_CAMERA.unpack_from(content, _COUNT.size + index * _CAMERA.size) for index in range(count))
    found = {}
    for identifier, model, *values in records:
        if model != PINHOLE:
            raise ValueError(f"camera {identifier} has COLMAP model {model}; only PINHOLE ({PINHOLE}) is read")
        found[identifier] = tuple(values)
    return found


def _read_images(content: bytes, intrinsics: dict[int, tuple[float, ...]]) -> tuple[PhotographCamera, ...]:
    (count,) = _COUNT.unpack_from(content)
    offset, cameras = _COUNT.size, []
    for _ in range(count):
        _, *pose, camera_id = _IMAGE.unpack_from(content, offset)
        end = content.index(b"\0", offset + _IMAGE.size)
        quaternion, translation = torch.tensor(pose, dtype=torch.float64).split([4, 3])
        T_world_camera = invert_rigid(rigid(wxyz_to_rotation(quaternion), translation)).numpy()
        name = content[offset + _IMAGE.size : end].decode()
        cameras.append(PhotographCamera(name, *intrinsics[camera_id], T_world_camera))  # type: ignore[arg-type]
        observations = _COUNT.unpack_from(content, end + 1)[0]
        offset = end + 1 + _COUNT.size + observations * 24  # x, y, point id of each observation
    return tuple(cameras)
