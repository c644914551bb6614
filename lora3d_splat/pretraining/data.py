"""Training pairs: a rolling pool of rendered scenes, colour augmentation, targets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.synthetic.render import SyntheticScene
from lora3d_splat.synthetic.workers import RenderedScene, SceneWorkers, Size, render

CELL = 8
"""side of a correlation cell, pixels"""
SAME_SURFACE = 0.04
"""relative depth difference under which a reprojected cell counts as matched"""


@dataclass(frozen=True)
class PairBatch:
    """B unordered pairs as 2B views: view k and its partner (k + B) mod 2B. Targets have (h, w) = (H, W) / 2."""

    images: Tensor
    """(2B, 3, H, W) in [-1, 1]"""
    points_own: Tensor
    """(2B, h, w, 3) points in the view's own camera frame"""
    points_partner: Tensor
    """(2B, h, w, 3) the same points in the partner's camera frame"""
    valid: Tensor
    """(2B, h, w) bool"""
    match_index: Tensor
    """(2B, N, 4) cells of the partner around each cell's match"""
    match_weight: Tensor
    """(2B, N, 4) bilinear weights, all zero where the match is hidden or outside"""
    cell_depth: Tensor
    """(2B, N) z-depth at cell centres, 0 = nothing"""
    T_partner_own: Tensor
    """(2B, 4, 4)"""

    @property
    def pairs(self) -> int:
        """B"""
        return len(self.images) // 2

    def partner(self, values: Tensor) -> Tensor:
        """Per-view values (2B, ...) reordered so that row k holds those of k's partner."""
        return values.roll(self.pairs, 0)

    def to(self, device: torch.device | str) -> PairBatch:
        """Move all tensors."""
        return PairBatch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class SceneTensors:
    """A rendered scene on the device that trains: SyntheticScene's arrays as tensors of the same shapes."""

    images: Tensor
    """uint8"""
    depth: Tensor
    """float32"""
    T_world_camera: Tensor
    """float64"""
    focal: Tensor
    """float32"""
    moving: Tensor
    """bool, all false where everything stands still"""

    @classmethod
    def of(cls, scene: SyntheticScene, device: torch.device | str = "cpu") -> SceneTensors:
        """The scene on a device; on the CPU the memory is shared."""
        still = torch.zeros(1, 1, 1, dtype=torch.bool, device=device).expand(scene.depth.shape)
        moving = still if scene.moving is None else torch.from_numpy(scene.moving).to(device)
        images, depth, pose = (
            torch.from_numpy(each).to(device) for each in (scene.images, scene.depth, scene.T_world_camera)
        )
        return cls(images, depth, pose, torch.from_numpy(scene.focal).float().to(device), moving)


@dataclass(frozen=True)
class PooledScene:
    """A scene to draw pairs from, and the seed that makes it again."""

    seed: int
    size: Size
    scene: SceneTensors
    pairs: list[tuple[int, int]]


class ScenePool:
    """Scenes to draw pairs from. Rebuilt exactly from `slots`, so a resumed run sees what it would have seen."""

    def __init__(self, config: PretrainConfig, slots: list[tuple[int, Size]] | None = None, rendered: int = 0) -> None:
        self.config = config
        self.rendered = rendered
        self.scenes: deque[PooledScene] = deque()
        self._usable: dict[Size, deque[PooledScene]] = {}
        self.workers = SceneWorkers(config.scene_options, config.workers) if config.workers else None
        for scene in self._render_all(slots or []):
            self._add(scene)
        if slots is None:
            self.extend(config.first_scenes, config.sizes)

    def _render_all(self, slots: list[tuple[int, Size]]) -> Iterator[RenderedScene]:
        if self.workers:
            return self.workers.render_all(slots)
        return (render(self.config.scene_options, seed, size) for seed, size in slots)

    @property
    def slots(self) -> list[tuple[int, Size]]:
        """(seed, size) of every scene, enough to rebuild the pool."""
        return [(scene.seed, scene.size) for scene in self.scenes]

    def _add(self, rendered: RenderedScene) -> None:
        """Pool a scene; the oldest one makes room."""
        scene = SceneTensors.of(rendered.scene, self.config.device)
        pooled = PooledScene(rendered.seed, rendered.size, scene, rendered.pairs)
        self.scenes.append(pooled)
        if pooled.pairs:
            self._usable.setdefault(pooled.size, deque()).append(pooled)
        while len(self.scenes) > self.config.pool_scenes:
            oldest = self.scenes.popleft()
            if oldest.pairs:
                self._usable[oldest.size].popleft()

    def extend(self, count: int, sizes: tuple[Size, ...]) -> None:
        """Pool `count` more scenes, waiting for them."""
        for _ in range(count):
            self._ask(sizes)
            job = self.config.scene(self.rendered, sizes)
            self._add(self.workers.take() if self.workers else render(self.config.scene_options, *job))
            self.rendered += 1

    def take_finished(self, sizes: tuple[Size, ...]) -> None:
        """Pool what the workers have rendered meanwhile, and keep them busy."""
        for scene in self.workers.finished() if self.workers else ():
            self._add(scene)
            self.rendered += 1
        self._ask(sizes)

    def _ask(self, sizes: tuple[Size, ...]) -> None:
        while self.workers and self.workers.asked < self.workers.room:
            self.workers.ask(*self.config.scene(self.rendered + self.workers.asked, sizes))

    def draw(self, rng: np.random.Generator) -> PairBatch:
        """A batch of pairs of one size; larger images come in smaller batches."""
        sizes = [size for size, scenes in self._usable.items() if scenes]
        shares = np.array([len(self._usable[size]) for size in sizes])
        size = sizes[int(rng.choice(len(sizes), p=shares / shares.sum()))]
        usable = self._usable[size]
        count = max(1, round(self.config.pairs * min(1.0, 12288 / (size[0] * size[1]))))
        chosen = [usable[k] for k in rng.choice(len(usable), count, replace=count > len(usable))]
        return make_batch([(each.scene, *each.pairs[int(rng.integers(len(each.pairs)))]) for each in chosen], rng)

    def close(self) -> None:
        """Stop the workers, if there are any."""
        if self.workers:
            self.workers.close()


def make_batch(pairs: list[tuple[SceneTensors, int, int]], rng: np.random.Generator | None) -> PairBatch:
    """Collate pairs of equal size, on the device that they are on; with `rng` views swap, flip and change colour.

    A thing that moves has in each view the points where it stood then; it has no matches.
    """
    order = [(s, j, i) if rng is not None and rng.uniform() < 0.5 else (s, i, j) for s, i, j in pairs]
    views = [(s, i) for s, i, _ in order] + [(s, j) for s, _, j in order]
    images = torch.stack([s.images[k] for s, k in views]).permute(0, 3, 1, 2).float() / 255
    depth = torch.stack([s.depth[k] for s, k in views])
    focal = torch.stack([s.focal[k] for s, k in views])
    pose = torch.stack([s.T_world_camera[k] for s, k in views])
    moving = torch.stack([s.moving[k] for s, k in views])
    if rng is not None:
        mirrored = torch.from_numpy(rng.uniform(size=len(pairs)) < 0.5).repeat(2).to(depth.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        depth = torch.where(mirrored[:, None, None], depth.flip(-1), depth)
        moving = torch.where(mirrored[:, None, None], moving.flip(-1), moving)
        mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64, device=pose.device))
        pose = torch.where(mirrored[:, None, None], mirror @ pose @ mirror, pose)
        images = photometric(images, rng)
    T_partner_own = (torch.linalg.inv(pose.roll(len(pairs), 0)) @ pose).float()
    points, valid = points_at(depth, focal, 2)
    index, weight = match_targets(depth, focal, T_partner_own, moving)
    cell_depth = depth[:, CELL // 2 :: CELL, CELL // 2 :: CELL].flatten(1)
    moved = move(T_partner_own, points)
    return PairBatch(images * 2 - 1, points, moved, valid, index, weight, cell_depth, T_partner_own)


def points_at(depth: Tensor, focal: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Points (B, h, w, 3) on the rays of the centres of stride x stride blocks, and where they are valid."""
    height, width = depth.shape[1:]
    z = depth[:, stride // 2 :: stride, stride // 2 :: stride]
    across = torch.arange(z.shape[2], device=z.device) * stride + stride / 2 - width / 2
    down = torch.arange(z.shape[1], device=z.device) * stride + stride / 2 - height / 2
    x, y = across[None, None] / focal[:, None, None], down[None, :, None] / focal[:, None, None]
    return torch.stack([x * z, y * z, z], dim=-1), z > 0


def move(T: Tensor, points: Tensor) -> Tensor:
    """Apply (B, 4, 4) to (B, ..., 3)."""
    flat = points.flatten(1, -2)
    return (flat @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]).reshape(points.shape)


def match_targets(depth: Tensor, focal: Tensor, T_partner_own: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Where each cell's centre lies among the partner's cells: indices and bilinear weights (2B, N, 4).

    Pixels of `moving` (2B, H, W) bool match nothing, on either side.
    """
    count, height, width = depth.shape
    rows, columns = height // CELL, width // CELL
    points, valid = points_at(depth, focal, CELL)
    x, y, z = move(T_partner_own, points.flatten(1, 2)).unbind(-1)
    partner_focal, partner_depth = focal.roll(count // 2, 0)[:, None], depth.roll(count // 2, 0).flatten(1)
    safe = z.clamp(min=1e-6)
    u, v = partner_focal * x / safe + width / 2, partner_focal * y / safe + height / 2
    inside = valid.flatten(1) & (z > 1e-6) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    pixel = v.clamp(0, height - 1).long() * width + u.clamp(0, width - 1).long()
    visible = inside & ((partner_depth.gather(1, pixel) - z).abs() < SAME_SURFACE * safe)
    start = CELL // 2
    visible &= ~moving[:, start::CELL, start::CELL].flatten(1)
    visible &= ~moving.roll(count // 2, 0).flatten(1).gather(1, pixel)
    column, row = (u / CELL - 0.5).clamp(0, columns - 1), (v / CELL - 0.5).clamp(0, rows - 1)
    left, top = column.floor().clamp(max=columns - 2), row.floor().clamp(max=rows - 2)
    fx, fy = column - left, row - top
    corner = (top * columns + left).long()
    index = torch.stack([corner, corner + 1, corner + columns, corner + columns + 1], dim=-1)
    weight = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], dim=-1)
    return index.clamp(0, rows * columns - 1), torch.where(visible[..., None], weight, 0.0)


def photometric(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Random exposure, colour, vignette, blur or sharpening, and noise per view, for (B, 3, H, W) images in [0, 1]."""
    count = len(images)

    def draw(scale: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.normal(0, scale, (count, channels, 1, 1))).float().to(images.device)

    # Both views of a pair share most of the colour cast: photographs of one series look alike.
    common = draw(0.12, 3)
    colour = common[: count // 2].repeat(2, 1, 1, 1) + draw(0.05, 3) + draw(0.12)
    images = images.clamp(min=1e-3) ** draw(0.2).exp() * colour.exp()
    images = images.lerp(images.mean(1, keepdim=True), 1 - draw(0.3).exp())
    images = images.lerp(images.mean((1, 2, 3), keepdim=True), 1 - draw(0.2).exp())
    images = images * (1 - draw(0.12).abs() * corners(images))
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    soft = torch.from_numpy(rng.uniform(-0.5, 1.0, (count, 1, 1, 1))).float().to(images.device)
    generator = torch.Generator(images.device).manual_seed(int(rng.integers(2**62)))
    grain = torch.randn(images.shape, generator=generator, device=images.device) * draw(0.02).abs()
    return (images.lerp(blurred, soft) + grain).clamp(0, 1)


def corners(images: Tensor) -> Tensor:
    """(H, W) squared distance from the image centre of (B, 3, H, W) images, 1 in the corners."""
    y, x = (torch.linspace(-1, 1, length, device=images.device) for length in images.shape[-2:])
    return (y[:, None] ** 2 + x**2) / 2
