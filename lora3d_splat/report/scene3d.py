"""The points and cameras of every pass, packed for the page's own canvas script (scene3d.js)."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from lora3d_splat.passes import PassPoints, pass_points
from lora3d_splat.records import Calibration, CalibrationPass
from lora3d_splat.report.pictures import PALETTE
from lora3d_splat.report.plan import display_axes

POINTS_PER_PASS = 30_000
TRUSTED = 0.7
"""Share of the points that is shown at first, the best calibrated ones."""
RANGE = 30_000
"""Coordinates are 16-bit numbers; points beyond this are far-off strays and are left out."""


def packed_scene(calibration: Calibration) -> dict[str, Any]:
    """What scene3d.js shows; display axes: x right, y up, z back; cameras and most trusted points within [-1, 1]."""
    clouds = [pass_points(each, calibration.views, POINTS_PER_PASS) for each in calibration.passes]
    placed = list(calibration.scene.registered)
    axes = display_axes(calibration.scene.T_world_camera[placed].numpy())
    centres = calibration.scene.T_world_camera[placed, :3, 3].numpy()
    last = clouds[-1]
    sure = last.points_world[last.calibrated >= np.median(last.calibrated)]
    low, high = np.percentile(sure @ axes.T, [5, 95], axis=0)
    low, high = np.minimum(low, (centres @ axes.T).min(axis=0)), np.maximum(high, (centres @ axes.T).max(axis=0))
    middle, unit = (low + high) / 2, 2 / max(float((high - low).max()), 1e-9)
    high = {
        "confidence": max(float(np.percentile(cloud.confidence, 98)) for cloud in clouds),
        "calibrated": max(float(np.percentile(cloud.calibrated, 98)) for cloud in clouds[-2:]),
        "residual": max(float(np.percentile(cloud.residual, 90)) for cloud in clouds),
    }
    return {
        "palette": PALETTE.astype(int).tolist(),
        "range": RANGE,
        "high": high,
        "threshold": float(np.clip(np.quantile(last.calibrated, 1 - TRUSTED) / max(high["calibrated"], 1e-9), 0, 1)),
        "passes": [
            {
                "name": each.name,
                **_cloud(cloud, (cloud.points_world @ axes.T - middle) * unit, high),
                "cameras": _cameras(calibration, each, axes, middle, unit),
            }
            for each, cloud in zip(calibration.passes, clouds, strict=True)
        ],
    }


def _cloud(cloud: PassPoints, places: np.ndarray, high: dict[str, float]) -> dict[str, Any]:
    """Positions with a quarter of the range for [-1, 1]; values as bytes of their range."""
    scaled = places * (RANGE / 4)
    near = np.all(np.abs(scaled) < RANGE, axis=1)
    kept = cloud.chosen(near)

    def as_bytes(name: str) -> str:
        values = getattr(kept, name) / max(high[name], 1e-9)
        return _base64((np.clip(values, 0, 1) * 255).round().astype(np.uint8))

    return {
        "count": int(near.sum()),
        "places": _base64(scaled[near].round().astype("<i2")),
        "rgb": _base64(kept.rgb),
        **{name: as_bytes(name) for name in high},
    }


def _cameras(
    calibration: Calibration, each: CalibrationPass, axes: np.ndarray, middle: np.ndarray, unit: float
) -> list[dict[str, Any]]:
    """Name, and the five corners of a frustum: centre and the four corners of the picture."""
    found = []
    for index, view in enumerate(calibration.views):
        if not each.registered[index]:
            continue
        pose, focal = each.T_world_camera[index].numpy(), float(each.focal[index])
        height, width = view.size
        cx, cy = each.principal_point[index].tolist()
        corners = np.array([[u - cx, v - cy, focal] for u, v in ((0, 0), (width, 0), (width, height), (0, height))])
        corners *= 0.1 / unit / focal
        world = np.concatenate([np.zeros((1, 3)), corners]) @ pose[:3, :3].T + pose[:3, 3]
        found.append({"file": view.file, "corners": np.round((world @ axes.T - middle) * unit, 4).tolist()})
    return found


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
