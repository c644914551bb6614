"""transforms.json: nerfstudio's format, OpenGL camera axes, intrinsics per frame in photograph pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.files import write_text
from lora3d_splat.geometry.transforms import opencv_to_opengl, opengl_to_opencv

IDENTITY = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]


def write_transforms_json(
    path: Path,
    cameras: Sequence[PhotographCamera],
    image_paths: Sequence[str],
    ply_file_path: str | None = "seed.ply",
    notice: str = "",
) -> None:
    """Write the registered cameras.

    `image_paths` names each camera's upright photograph, absolute or relative to the file; `ply_file_path` the points;
    `notice` is kept under that name, which nerfstudio ignores.
    The world frame stays that of the scene: only the camera's own axes are turned.
    """
    pairs = zip(cameras, image_paths, strict=True)
    frames = [_frame(camera, image) for camera, image in pairs if camera.registered]
    # Beside a COLMAP model nerfstudio would otherwise take its own old turn of COLMAP's world for applied.
    content: dict[str, object] = {"camera_model": "OPENCV", "applied_transform": IDENTITY, "frames": frames}
    if notice:
        content["notice"] = notice
    if ply_file_path is not None:
        content["ply_file_path"] = ply_file_path
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_transforms_json(path: Path) -> tuple[PhotographCamera, ...]:
    """The cameras of a transforms.json in OpenCV axes, intrinsics per frame or for all; `file` is the file_path."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(_camera({**content, **frame}) for frame in content["frames"])


def _frame(camera: PhotographCamera, image: str) -> dict[str, object]:
    return {
        "file_path": image,
        "w": camera.width,
        "h": camera.height,
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "k1": camera.k1,
        "transform_matrix": opencv_to_opengl(torch.from_numpy(camera.T_world_camera)).tolist(),
    }


def _camera(frame: dict[str, object]) -> PhotographCamera:
    pose = opengl_to_opencv(torch.tensor(frame["transform_matrix"], dtype=torch.float64))
    names = ("file_path", "w", "h", "fl_x", "fl_y", "cx", "cy")
    k1 = float(frame.get("k1", 0.0))  # type: ignore[arg-type]
    return PhotographCamera(*(frame[name] for name in names), pose.numpy(), k1=k1)  # type: ignore[arg-type]
