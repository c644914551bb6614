"""Exact pair predictions of a scene known in closed form, with optional noise and confident gross outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.geometry.cameras import photograph_to_network_focal, principal_point_of
from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import invert_rigid, rigid, rotation_angle_deg, so3_exp, transform_points
from lora3d_splat.records import AlignedScene, ImagePair, PairPrediction, PixelAffine, View

FOCAL = 700.0
"""Photograph pixels."""


@dataclass(frozen=True)
class AnalyticScene:
    """Views with their true cameras and z-depths; the world unit is arbitrary."""

    views: tuple[View, ...]
    T_world_camera: Tensor
    focal: Tensor
    depth: tuple[Tensor, ...]


def make_scene(
    count: int, size: tuple[int, int] = (48, 64), portrait: tuple[int, ...] = (), seed: int = 0
) -> AnalyticScene:
    """Cameras on an arc around smooth random depths; `portrait` views have the two sides swapped."""
    generator = torch.Generator().manual_seed(seed)
    views = tuple(_view(index, size[::-1] if index in portrait else size) for index in range(count))
    poses = torch.stack([_pose(index / max(count - 1, 1), generator) for index in range(count)])
    focal = torch.tensor([photograph_to_network_focal(FOCAL, view.affine) for view in views], dtype=torch.float64)
    return AnalyticScene(views, poses, focal, tuple(_depth(view.size, generator) for view in views))


def predict(
    scene: AnalyticScene,
    pairs: list[ImagePair] | None = None,
    outliers: float = 0.0,
    noise: float = 0.0,
    confidence: float = math.exp(3.0),
    seed: int = 1,
    one_sided: bool = False,
) -> tuple[PairPrediction, ...]:
    """Predictions of ordered pairs (default all), each in its own unit; outliers are displaced by about the depth.

    `one_sided` outliers all go the same way in the pair's frame, as the points of one moving thing do.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(scene.views)
    pairs = pairs or [ImagePair(i, j) for i in range(count) for j in range(count) if i != j]
    return tuple(_prediction(scene, pair, outliers, noise, confidence, generator, one_sided) for pair in pairs)


def errors(scene: AnalyticScene, estimate: AlignedScene, members: list[int] | None = None) -> dict[str, float]:
    """Centre RMSE after Sim(3) over the camera extent, largest relative rotation in degrees, focal and depth errors."""
    members = members if members is not None else list(range(len(scene.views)))
    true, found = scene.T_world_camera[members], estimate.T_world_camera[members]
    fit = align_trajectories(found[:, :3, 3], true[:, :3, 3])
    gap = fit.apply(found[:, :3, 3]) - true[:, :3, 3]
    extent = (true[:, :3, 3] - true[:, :3, 3].mean(0)).norm(dim=-1).max()
    relative_found = found[0, :3, :3].T @ found[:, :3, :3]
    relative_true = true[0, :3, :3].T @ true[:, :3, :3]
    depth = torch.cat([(fit.scale * estimate.depth[k] / scene.depth[k] - 1).abs().flatten() for k in members])
    return {
        "centre": float(gap.norm(dim=-1).square().mean().sqrt() / extent),
        "rotation": float(rotation_angle_deg(relative_found, relative_true).max()),
        "focal": float((estimate.focal[members] / scene.focal[members] - 1).abs().max()),
        "depth": float(depth.median()),
    }


def _view(index: int, size: tuple[int, int]) -> View:
    height, width = size
    long_side = 1000
    scale = max(height, width) / long_side
    photo = (round(width / scale), round(height / scale))
    image = np.zeros((height, width, 3), np.uint8)
    return View(f"{index:03d}.jpg", Path(f"{index:03d}.jpg"), *photo, image, PixelAffine(scale, scale, 0.0, 0.0), "")


def _pose(fraction: float, generator: torch.Generator) -> Tensor:
    wobble = 0.05 * torch.randn(3, generator=generator, dtype=torch.float64)
    rotation = so3_exp(torch.tensor([0.0, 0.9 * (fraction - 0.5), 0.0], dtype=torch.float64) + wobble)
    centre = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64) - 3.0 * rotation[:, 2]
    return rigid(rotation, centre + 0.1 * torch.randn(3, generator=generator, dtype=torch.float64))


def _depth(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 1, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0, 0]
    return 2.0 + 2.0 * smooth


def _prediction(
    scene: AnalyticScene,
    pair: ImagePair,
    outliers: float,
    noise: float,
    confidence: float,
    generator: torch.Generator,
    one_sided: bool,
) -> PairPrediction:
    unit = 0.3 + float(torch.rand((), generator=generator))
    sides = []
    for view in (pair.reference, pair.other):
        centre = torch.tensor(principal_point_of(scene.views[view]), dtype=torch.float64)
        points = unproject(scene.depth[view].double(), scene.focal[view], centre)
        T_reference_view = invert_rigid(scene.T_world_camera[pair.reference]) @ scene.T_world_camera[view]
        points = transform_points(T_reference_view, points.flatten(0, 1)).view_as(points)
        points = points * (1 + noise * torch.randn(*points.shape[:2], 1, generator=generator))
        wrong = torch.rand(*points.shape[:2], 1, generator=generator) < outliers
        displacement = 2.0 * torch.randn(points.shape, generator=generator)
        points = torch.where(wrong, points + (displacement.abs() if one_sided else displacement), points)
        sides += [(unit * points).float(), torch.full(points.shape[:2], confidence)]
    return PairPrediction(pair, *sides)
