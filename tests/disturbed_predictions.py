"""Pair predictions of ray-cast scenes, disturbed in every way in which pointmap networks are known to err.

Exact pointmaps of a procedural table-top scene get, per prediction: a unit of their own, a smooth depth distortion,
a focal error, a small pose error between the two halves, white noise, more of it where the other view does not see the
point, flying pixels between the two sides of depth edges, and gross outliers that carry high confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from camera_layouts import LAYOUTS, STYLE, stand_up
from torch import Tensor

from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.geometry.transforms import rotation_angle_deg
from lora3d_splat.records import AlignedScene, ImagePair, PairPrediction, PixelAffine, View
from lora3d_splat.synthetic.raycast import FAR
from lora3d_splat.synthetic.render import cast
from lora3d_splat.synthetic.textures import atlas
from lora3d_splat.synthetic.world import WorldBuilder

HIGH_CONFIDENCE = 2.5
"""log of (raw confidence - 1) of a gross outlier, above most good pixels"""


@dataclass(frozen=True)
class Disturbance:
    """How wrong the predictions are; lengths are relative to the depth."""

    distortion: float = 0.03
    """standard deviation of the smooth relative depth error"""
    noise: float = 0.01
    """white noise"""
    unseen_noise: float = 0.05
    """further white noise where the other view of the pair does not see the point"""
    focal: float = 0.015
    """standard deviation of the relative focal error of a prediction"""
    half_rotation_deg: float = 0.3
    """standard deviation per axis of the turn between the two halves of a pair"""
    half_translation: float = 0.006
    """standard deviation per axis of the shift between the two halves"""
    outliers: float = 0.1
    """share of gross outliers with high confidence"""
    flying: int = 1
    """pixels this near to a depth edge lie anywhere between the two sides; 0: none do"""
    flying_share: float = 0.7
    """the share of them that does"""
    nonsense: int = 0
    """number of unordered pairs whose both predictions mean nothing"""
    unit_spread: float = 1.0
    """largest size of the log of a prediction's unit"""
    outlier_kind: Literal["mixed", "blocks", "agreeing"] = "mixed"
    """mixed: half of them single pixels, half patches; blocks: a few rectangles; agreeing: rectangles that move as one,
    the same way in both orders of a pair"""


EXACT = Disturbance(0, 0, 0, 0, 0, 0, 0, 0)
HARDER = Disturbance(half_rotation_deg=0.5, half_translation=0.01)
"""The halves of a pair nearly twice as far apart."""


@dataclass(frozen=True)
class TrueScene:
    """Views with exact cameras, depths and points; metres."""

    T_world_camera: np.ndarray
    """(V, 4, 4)"""
    focal: np.ndarray
    """(V,) pixels"""
    depth: np.ndarray
    """(V, H, W)"""
    points_world: np.ndarray
    """(V, H, W, 3)"""

    @property
    def views(self) -> tuple[View, ...]:
        """The views as the aligner knows them: no picture is needed."""
        height, width = self.depth.shape[1:]
        image = np.zeros((height, width, 3), np.uint8)
        same = PixelAffine(1.0, 1.0, 0.0, 0.0)
        names = [f"{index:03d}.png" for index in range(len(self.focal))]
        return tuple(View(name, Path(name), width, height, image, same, name) for name in names)


def true_scene(seed: int, count: int, size: tuple[int, int] = (120, 160), layout: str = "arc") -> TrueScene:
    """`count` cameras, on an arc around the things on a table unless another layout is named; no other dependence."""
    rng = np.random.default_rng([seed, count])
    build = WorldBuilder(rng, atlas(STYLE))
    stand = LAYOUTS[layout].place(build)
    world = build.finish()
    focal = max(size) / 2 / np.tan(np.radians(rng.uniform(45, 70)) / 2)
    poses = stand_up(LAYOUTS[layout], rng, stand, world, count)
    depth = np.stack([cast(world, atlas(STYLE), pose, focal, size, samples=1)[1] for pose in poses]).astype(np.float64)
    depth = np.where((depth > 0) & (depth < FAR / 2), depth, depth.max())
    clouds = [_to_world(pose, _rays(size, focal) * item[..., None]) for pose, item in zip(poses, depth, strict=True)]
    return TrueScene(poses, np.full(count, focal), depth, np.stack(clouds))


def predict_disturbed(
    scene: TrueScene, seed: int, disturbance: Disturbance | None = None, pairs: list[ImagePair] | None = None
) -> tuple[PairPrediction, ...]:
    """Predictions of ordered pairs (default: all)."""
    kind = disturbance or Disturbance()
    rng = np.random.default_rng([seed, 4711])
    count = len(scene.focal)
    pairs = pairs or [ImagePair(i, j) for i in range(count) for j in range(count) if i != j]
    edges = sorted({(min(pair.reference, pair.other), max(pair.reference, pair.other)) for pair in pairs})
    nonsense = {edges[index] for index in rng.permutation(len(edges))[: kind.nonsense]}
    return tuple(
        _nonsense(rng, scene, pair)
        if (min(pair.reference, pair.other), max(pair.reference, pair.other)) in nonsense
        else _prediction(rng, scene, pair, kind)
        for pair in pairs
    )


def true_errors(scene: TrueScene, prediction: PairPrediction) -> tuple[Tensor, Tensor]:
    """(H, W) error of each predicted point of both sides, relative to the true depth, after the pair's best unit."""
    inverse = np.linalg.inv(scene.T_world_camera[prediction.pair.reference])
    sides = (
        (prediction.pair.reference, prediction.points_reference),
        (prediction.pair.other, prediction.points_other),
    )
    true = [torch.from_numpy(_to_world(inverse, scene.points_world[view])).float() for view, _ in sides]
    ratios = torch.cat(
        [(points.norm(dim=-1) / target.norm(dim=-1)).flatten() for (_, points), target in zip(sides, true, strict=True)]
    )
    unit = float(ratios.median())
    first, second = (
        (points / unit - target).norm(dim=-1) / target.norm(dim=-1)
        for (_, points), target in zip(sides, true, strict=True)
    )
    return first, second


def camera_errors(scene: TrueScene, aligned: AlignedScene) -> dict[str, float]:
    """Centre RMSE after Sim(3) over the extent of the trajectory, the same of every second view, mean relative rotation
    in degrees, largest focal error."""
    true, found = torch.from_numpy(scene.T_world_camera), aligned.T_world_camera
    fit = align_trajectories(found[:, :3, 3], true[:, :3, 3])
    gap = (fit.apply(found[:, :3, 3]) - true[:, :3, 3]).norm(dim=-1)
    centres = true[:, :3, 3]
    extent = torch.cdist(centres, centres).max()
    first, second = torch.triu_indices(len(true), len(true), offset=1)
    relative = [T[first, :3, :3].transpose(1, 2) @ T[second, :3, :3] for T in (true, found)]
    return {
        "centre": float(gap.square().mean().sqrt() / extent),
        "second": float(gap[1::2].square().mean().sqrt() / extent),
        "rotation": float(rotation_angle_deg(*relative).mean()),
        "focal": float((aligned.focal / torch.from_numpy(scene.focal) - 1).abs().max()),
    }


def _prediction(rng: np.random.Generator, scene: TrueScene, pair: ImagePair, kind: Disturbance) -> PairPrediction:
    unit, slope = np.exp(kind.unit_spread * rng.uniform(-1, 1)), 1 + kind.focal * rng.normal()
    inverse = np.linalg.inv(scene.T_world_camera[pair.reference])
    sides = []
    for view, partner in ((pair.reference, pair.other), (pair.other, pair.reference)):
        depth = scene.depth[view]
        own = _rays(depth.shape, scene.focal[view] * slope) * _disturbed_depth(rng, depth, kind)[..., None]
        seen = _seen(scene, view, partner)
        loud = kind.noise + kind.unseen_noise * ~seen
        own = own + (loud * depth)[..., None] * rng.normal(size=own.shape)
        points = _to_world(inverse @ scene.T_world_camera[view], own)
        if view != pair.reference:
            points = _jolted(rng, points, float(np.median(depth)), kind)
        sureness = 1.2 + 0.6 * _smooth(rng, depth.shape) + 0.3 * rng.normal(size=depth.shape) - 0.8 * ~seen
        wrong = OUTLIER_MASKS[kind.outlier_kind](rng, depth.shape, kind.outliers)
        moved = _together(scene, pair, points) if kind.outlier_kind == "agreeing" else _gross(rng, points, depth)
        points = np.where(wrong[..., None], moved, points)
        sureness = np.where(wrong, HIGH_CONFIDENCE + 0.2 * rng.normal(size=depth.shape), sureness)
        sides += [torch.from_numpy(unit * points).float(), torch.from_numpy(1 + np.exp(sureness)).float()]
    return PairPrediction(pair, *sides)


def _nonsense(rng: np.random.Generator, scene: TrueScene, pair: ImagePair) -> PairPrediction:
    """Smooth surfaces that have nothing to do with the scene, stated with confidence."""
    sides = []
    for view in (pair.reference, pair.other):
        size = scene.depth[view].shape
        depth = np.exp(0.5 * _smooth(rng, size))
        points = _rays(size, scene.focal[view]) * depth[..., None]
        if view == pair.other:
            turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            points = points @ (turn * np.linalg.det(turn)).T + rng.normal(size=3)
        sides += [torch.from_numpy(points).float(), torch.full(size, 1 + float(np.exp(HIGH_CONFIDENCE)))]
    return PairPrediction(pair, *sides)


def _disturbed_depth(rng: np.random.Generator, depth: np.ndarray, kind: Disturbance) -> np.ndarray:
    if kind.flying:
        depth = _flying(rng, depth, kind)
    return depth * np.exp(kind.distortion * _smooth(rng, depth.shape))


def _flying(rng: np.random.Generator, depth: np.ndarray, kind: Disturbance) -> np.ndarray:
    """Pixels next to a jump of more than a tenth of the depth move a random part of the way to the other side."""
    near, far = depth.copy(), depth.copy()
    for axis in (0, 1):
        for reach in range(1, kind.flying + 1):
            for step in (-reach, reach):
                near = np.minimum(near, np.roll(depth, step, axis))
                far = np.maximum(far, np.roll(depth, step, axis))
    edge = far > 1.1 * near
    border = kind.flying
    edge[:border] = edge[-border:] = False
    edge[:, :border] = edge[:, -border:] = False
    mixed = near + rng.uniform(size=depth.shape) * (far - near)
    return np.where(edge & (rng.uniform(size=depth.shape) < kind.flying_share), mixed, depth)


def _jolted(rng: np.random.Generator, points: np.ndarray, depth: float, kind: Disturbance) -> np.ndarray:
    """One half of a pair, turned and shifted a little about its own middle."""
    vector = np.radians(kind.half_rotation_deg) * rng.normal(size=3)
    cross = np.cross(np.eye(3), vector)
    left, _, right = np.linalg.svd(np.eye(3) - cross)
    middle = points.reshape(-1, 3).mean(0)
    return (points - middle) @ (left @ right).T + middle + kind.half_translation * depth * rng.normal(size=3)


def _outlier_mask(rng: np.random.Generator, size: tuple[int, ...], share: float) -> np.ndarray:
    """Half of the outliers are single pixels, half of them patches."""
    if share == 0:
        return np.zeros(size, bool)
    bumps = _smooth(rng, size, cells=8)
    return (rng.uniform(size=size) < share / 2) | (bumps > np.quantile(bumps, 1 - share / 2))


def _block_mask(rng: np.random.Generator, size: tuple[int, ...], share: float) -> np.ndarray:
    """Rectangles, each about a twentieth of the picture, until the share is reached."""
    mask = np.zeros(size, bool)
    while mask.mean() < share:
        height, width = (max(1, int(side * rng.uniform(0.15, 0.3))) for side in size)
        top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
        mask[top : top + height, left : left + width] = True
    return mask


OUTLIER_MASKS = {"mixed": _outlier_mask, "blocks": _block_mask, "agreeing": _block_mask}


def _together(scene: TrueScene, pair: ImagePair, points: np.ndarray) -> np.ndarray:
    """Points of the reference frame under one wrong motion of the world, which belongs to the unordered pair."""
    rng = np.random.default_rng([min(pair.reference, pair.other), max(pair.reference, pair.other), 99])
    turn = np.cross(np.eye(3), np.radians(15) * rng.normal(size=3))
    left, _, right = np.linalg.svd(np.eye(3) - turn)
    world = _to_world(scene.T_world_camera[pair.reference], points)
    middle = world.reshape(-1, 3).mean(0)
    shift = 0.3 * float(np.median(scene.depth[pair.reference])) * rng.normal(size=3)
    moved = (world - middle) @ (left @ right).T + middle + shift
    return _to_world(np.linalg.inv(scene.T_world_camera[pair.reference]), moved)


def _gross(rng: np.random.Generator, points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Points displaced by about their depth, patches of them together."""
    size = depth.shape
    together = np.stack([_smooth(rng, size, cells=8) for _ in range(3)], -1)
    push = 0.7 * together + 0.3 * rng.normal(size=(*size, 3))
    return points + depth[..., None] * push


def _seen(scene: TrueScene, view: int, by: int) -> np.ndarray:
    """(H, W) whether another view sees the points of a view unoccluded."""
    points = _to_world(np.linalg.inv(scene.T_world_camera[by]), scene.points_world[view])
    height, width = scene.depth.shape[1:]
    z = np.maximum(points[..., 2], 1e-9)
    u = np.floor(scene.focal[by] * points[..., 0] / z + width / 2)
    v = np.floor(scene.focal[by] * points[..., 1] / z + height / 2)
    inside = (points[..., 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    found = scene.depth[by][np.clip(v, 0, height - 1).astype(int), np.clip(u, 0, width - 1).astype(int)]
    return inside & (points[..., 2] < 1.05 * found)


def _smooth(rng: np.random.Generator, size: tuple[int, ...], cells: int = 4) -> np.ndarray:
    """(H, W) smooth random field of unit standard deviation."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, cells, cells + 1)))
    field = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0, 0].numpy()
    return (field - field.mean()) / field.std()


def _rays(size: tuple[int, ...], focal: float) -> np.ndarray:
    height, width = size
    x, y = np.meshgrid((np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal)
    return np.stack([x, y, np.ones_like(x)], -1)


def _to_world(T_world_frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ T_world_frame[:3, :3].T + T_world_frame[:3, 3]
