"""scene.json: the cameras for other programs, in OpenCV axes and pixels of the original, upright photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.files import write_text

FORMAT = 1
_CAMERA_FIELDS = tuple(field.name for field in fields(PhotographCamera))
_WHERE_NOT_ZERO = ("k1",)
"""Those that are left out where they are zero."""


def write_scene_json(path: Path, network: str, licence: str, cameras: Sequence[PhotographCamera]) -> None:
    """Write every view, the unregistered ones with their reason; `licence` is that of the network's weights."""
    views = [_view(camera) for camera in cameras]
    content = {"format": FORMAT, "axes": "opencv", "network": network, "licence": licence, "views": views}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_scene_json(path: Path) -> tuple[str, tuple[PhotographCamera, ...]]:
    """The network's name and the cameras; raises InputError where the file is no scene.json of a known format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["axes"] != "opencv":
            raise ValueError(f"format {content['format']}, axes {content['axes']}")
        return content["network"], tuple(_camera(view) for view in content["views"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            found=f"{path}, which does not read as a scene ({error})",
            accepted=f"a scene.json of format {FORMAT} with OpenCV axes",
            remedy="point to the scene.json that `ns-lora3d calibrate` wrote, or calibrate again",
        ) from error


def _view(camera: PhotographCamera) -> dict[str, object]:
    values = {name: _plain(getattr(camera, name)) for name in _CAMERA_FIELDS}
    return {name: value for name, value in values.items() if value or name not in _WHERE_NOT_ZERO}


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _camera(view: dict[str, object]) -> PhotographCamera:
    values = {name: view[name] for name in _CAMERA_FIELDS if name in view or name not in _WHERE_NOT_ZERO}
    return PhotographCamera(**{**values, "T_world_camera": np.array(view["T_world_camera"], dtype=np.float64)})
