"""What the browser shows of a calibration, in terms that viser 0.2 (pinned by nerfstudio 1.1) and viser 1.x share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lora3d_splat.geometry.transforms import rotation_to_wxyz
from lora3d_splat.passes import PassPoints
from lora3d_splat.records import ImagePair
from lora3d_splat.report.pictures import false_colours

Colour = tuple[int, int, int]
BEFORE, AFTER, NOW, HELD_OUT = (150, 158, 168), (79, 201, 164), (240, 153, 75), (228, 100, 205)
"""Colours of camera frusta: plain alignment, the shown pass, as optimised now, held-out."""
FRUSTUM_SIDE = 120
"""Long side of the photograph in a frustum, pixels."""


@dataclass(frozen=True)
class Frame:
    """The map from the calibration's world to the browser's: p -> scale * (rotation @ p + translation)."""

    rotation: np.ndarray
    """(3, 3)"""
    translation: np.ndarray
    """(3,)"""
    scale: float

    def points(self, points_world: np.ndarray) -> np.ndarray:
        """(N, 3) float32"""
        return (self.scale * (points_world @ self.rotation.T + self.translation)).astype(np.float32)

    def pose(self, T_world_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quaternion wxyz (4,) and position (3,) of an OpenCV camera (4, 4), which are the browser's axes too."""
        rotation = torch.from_numpy(self.rotation @ T_world_camera[:3, :3])
        return rotation_to_wxyz(rotation).numpy(), self.points(T_world_camera[None, :3, 3])[0].astype(np.float64)


@dataclass(frozen=True)
class Frustum:
    """One camera to draw."""

    name: str
    T_world_camera: np.ndarray
    """(4, 4)"""
    width: int
    height: int
    focal: float
    """in the pixels of width and height"""
    image: np.ndarray | None = None
    """(H, W, 3) uint8"""


def add_points(scene: Any, name: str, frame: Frame, points_world: np.ndarray, rgb: np.ndarray, size: float) -> Any:
    """Draw or replace a cloud (N, 3) with colours (N, 3) uint8; `size` in browser units."""
    return scene.add_point_cloud(
        name, points=frame.points(points_world), colors=rgb, point_size=size, point_shape="circle"
    )


def add_frustum(scene: Any, name: str, frame: Frame, each: Frustum, colour: Colour, size: float) -> Any:
    """Draw a camera; a click on it takes the visitor's view there."""
    wxyz, position = frame.pose(each.T_world_camera)
    handle = scene.add_camera_frustum(
        name,
        fov=float(2 * np.arctan(each.height / 2 / each.focal)),
        aspect=each.width / each.height,
        scale=size,
        color=colour,
        image=None if each.image is None else thumbnail(each.image),
        wxyz=wxyz,
        position=position,
    )
    handle.on_click(take_pose)
    return handle


def take_pose(event: Any) -> None:
    """Move the camera of the visitor who clicked to the thing that was clicked."""
    with event.client.atomic():
        event.client.camera.position = event.target.position
        event.client.camera.wxyz = event.target.wxyz


def add_graph(
    scene: Any, name: str, frame: Frame, centres_world: np.ndarray, pairs: Sequence[ImagePair], residual: np.ndarray
) -> Any:
    """Draw the pairs as thin bars between the cameras (V, 3), dark for the best pair and bright for the worst.

    Of the two ordered pairs of the same views the worse one is drawn. `residual` (P,) as fractions of the depth.
    """
    import trimesh
    from trimesh.visual import ColorVisuals

    worst: dict[tuple[int, int], float] = {}
    for pair, value in zip(pairs, residual.tolist(), strict=True):
        ends = (min(pair.reference, pair.other), max(pair.reference, pair.other))
        worst[ends] = max(worst.get(ends, 0.0), value)
    centres = frame.points(centres_world)
    spread = float(np.linalg.norm(centres.max(axis=0) - centres.min(axis=0)))
    low, high = min(worst.values(), default=0.0), max(worst.values(), default=0.0)
    bars = []
    for (a, b), value in worst.items():
        if np.linalg.norm(centres[a] - centres[b]) < 1e-6:
            continue
        bar = trimesh.creation.cylinder(0.0012 * spread, segment=[centres[a], centres[b]], sections=5)
        colour = [*confidence_colours(np.array([value - low]), high - low)[0], 255]
        bar.visual = ColorVisuals(bar, vertex_colors=np.tile(colour, (len(bar.vertices), 1)))
        bars.append(bar)
    return scene.add_mesh_trimesh(name, trimesh.util.concatenate(bars)) if bars else None


def colours(points: PassPoints, by: str, high: float) -> np.ndarray:
    """(N, 3) uint8: the photographs' colours (`rgb`), or false colours of a value from 0 to `high`."""
    return points.rgb if by == "rgb" else confidence_colours(getattr(points, by), high)


def confidence_colours(values: np.ndarray, high: float) -> np.ndarray:
    """(N, 3) uint8 false colours of values (N,) from 0 to `high`."""
    return false_colours(values[:, None], 0.0, high)[:, 0]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 thinned to what fits a frustum."""
    step = max(1, round(max(image.shape[:2]) / FRUSTUM_SIDE))
    return np.ascontiguousarray(image[::step, ::step])
