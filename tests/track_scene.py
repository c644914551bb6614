"""Points seen by a few cameras: exact features with one descriptor per point, and the truth they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.geometry.transforms import so3_exp
from lora3d_splat.matching import Features
from lora3d_splat.records import PixelAffine, SparseScene, View

WIDTH, HEIGHT, FOCAL = 640, 480, 560.0
NETWORK = 0.1
"""Network pixels per photograph pixel."""


@dataclass(frozen=True)
class TrackScene:
    """V views of a bowl of points about the origin of the first camera's axis."""

    views: tuple[View, ...]
    T_world_camera: torch.Tensor
    points_world: np.ndarray
    features: tuple[Features, ...]
    depth: tuple[torch.Tensor, ...]
    """(H, W) true depth of the bowl at network resolution, per view"""


def make_track_scene(
    count: int, seen: list[slice] | None = None, noise: float = 0.0, radial: float = 0.0, seed: int = 0
) -> TrackScene:
    """`seen[v]` are the points that view v shows (default all 300); `noise` is in photograph pixels."""
    generator = np.random.default_rng(seed)
    points = np.c_[generator.uniform(-1.2, 1.2, (300, 2)), np.zeros(300)]
    points[:, 2] = bowl(points)
    descriptors = generator.normal(size=(300, 128)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    poses = torch.stack([pose(index, count) for index in range(count)])
    views = tuple(_view(index) for index in range(count))
    features = []
    for index in range(count):
        inside = (points - poses[index, :3, 3].numpy()) @ poses[index, :3, :3].numpy()
        slopes = inside[:, :2] / inside[:, 2:]
        slopes = slopes * (1 + radial * (slopes**2).sum(1, keepdims=True))
        pixels = FOCAL * slopes + [WIDTH / 2, HEIGHT / 2] + noise * generator.normal(size=(300, 2))
        chosen = np.arange(300)[seen[index] if seen else slice(None)]
        features.append(Features(pixels[chosen], np.full(len(chosen), 4.0), descriptors[chosen]))
    depth = tuple(_depth(poses[index]) for index in range(count))
    return TrackScene(views, poses, points, tuple(features), depth)


def bowl(points: np.ndarray) -> np.ndarray:
    """Height of the surface over the plane of the first two coordinates."""
    return 4.0 + 0.4 * np.sin(2 * points[:, 0]) + 0.5 * np.cos(1.7 * points[:, 1])


def pose(index: int, count: int) -> torch.Tensor:
    """T_world_camera on an arc about (0, 0, 4)."""
    angle = 0.45 * (index / max(count - 1, 1) - 0.5)
    turn = so3_exp(torch.tensor([0.1 * np.sin(2.0 * index), angle, 0.03 * index], dtype=torch.float64))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = turn
    target = torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)
    matrix[:3, 3] = target - turn @ torch.tensor([0.0, 0.0, 4.0 + 0.1 * index], dtype=torch.float64)
    return matrix


def trajectory_error(sparse: SparseScene, scene: TrackScene) -> float:
    """Largest miss of the placed camera centres after Sim(3), over their extent."""
    placed = torch.tensor(sparse.placed)
    found, true = sparse.T_world_camera[placed][:, :3, 3], scene.T_world_camera[placed][:, :3, 3]
    gap = (align_trajectories(found, true).apply(found) - true).norm(dim=-1).max()
    return float(gap / torch.cdist(true, true).max())


def _view(index: int) -> View:
    size = (round(HEIGHT * NETWORK), round(WIDTH * NETWORK))
    image = np.zeros((*size, 3), np.uint8)
    affine = PixelAffine(NETWORK, NETWORK, 0.0, 0.0)
    return View(f"{index}.png", Path(f"{index}.png"), WIDTH, HEIGHT, image, affine, str(index))


def _depth(T_world_camera: torch.Tensor) -> torch.Tensor:
    """z-depth of the bowl by marching to it in fixed-point steps."""
    rows, columns = torch.meshgrid(
        (torch.arange(round(HEIGHT * NETWORK)) + 0.5) / NETWORK,
        (torch.arange(round(WIDTH * NETWORK)) + 0.5) / NETWORK,
        indexing="ij",
    )
    rays = torch.stack([(columns - WIDTH / 2) / FOCAL, (rows - HEIGHT / 2) / FOCAL, torch.ones_like(rows)], -1).double()
    directions = rays @ T_world_camera[:3, :3].T
    depth = torch.full(rows.shape, 4.0, dtype=torch.float64)
    for _ in range(30):
        points = T_world_camera[:3, 3] + depth[..., None] * directions
        height = torch.from_numpy(bowl(points.reshape(-1, 3).numpy())).view(rows.shape)
        depth = depth + 0.7 * (height - points[..., 2]) / directions[..., 2]
    return depth.float()
