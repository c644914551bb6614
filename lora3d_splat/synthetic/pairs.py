"""Which views of a synthetic scene see the same surfaces."""

from __future__ import annotations

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


def seen_fraction(scene: SyntheticScene, first: int, second: int) -> float:
    """Share of the first view's surface pixels that the second view sees unoccluded."""
    points = unproject(scene.depth[first], scene.focal[first], STRIDE).reshape(-1, 3)
    points = points[points[:, 2] > 0]
    T_second_first = np.linalg.inv(scene.T_world_camera[second]) @ scene.T_world_camera[first]
    moved = points @ T_second_first[:3, :3].T + T_second_first[:3, 3]
    height, width = scene.depth.shape[1:]
    z = np.maximum(moved[:, 2], 1e-6)
    u = np.floor(scene.focal[second] * moved[:, 0] / z + width / 2).astype(int)
    v = np.floor(scene.focal[second] * moved[:, 1] / z + height / 2).astype(int)
    inside = (moved[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    found = scene.depth[second][np.clip(v, 0, height - 1), np.clip(u, 0, width - 1)]
    return float((inside & (np.abs(found - z) < TOLERANCE * z)).sum() / max(len(points), 1))


def covisibility(scene: SyntheticScene) -> np.ndarray:
    """(V, V) share of view i's surface that view j sees; 1 on the diagonal."""
    count = len(scene.images)
    return np.array([[1.0 if i == j else seen_fraction(scene, i, j) for j in range(count)] for i in range(count)])


def scene_pairs(scene: SyntheticScene, minimum: float = 0.15) -> list[tuple[int, int]]:
    """Unordered pairs (i < j) whose smaller mutual covisibility is at least `minimum`."""
    seen = covisibility(scene)
    mutual = np.minimum(seen, seen.T)
    return [(i, j) for i in range(len(seen)) for j in range(i + 1, len(seen)) if mutual[i, j] >= minimum]
