"""Seed points: what Gaussians start from, one for each trusted pixel that no better view shows already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.gaussians.covisibility import SeedView, novel_pixels
from lora3d_splat.gaussians.spacing import neighbour_distance
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import transform_points
from lora3d_splat.records import Calibration


@dataclass(frozen=True)
class SeedConfig:
    """Which aligned pixels become Gaussians, and how large these start."""

    keep: float = 0.95
    """Share of the pixels that is trusted, best calibrated confidence first. There is no densification that could fill
    a hole later, so this is wider than for pseudo labels."""
    covisibility_tolerance: float = 0.02
    """A pixel is dropped where a better view's point projects onto it at this relative depth difference or less;
    0 keeps every trusted pixel."""
    far: float = 20.0
    """A pixel farther away than so many median depths is left out: sky, whose depth means nothing."""
    max_points: int | None = None
    """Most Gaussians to start from; None means 300,000 on CUDA and 120,000 elsewhere. Beyond it points are drawn at
    random, the chance proportional to their confidence, and the rest grow to close the gaps."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        _check(0.0 < self.keep <= 1.0, f"keep={self.keep}", "a share in (0, 1]", "start from 0.95")
        _check(
            0.0 <= self.covisibility_tolerance < 1.0,
            f"covisibility_tolerance={self.covisibility_tolerance}",
            "a relative depth difference in [0, 1)",
            "use 0.01 to 0.03, or 0 to switch the pruning off",
        )
        _check(self.far > 1.0, f"far={self.far}", "a number of median depths above 1", "use 10 to 100")
        _check(
            self.max_points is None or self.max_points >= 1,
            f"max_points={self.max_points}",
            "a positive count, or None for the device's default",
            "leave it out to let the device decide",
        )


@dataclass(frozen=True)
class SeedPoints:
    """Points in the calibration's world frame, scene units; all finite."""

    points_world: Tensor
    """(N, 3) float32"""
    rgb: Tensor
    """(N, 3) uint8"""
    scale: Tensor
    """(N,) float32 standard deviation of an isotropic Gaussian, scene units"""
    confidence: Tensor
    """(N,) float32 calibrated log-confidence"""
    candidates: int
    """trusted pixels before pruning and drawing"""


def seed_points(calibration: Calibration, config: SeedConfig, device_type: str = "cpu") -> SeedPoints:
    """One point per trusted pixel, pruned by co-visibility (InstantSplat, section 3.2 of its paper) and capped."""
    views = _seed_views(calibration, config)
    candidates = sum(int(view.mask.sum()) for view in views)
    masks = novel_pixels(views, config.covisibility_tolerance)
    points = torch.cat([view.points_world[mask] for view, mask in zip(views, masks, strict=True)])
    rgb = torch.cat([view.rgb[mask] for view, mask in zip(views, masks, strict=True)])
    footprint = torch.cat([view.footprint[mask] for view, mask in zip(views, masks, strict=True)])
    confidence = torch.cat([view.confidence[mask] for view, mask in zip(views, masks, strict=True)])
    chosen, growth = draw(confidence, config.max_points or default_max_points(device_type), config.seed)
    points, rgb, footprint, confidence = points[chosen], rgb[chosen], footprint[chosen] * growth, confidence[chosen]
    # Neighbours tell the spacing on slanted surfaces; the footprint keeps lone points from becoming balloons.
    scale = neighbour_distance(points).clamp(min=0.5 * footprint, max=2.0 * footprint)
    return SeedPoints(points, rgb, scale, confidence, candidates)


def default_max_points(device_type: str) -> int:
    """How many Gaussians a device optimises in reasonable time."""
    return 300_000 if device_type == "cuda" else 120_000


def rank_threshold(calibration: Calibration, keep: float) -> float:
    """The calibrated confidence that the share `keep` of the registered views' pixels reaches."""
    maps = zip(calibration.confidence.view_confidence, calibration.scene.registered, strict=True)
    values = [confidence.flatten().float().cpu() for confidence, registered in maps if registered]
    if not values or keep == 1.0:
        return -1.0
    ranked = torch.cat(values).nan_to_num(nan=0.0)
    return float(ranked.kthvalue(max(1, round((1 - keep) * len(ranked)))).values)


def median_depth(calibration: Calibration) -> float:
    """Of all pixels of registered views that have a depth; infinite where none has."""
    scene = calibration.scene
    depths = [depth[depth > 0].float().cpu() for depth, use in zip(scene.depth, scene.registered, strict=True) if use]
    return float(torch.cat(depths).median()) if sum(map(len, depths)) else float("inf")


def draw(confidence: Tensor, count: int, seed: int) -> tuple[Tensor, float]:
    """Indices of at most `count` points, chance proportional to confidence, without repeats; and how spacing grows.

    The draw ranks log(u) / confidence (Efraimidis and Spirakis 2006).
    """
    total = len(confidence)
    if total <= count:
        return torch.arange(total), 1.0
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(total, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    keys = uniform.log() / confidence.double().clamp_min(1e-3)
    return keys.topk(count).indices.sort().values, float((total / count) ** 0.5)


def _seed_views(calibration: Calibration, config: SeedConfig) -> tuple[SeedView, ...]:
    """The registered views with their trusted pixels, best mean confidence first."""
    scene, confidence = calibration.scene, calibration.confidence
    threshold = rank_threshold(calibration, config.keep)
    horizon = config.far * median_depth(calibration)
    views = []
    for index in (v for v, registered in enumerate(scene.registered) if registered):
        depth, focal = scene.depth[index].float().cpu(), scene.focal[index].float().cpu()
        T_world_camera = scene.T_world_camera[index].float().cpu()
        camera = unproject(depth, focal, scene.principal_point[index].float().cpu())
        points = transform_points(T_world_camera, camera.reshape(-1, 3)).reshape(camera.shape)
        weight = confidence.view_confidence[index].float().cpu()
        usable = (weight >= threshold) & (depth > 0) & (depth < horizon) & points.isfinite().all(dim=-1)
        views.append(
            SeedView(
                points_world=points,
                depth=depth,
                mask=usable,
                T_world_camera=T_world_camera,
                focal=float(focal),
                principal_point=scene.principal_point[index].float().cpu(),
                rgb=torch.from_numpy(np.array(calibration.views[index].image)),
                confidence=weight,
                footprint=depth / focal,
            )
        )
    views = sorted(views, key=lambda view: -float(view.confidence.mean()))
    if sum(int(view.mask.sum()) for view in views) == 0:
        raise InputError(
            found="no pixel with a depth that can be trusted",
            accepted="photographs that overlap, with some texture",
            remedy="raise `keep`, or add photographs between the ones you have",
        )
    return tuple(views)


def _check(holds: bool, found: str, accepted: str, remedy: str) -> None:
    if not holds:
        raise InputError(found, accepted, remedy)
