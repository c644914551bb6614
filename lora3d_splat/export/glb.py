"""GLB (binary glTF 2.0): coloured points, and the cameras as frustums and as glTF cameras."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.files import atomic_file
from lora3d_splat.geometry.transforms import opencv_to_opengl, opengl_to_opencv

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
FLOAT, BYTE = 5126, 5121
POINTS, LINES = 0, 1
UPRIGHT = (1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1)
"""Column-major turn of a world with y down, as cameras have it, to glTF's y up. It is a node's matrix, so that the
coordinates in the file stay those of the scene."""
EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


@dataclass(frozen=True)
class GlbScene:
    """What a file holds, in the scene's world frame."""

    points_world: np.ndarray
    """(N, 3) float32"""
    rgb: np.ndarray
    """(N, 3) uint8"""
    names: tuple[str, ...]
    """of the cameras' photographs"""
    T_world_camera: np.ndarray
    """(V, 4, 4) OpenCV axes"""


def write_glb(
    path: Path, points_world: np.ndarray, rgb: np.ndarray, cameras: Sequence[PhotographCamera], notice: str = ""
) -> None:
    """Write points (N, 3) with colours (N, 3) uint8 and the registered cameras; `notice` goes into the file's asset."""
    kept = [camera for camera in cameras if camera.registered]
    size = 0.1 * float(np.median(np.ptp(points_world, axis=0))) if len(points_world) else 1.0
    rgba = np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], axis=1)
    lines = np.concatenate([_frustum(camera, size) for camera in kept]) if kept else np.zeros((0, 3))
    arrays = [points_world.astype("<f4"), rgba, lines.astype("<f4")]
    views, accessors, blob = [], [], b""
    for array in arrays:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes})
        accessors.append(_accessor(len(views) - 1, array))
        blob += array.tobytes()
    meshes = [{"name": "points", "primitives": [{"mode": POINTS, "attributes": {"POSITION": 0, "COLOR_0": 1}}]}]
    nodes: list[dict[str, Any]] = [{"name": "points", "mesh": 0}]
    if kept:
        meshes.append({"name": "cameras", "primitives": [{"mode": LINES, "attributes": {"POSITION": 2}}]})
        nodes.append({"name": "cameras", "mesh": 1})
    for index, camera in enumerate(kept):
        pose = opencv_to_opengl(torch.from_numpy(camera.T_world_camera)).numpy()
        nodes.append({"name": camera.file, "camera": index, "matrix": pose.T.flatten().tolist()})
    document = {
        "asset": {"version": "2.0", "generator": "lora3d-splat", **({"copyright": notice} if notice else {})},
        "scene": 0,
        "scenes": [{"nodes": [len(nodes)]}],
        "nodes": [*nodes, {"name": "world", "matrix": list(UPRIGHT), "children": list(range(len(nodes)))}],
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    if kept:
        document["cameras"] = [_perspective(camera) for camera in kept]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    chunks = struct.pack("<II", len(text), JSON_CHUNK) + text + struct.pack("<II", len(blob), BINARY_CHUNK) + blob
    with atomic_file(path) as temporary:
        temporary.write_bytes(struct.pack("<III", MAGIC, 2, 12 + len(chunks)) + chunks)


def read_glb(path: Path) -> GlbScene:
    """Read a file of `write_glb` back."""
    content = path.read_bytes()
    magic, version, length = struct.unpack_from("<III", content)
    if magic != MAGIC or version != 2 or length != len(content):
        raise InputError(f"{path}, which is no whole GLB file", "a GLB of this program", "export the file again")
    (text_length,) = struct.unpack_from("<I", content, 12)
    document = json.loads(content[20 : 20 + text_length])
    blob = content[28 + text_length :]
    count = document["accessors"][0]["count"]
    offset = document["bufferViews"][1]["byteOffset"]
    cameras = [node for node in document["nodes"] if "camera" in node]
    poses = np.array([node["matrix"] for node in cameras], np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)
    return GlbScene(
        np.frombuffer(blob, "<f4", 3 * count).reshape(count, 3),
        np.frombuffer(blob, np.uint8, 4 * count, offset).reshape(count, 4)[:, :3],
        tuple(node["name"] for node in cameras),
        opengl_to_opencv(torch.from_numpy(poses.copy())).numpy(),
    )


def _accessor(view: int, array: np.ndarray) -> dict[str, Any]:
    accessor: dict[str, Any] = {"bufferView": view, "count": len(array), "type": f"VEC{array.shape[1]}"}
    if array.dtype == np.uint8:
        return {**accessor, "componentType": BYTE, "normalized": True}
    bounds = {"min": array.min(0).tolist(), "max": array.max(0).tolist()} if len(array) else {}
    return {**accessor, "componentType": FLOAT, **bounds}


def _perspective(camera: PhotographCamera) -> dict[str, Any]:
    return {
        "type": "perspective",
        "name": camera.file,
        "perspective": {
            "yfov": float(2 * np.arctan(0.5 * camera.height / camera.fy)),
            "aspectRatio": camera.width / camera.height,
            "znear": 0.01,
        },
    }


def _frustum(camera: PhotographCamera, size: float) -> np.ndarray:
    """(16, 3) ends of the edges of a pyramid of this height, in the world."""
    corners = [(0, 0), (camera.width, 0), (camera.width, camera.height), (0, camera.height)]
    rays = [((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0) for u, v in corners]
    local = size * np.array([(0.0, 0.0, 0.0), *rays])
    world = local @ camera.T_world_camera[:3, :3].T + camera.T_world_camera[:3, 3]
    return world[np.array(EDGES).flatten()]
