"""Cameras for other programs: one per view, in pixels of the original, upright photograph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora3d_splat.geometry.cameras import network_to_photograph_intrinsics
from lora3d_splat.geometry.lens import slopes_of_radial
from lora3d_splat.records import AlignedScene, RegisteredViews, View


@dataclass(frozen=True)
class PhotographCamera:
    """The camera of one photograph; OpenCV axes, corner-based pixels (first pixel's centre at 0.5)."""

    file: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    T_world_camera: np.ndarray
    """(4, 4) float64"""
    registered: bool = True
    reason: str | None = None
    """why the view was left out"""
    k1: float = 0.0
    """radial distortion of slopes as in OpenCV and COLMAP: u = fx x (1 + k1 (x^2 + y^2)) + cx"""


def photograph_cameras(views: tuple[View, ...], placed: AlignedScene | RegisteredViews) -> tuple[PhotographCamera, ...]:
    """The cameras of an aligned scene or of registered held-out views, intrinsics carried back to the photographs."""
    return tuple(_photograph_camera(view, placed, index) for index, view in enumerate(views))


def _photograph_camera(view: View, placed: AlignedScene | RegisteredViews, index: int) -> PhotographCamera:
    focal = float(placed.focal[index])
    cx, cy = (float(value) for value in placed.principal_point[index])
    fx, fy, cx, cy = network_to_photograph_intrinsics(focal, cx, cy, view.affine)
    return PhotographCamera(
        view.file,
        view.width,
        view.height,
        float(fx),
        float(fy),
        float(cx),
        float(cy),
        placed.T_world_camera[index].detach().double().cpu().numpy(),
        placed.registered[index],
        placed.reasons[index],
        slopes_of_radial(view.radial, float(fx), view),
    )
