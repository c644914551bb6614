"""Training pairs: a rolling pool of rendered scenes, colour augmentation, targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.pretraining.config import PretrainConfig, Size
from lora3d_splat.synthetic.pairs import scene_pairs
from lora3d_splat.synthetic.render import FEATURES, SyntheticScene, render_scene

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
class PooledScene:
    """A rendered scene, the seed that makes it again, and its usable pairs."""

    seed: int
    scene: SyntheticScene
    pairs: list[tuple[int, int]]

    @property
    def size(self) -> Size:
        """(H, W)"""
        return self.scene.images.shape[1], self.scene.images.shape[2]


class ScenePool:
    """Scenes to draw pairs from. Rebuilt exactly from `slots`, so a resumed run sees what it would have seen."""

    def __init__(self, config: PretrainConfig, slots: list[tuple[int, Size]] | None = None, rendered: int = 0) -> None:
        self.config = config
        self.rendered = rendered
        self.scenes = [self._render(seed, size) for seed, size in slots or []]
        if slots is None:
            self.extend(config.first_scenes, config.sizes)

    @property
    def slots(self) -> list[tuple[int, Size]]:
        """(seed, size) of every scene, enough to rebuild the pool."""
        return [(scene.seed, scene.size) for scene in self.scenes]

    def _render(self, seed: int, size: Size) -> PooledScene:
        features = FEATURES[self.config.scenes]
        scene = render_scene(
            seed,
            size,
            self.config.views,
            motion=self.config.motion,
            features=features,
            photographs=self.config.photographs,
        )
        return PooledScene(seed, scene, scene_pairs(scene))

    def extend(self, count: int, sizes: tuple[Size, ...]) -> None:
        """Render `count` more scenes; the oldest ones make room."""
        for _ in range(count):
            size = sizes[self.rendered % len(sizes)]
            self.scenes.append(self._render(self.config.seed * 10**7 + self.rendered, size))
            self.rendered += 1
        del self.scenes[: -self.config.pool_scenes]

    def draw(self, rng: np.random.Generator) -> PairBatch:
        """A batch of pairs of one size; larger images come in smaller batches."""
        usable = [scene for scene in self.scenes if scene.pairs]
        size = usable[int(rng.integers(len(usable)))].size
        usable = [scene for scene in usable if scene.size == size]
        count = max(1, round(self.config.pairs * min(1.0, 12288 / (size[0] * size[1]))))
        chosen = [usable[k] for k in rng.choice(len(usable), count, replace=count > len(usable))]
        return make_batch([(each.scene, *each.pairs[int(rng.integers(len(each.pairs)))]) for each in chosen], rng)


def make_batch(pairs: list[tuple[SyntheticScene, int, int]], rng: np.random.Generator | None) -> PairBatch:
    """Collate pairs of equal size; with `rng` views swap, flip and change colour.

    A thing that moves has in each view the points where it stood then; it has no matches.
    """
    order = [(s, j, i) if rng is not None and rng.uniform() < 0.5 else (s, i, j) for s, i, j in pairs]
    views = [(s, i) for s, i, _ in order] + [(s, j) for s, _, j in order]
    images = torch.from_numpy(np.stack([s.images[k] for s, k in views])).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(np.stack([s.depth[k] for s, k in views]))
    focal = torch.tensor([s.focal[k] for s, k in views], dtype=torch.float32)
    pose = torch.from_numpy(np.stack([s.T_world_camera[k] for s, k in views]))
    none = np.zeros(depth.shape[1:], bool)
    moving = torch.from_numpy(np.stack([none if s.moving is None else s.moving[k] for s, k in views]))
    if rng is not None:
        mirrored = torch.from_numpy(rng.uniform(size=len(pairs)) < 0.5).repeat(2)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        depth = torch.where(mirrored[:, None, None], depth.flip(-1), depth)
        moving = torch.where(mirrored[:, None, None], moving.flip(-1), moving)
        mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
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
    x = (torch.arange(z.shape[2]) * stride + stride / 2 - width / 2)[None, None] / focal[:, None, None]
    y = (torch.arange(z.shape[1]) * stride + stride / 2 - height / 2)[None, :, None] / focal[:, None, None]
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
    """Random exposure, colour, blur and noise per view, for (B, 3, H, W) images in [0, 1]."""
    count = len(images)

    def draw(scale: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.normal(0, scale, (count, channels, 1, 1))).float()

    # Both views of a pair share most of the colour cast: photographs of one series look alike.
    common = draw(0.12, 3)
    colour = common[: count // 2].repeat(2, 1, 1, 1) + draw(0.05, 3) + draw(0.12)
    images = images.clamp(min=1e-3) ** draw(0.2).exp() * colour.exp()
    images = images.lerp(images.mean(1, keepdim=True), 1 - draw(0.3).exp())
    images = images.lerp(images.mean((1, 2, 3), keepdim=True), 1 - draw(0.2).exp())
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    soft = torch.from_numpy(rng.uniform(-0.6, 1.0, (count, 1, 1, 1))).float().clamp(min=0)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    grain = torch.randn(images.shape, generator=generator) * draw(0.02).abs()
    return (images.lerp(blurred, soft) + grain).clamp(0, 1)
