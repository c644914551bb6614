"""COLMAP's binary model: cameras.bin, images.bin and points3D.bin (little-endian).

Cameras are PINHOLE where the lens does not distort, which every reader knows, and OPENCV with its k1 where it does.
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

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.files import atomic_file
from lora3d_splat.geometry.transforms import invert_rigid, rigid, rotation_to_wxyz, wxyz_to_rotation

MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4}
PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8}
"""Camera models that are read, by number, with their parameters; of the distortion only k1."""
_CAMERA_HEAD = struct.Struct("<iiQQ")
_COUNT = struct.Struct("<Q")
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
    """Read a model with trackless points, as `write_colmap` writes it, ordered by image id."""
    intrinsics = _read_cameras((folder / "cameras.bin").read_bytes())
    cameras = _read_images((folder / "images.bin").read_bytes(), intrinsics)
    content = (folder / "points3D.bin").read_bytes()
    points = np.frombuffer(content, _POINT, count=_COUNT.unpack_from(content)[0], offset=_COUNT.size)
    return ColmapModel(cameras, points["xyz"].copy(), points["rgb"].copy())


def read_colmap_cameras(folder: Path) -> tuple[PhotographCamera, ...]:
    """The cameras of a COLMAP model, binary or text, also one that COLMAP itself made; raises InputError."""
    try:
        if (folder / "cameras.bin").is_file():
            intrinsics = _read_cameras((folder / "cameras.bin").read_bytes())
            return _read_images((folder / "images.bin").read_bytes(), intrinsics)
        return _read_text(folder)
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise InputError(
            f"{folder}, which does not read as a COLMAP model ({error})",
            f"cameras and images, .bin or .txt, of the models {', '.join(MODELS)}",
            "point to the folder that holds them, usually sparse/0",
        ) from error


def _write(path: Path, count: int, body: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(_COUNT.pack(count) + body)


def _camera_bytes(identifier: int, camera: PhotographCamera) -> bytes:
    parameters = (camera.fx, camera.fy, camera.cx, camera.cy)
    model = MODELS["OPENCV"] if camera.k1 else MODELS["PINHOLE"]
    if camera.k1:
        parameters = (*parameters, camera.k1, 0.0, 0.0, 0.0)
    head = _CAMERA_HEAD.pack(identifier, model, camera.width, camera.height)
    return head + struct.pack(f"<{len(parameters)}d", *parameters)


def _image_bytes(identifier: int, camera: PhotographCamera) -> bytes:
    T_camera_world = invert_rigid(torch.from_numpy(camera.T_world_camera))
    quaternion = rotation_to_wxyz(T_camera_world[:3, :3]).tolist()
    pose = _IMAGE.pack(identifier, *quaternion, *T_camera_world[:3, 3].tolist(), identifier)
    return pose + camera.file.encode() + b"\0" + _COUNT.pack(0)


def _read_cameras(content: bytes) -> dict[int, tuple[float, ...]]:
    """(width, height, fx, fy, cx, cy, k1) by camera id."""
    (count,) = _COUNT.unpack_from(content)
    offset, found = _COUNT.size, {}
    for _ in range(count):
        identifier, model, width, height = _CAMERA_HEAD.unpack_from(content, offset)
        if model not in PARAMETERS:
            raise ValueError(f"camera {identifier} has COLMAP model {model}; {', '.join(MODELS)} are read")
        values = struct.unpack_from(f"<{PARAMETERS[model]}d", content, offset + _CAMERA_HEAD.size)
        offset += _CAMERA_HEAD.size + 8 * PARAMETERS[model]
        found[identifier] = (width, height, *_lens(model, values))
    return found


def _lens(model: int, values: Sequence[float]) -> tuple[float, ...]:
    """fx, fy, cx, cy, k1 of a camera's parameters."""
    two = model in (MODELS["PINHOLE"], MODELS["OPENCV"])
    pinhole, rest = (values[:4], values[4:]) if two else ((values[0], *values[:3]), values[3:])
    return (*pinhole, rest[0] if rest else 0.0)


def _camera(name: str, lens: Sequence[float], T_world_camera: np.ndarray) -> PhotographCamera:
    width, height, *pinhole, k1 = lens
    return PhotographCamera(name, int(width), int(height), *pinhole, T_world_camera, k1=k1)  # type: ignore[arg-type]


def _read_text(folder: Path) -> tuple[PhotographCamera, ...]:
    intrinsics = {}
    for identifier, name, width, height, *values in _text_lines(folder / "cameras.txt"):
        numbers = [float(value) for value in values]
        intrinsics[int(identifier)] = (int(width), int(height), *_lens(MODELS[name], numbers))
    cameras = []
    for _, *pose, camera_id, name in _text_lines(folder / "images.txt", every=2):
        quaternion, translation = torch.tensor([float(value) for value in pose], dtype=torch.float64).split([4, 3])
        T_world_camera = invert_rigid(rigid(wxyz_to_rotation(quaternion), translation)).numpy()
        cameras.append(_camera(name, intrinsics[int(camera_id)], T_world_camera))
    return tuple(cameras)


def _text_lines(path: Path, every: int = 1) -> list[list[str]]:
    """Fields of every `every`-th line that is no comment; the lines of points between images may be empty."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [line.split() if every == 1 else line.split(maxsplit=9) for line in lines[::every] if line.strip()]


def _read_images(content: bytes, intrinsics: dict[int, tuple[float, ...]]) -> tuple[PhotographCamera, ...]:
    (count,) = _COUNT.unpack_from(content)
    offset, cameras = _COUNT.size, []
    for _ in range(count):
        _, *pose, camera_id = _IMAGE.unpack_from(content, offset)
        end = content.index(b"\0", offset + _IMAGE.size)
        quaternion, translation = torch.tensor(pose, dtype=torch.float64).split([4, 3])
        T_world_camera = invert_rigid(rigid(wxyz_to_rotation(quaternion), translation)).numpy()
        name = content[offset + _IMAGE.size : end].decode()
        cameras.append(_camera(name, intrinsics[camera_id], T_world_camera))
        observations = _COUNT.unpack_from(content, end + 1)[0]
        offset = end + 1 + _COUNT.size + observations * 24  # x, y, point id of each observation
    return tuple(cameras)
