"""Camera poses of a small photo series: orbit, sidestep, forward walk or free, with roll and wandering gaze."""

from __future__ import annotations

import numpy as np

from lora3d_splat.synthetic.scenes import Stand


def look_at(eye: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """T_world_camera (4, 4), OpenCV axes, of a camera at `eye` looking at `target`; world z is up; roll in radians."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= max(np.linalg.norm(right), 1e-6)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([cos * right + sin * down, cos * down - sin * right, forward], 1)
    pose[:3, 3] = eye
    return pose


def displaced(rng: np.random.Generator, stand: Stand, kind: str, amount: float) -> np.ndarray:
    """An eye position away from the first one by about `amount` times the distance to the target."""
    arm = stand.eye - stand.target
    reach = np.linalg.norm(arm)
    if kind == "orbit":
        angle, lift = rng.uniform(-1.2, 1.2) * amount * 1.6, rng.uniform(-0.5, 0.5) * amount
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([cos * arm[0] - sin * arm[1], sin * arm[0] + cos * arm[1], arm[2] + reach * lift])
        return stand.target + turned * rng.uniform(0.85, 1.15)
    if kind == "sidestep":
        right = np.cross(arm, [0.0, 0.0, 1.0])
        return stand.eye + right * rng.uniform(-1, 1) * amount + [0, 0, reach * amount * rng.uniform(-0.2, 0.2)]
    if kind == "forward":
        return stand.eye - arm * rng.uniform(-0.3, 0.8) * amount + rng.normal(0, 0.1 * amount * reach, 3)
    return stand.eye + rng.normal(0, 0.5 * amount * reach, 3) * [1, 1, 0.6]


def draw_pose(rng: np.random.Generator, stand: Stand, kind: str, amount: float, first: bool) -> np.ndarray:
    """One pose of the series, T_world_camera (4, 4)."""
    eye = stand.eye if first else displaced(rng, stand, kind, amount)
    reach = np.linalg.norm(stand.eye - stand.target)
    wander = rng.normal(0, 1, 3) * min(stand.spread, 0.35 * reach) * rng.uniform(0.1, 0.8)
    roll = rng.normal(0, 0.05) if rng.uniform() < 0.85 else rng.uniform(-0.5, 0.5)
    return look_at(eye, stand.target + wander, roll)
