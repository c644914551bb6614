"""Which views of a synthetic scene see the same surfaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora3d_splat.synthetic.render import SyntheticScene

STRIDE = 4
"""every fourth pixel is tested"""
TOLERANCE = 0.03
"""relative depth difference under which two views see the same surface"""


def unproject(depth: np.ndarray, focal: float, stride: int = 1) -> np.ndarray:
    """Points (h, w, 3) in the camera frame at every `stride`-th pixel centre of an (H, W) z-depth map."""
    height, width = depth.shape
    start = stride // 2
    rows, columns = np.arange(start, height, stride), np.arange(start, width, stride)
    x, y = np.meshgrid((columns + 0.5 - width / 2) / focal, (rows + 0.5 - height / 2) / focal)
    z = depth[start::stride, start::stride]
    return np.stack([x * z, y * z, z], -1)


@dataclass(frozen=True)
class Counterparts:
    """Where the pixels of one view lie in another; (h, w) arrays over every `stride`-th pixel."""

    visible: np.ndarray
    """bool: a surface that the other view sees unoccluded, and that stands still"""
    row: np.ndarray
    """int64 pixel row in the other view, clipped to the image"""
    column: np.ndarray
    """int64"""
    surface: np.ndarray
    """bool: there is a surface at all"""


def counterparts(scene: SyntheticScene, first: int, second: int, stride: int = 1) -> Counterparts:
    """Project the first view's surface into the second view and compare depths there."""
    points = unproject(scene.depth[first], scene.focal[first], stride)
    T_second_first = np.linalg.inv(scene.T_world_camera[second]) @ scene.T_world_camera[first]
    moved = points @ T_second_first[:3, :3].T + T_second_first[:3, 3]
    height, width = scene.depth.shape[1:]
    z = np.maximum(moved[..., 2], 1e-6)
    column = np.floor(scene.focal[second] * moved[..., 0] / z + width / 2).astype(int)
    row = np.floor(scene.focal[second] * moved[..., 1] / z + height / 2).astype(int)
    surface = points[..., 2] > 0
    inside = surface & (moved[..., 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    visible = inside & (np.abs(scene.depth[second][row, column] - z) < TOLERANCE * z)
    if scene.moving is not None:
        start = stride // 2
        visible &= ~scene.moving[first][start::stride, start::stride] & ~scene.moving[second][row, column]
    return Counterparts(visible, row, column, surface)


def seen_fraction(scene: SyntheticScene, first: int, second: int) -> float:
    """Share of the first view's surface pixels that the second view sees unoccluded."""
    found = counterparts(scene, first, second, STRIDE)
    return float(found.visible.sum() / max(found.surface.sum(), 1))


def covisibility(scene: SyntheticScene) -> np.ndarray:
    """(V, V) share of view i's surface that view j sees; 1 on the diagonal."""
    count = len(scene.images)
    return np.array([[1.0 if i == j else seen_fraction(scene, i, j) for j in range(count)] for i in range(count)])


def scene_pairs(scene: SyntheticScene, minimum: float = 0.15) -> list[tuple[int, int]]:
    """Unordered pairs (i < j) whose smaller mutual covisibility is at least `minimum`."""
    seen = covisibility(scene)
    mutual = np.minimum(seen, seen.T)
    return [(i, j) for i in range(len(seen)) for j in range(i + 1, len(seen)) if mutual[i, j] >= minimum]
