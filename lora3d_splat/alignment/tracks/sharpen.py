"""Depth searched by multi-view photo-consistency: a plane sweep in a band around the depth that is known already.

For every pixel a few dozen depths are tried; the patch around it is carried into neighbouring views by the plane that
is fronto-parallel there, and compared by zero-normalised cross-correlation. The best depth is kept where it stands out
and where the depths of two neighbours, found in the same way, meet it (Collins 1996; Yang and Pollefeys 2003).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ...geometry.projection import project, unproject
from ...geometry.transforms import invert_rigid, transform_points
from ...records import AlignedScene


@dataclass(frozen=True)
class SharpenConfig:
    """How depth is searched."""

    neighbours: int = 5
    """Views that each view is compared with."""
    steps: int = 32
    """Depths tried in the band."""
    band: float = 0.2
    """Half width of the band in log depth."""
    guess_band: float = 0.08
    """The same around a second guess of the depth, searched in steps of the same width."""
    patch: int = 5
    """Side of the compared patch, pixels."""
    least_correlation: float = 0.5
    """Correlation that the best depth must reach on average over its two best neighbours."""
    least_margin: float = 0.02
    """By how much it must beat every depth at which the patch lies a pixel or more elsewhere in the neighbours."""
    agreement: float = 0.03
    """Relative difference of depth at which a neighbour agrees."""
    least_angle: float = 1.0
    """Degrees between the rays of two views to the middle of the scene, below which depth is not told."""


@dataclass(frozen=True)
class Lens:
    """One view as the sweep sees it."""

    image: Tensor
    """(3, H, W) float32 in [0, 1]"""
    depth: Tensor
    """(H, W) z-depth to start from"""
    T_world_camera: Tensor
    """(4, 4) float32"""
    focal: float
    """pixels of the image"""
    principal_point: Tensor
    """(2,)"""


def sharpen(
    images: Sequence[Tensor],
    scene: AlignedScene,
    trusted: Sequence[bool],
    config: SharpenConfig | None = None,
    guesses: Sequence[Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Depths and their confidence in [0, 1] per view, both (H, W) at the resolution of the scene's depths.

    `images` are (H, W, 3) uint8 tensors, one per view; only views `trusted` take part, their depth is replaced where
    the confidence is above zero, everything else is left as it is. Runs on the device of the images. `guesses` are
    other depths (H, W), one per view, around which a narrower band is searched as well.
    """
    config = config or SharpenConfig()
    lenses = {k: _lens(images[k], scene, k) for k, flag in enumerate(trusted) if flag and scene.registered[k]}
    neighbours = {k: _neighbours(lenses, k, config) for k in lenses}
    found = {
        k: _sweep(lenses[k], [lenses[n] for n in neighbours[k]], config, None if guesses is None else guesses[k])
        for k in lenses
        if neighbours[k]
    }
    depths, sureness = list(scene.depth), [torch.zeros_like(depth) for depth in scene.depth]
    for k, (depth, quality) in found.items():
        others = [(lenses[n], found[n][0]) for n in neighbours[k] if n in found]
        agreed = _agreement(lenses[k], depth, others, config)
        kept = (quality > 0) & (agreed >= min(2, len(others)))
        depths[k] = torch.where(kept, depth, lenses[k].depth).to(scene.depth[k])
        sureness[k] = torch.where(kept, quality, torch.zeros_like(quality)).to(scene.depth[k])
    return tuple(depths), tuple(sureness)


def _lens(image: Tensor, scene: AlignedScene, index: int) -> Lens:
    device = image.device
    return Lens(
        image.permute(2, 0, 1).float() / 255,
        scene.depth[index].float().to(device),
        scene.T_world_camera[index].float().to(device),
        float(scene.focal[index]),
        scene.principal_point[index].float().to(device),
    )


def _neighbours(lenses: dict[int, Lens], index: int, config: SharpenConfig) -> list[int]:
    """The views that see most of this one under a useful angle, best first."""
    lens = lenses[index]
    points = unproject(lens.depth, lens.focal, lens.principal_point)[::4, ::4].reshape(-1, 3)
    points = transform_points(lens.T_world_camera, points[points[:, 2] > 0])
    scores = {}
    for other, view in lenses.items():
        if other == index or len(points) == 0:
            continue
        moved = transform_points(invert_rigid(view.T_world_camera), points)
        pixels, _ = project(moved, view.focal, view.principal_point)
        size = torch.tensor([view.image.shape[2], view.image.shape[1]], device=pixels.device)
        seen = ((pixels >= 0) & (pixels < size)).all(dim=-1).float().mean()
        rays = [points - each.T_world_camera[:3, 3] for each in (lens, view)]
        angle = torch.rad2deg(torch.acos(functional.cosine_similarity(*rays, dim=-1).clamp(-1, 1)).median())
        # Angles about ten degrees tell depth well and still show the same patches.
        usable = float(angle) >= config.least_angle and float(angle) <= 45.0
        scores[other] = float(seen) * min(float(angle) / 8.0, 1.0) * min(15.0 / max(float(angle), 1e-3), 1.0) * usable
    ranked = sorted((k for k in scores if scores[k] > 0.1), key=lambda k: -scores[k])
    return ranked[: config.neighbours]


def _sweep(lens: Lens, others: Sequence[Lens], config: SharpenConfig, guess: Tensor | None) -> tuple[Tensor, Tensor]:
    """Best depth (H, W) of the bands and how sure it is, (H, W) in [0, 1]; zero where ambiguous."""
    step = 2 * config.band / (config.steps - 1)
    bands = [_band(lens, others, config, lens.depth, config.steps, step)]
    if guess is not None:
        narrow = 2 * math.ceil(config.guess_band / step) + 1
        bands.append(_band(lens, others, config, guess.to(lens.depth), narrow, step))
    best = torch.stack([band.best for band in bands])
    chosen = best.argmax(dim=0)[None]
    best = best.gather(0, chosen)[0]
    depth, inner = (
        torch.stack([getattr(band, name) for band in bands]).gather(0, chosen)[0] for name in ("depth", "inner")
    )
    same = (_same_steps(lens, others, config) + 0.5) * step
    rival = torch.stack([band.rival(depth, same) for band in bands]).amax(dim=0)
    sure = (best > config.least_correlation) & (best - rival > config.least_margin) & inner & (lens.depth > 0)
    quality = torch.where(sure, ((best - rival) / (4 * config.least_margin)).clamp(0.25, 1.0) * best.clamp(0, 1), 0.0)
    return depth, quality


@dataclass(frozen=True)
class Band:
    """Correlations at depths around a map, all (H, W) but the first."""

    correlation: Tensor
    """(D, H, W)"""
    log_depth: Tensor
    """(D, H, W)"""
    best: Tensor
    """highest correlation"""
    depth: Tensor
    """where it is, between steps"""
    inner: Tensor
    """bool: not at an end of the band"""

    def rival(self, depth: Tensor, same: float) -> Tensor:
        """Highest correlation at depths whose log differs by more than `same` from that of `depth`."""
        near = (self.log_depth - depth.clamp_min(1e-12).log()).abs() <= same
        return self.correlation.masked_fill(near, -1.0).amax(dim=0)


def _band(lens: Lens, others: Sequence[Lens], config: SharpenConfig, centre: Tensor, steps: int, step: float) -> Band:
    """Correlations at `steps` log depths, `step` apart, around the map `centre` (H, W)."""
    offsets = step * (torch.arange(steps, device=centre.device) - (steps - 1) / 2)
    rays = unproject(torch.ones_like(centre), lens.focal, lens.principal_point)
    grey = lens.image.mean(0)
    mean, spread = _moments(grey, config.patch)
    table = []
    for offset in offsets:
        points = rays * (centre * offset.exp())[..., None]
        scores = torch.stack([_correlation(grey, mean, spread, points, lens, other, config) for other in others])
        # The two best neighbours: the others may be occluded.
        table.append(scores.topk(min(2, len(others)), dim=0).values.mean(0))
    correlation = torch.stack(table)
    best, index = correlation.max(dim=0)
    inner = (index > 0) & (index < steps - 1)
    shift = _parabola(correlation, index.clamp(1, steps - 2))
    depth = centre * (offsets[index] + shift * step).exp()
    return Band(correlation, centre.clamp_min(1e-12).log() + offsets[:, None, None], best, depth, inner)


def _same_steps(lens: Lens, others: Sequence[Lens], config: SharpenConfig) -> int:
    """Steps of the sweep within which a patch moves by less than about a pixel in the neighbours."""
    depth = float(lens.depth[lens.depth > 0].median()) if bool((lens.depth > 0).any()) else 1.0
    centre = lens.T_world_camera[:3, 3]
    baseline = sum(float((other.T_world_camera[:3, 3] - centre).norm()) for other in others) / len(others)
    pixels_per_step = lens.focal * baseline / depth * 2 * config.band / (config.steps - 1)
    return max(2, min(math.ceil(1.0 / max(pixels_per_step, 1e-6)), config.steps // 3))


def _correlation(
    grey: Tensor, mean: Tensor, spread: Tensor, points: Tensor, lens: Lens, other: Lens, config: SharpenConfig
) -> Tensor:
    """(H, W) zero-normalised cross-correlation of patches with what `other` shows at points (H, W, 3); -1 outside."""
    T_other_camera = invert_rigid(other.T_world_camera) @ lens.T_world_camera
    moved = transform_points(T_other_camera, points.reshape(-1, 3)).view_as(points)
    pixels, _ = project(moved, other.focal, other.principal_point)
    size = torch.tensor([other.image.shape[2], other.image.shape[1]], device=pixels.device)
    inside = ((pixels >= 0) & (pixels <= size)).all(dim=-1)
    grid = (pixels.nan_to_num(nan=-10.0) / size * 2 - 1)[None]
    grey_other = other.image.mean(0)[None, None]
    shown = functional.grid_sample(grey_other, grid, padding_mode="border", align_corners=False)[0, 0]
    mean_shown, spread_shown = _moments(shown, config.patch)
    both = _box(grey * shown, config.patch) - mean * mean_shown
    value = both / (spread * spread_shown).clamp_min(1e-6).sqrt()
    return torch.where(inside & (spread > 1e-5) & (spread_shown > 1e-5), value, -1.0)


def _moments(grey: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (H, W) over patches."""
    mean = _box(grey, patch)
    return mean, (_box(grey * grey, patch) - mean * mean).clamp_min(0)


def _box(values: Tensor, patch: int) -> Tensor:
    padded = functional.pad(values[None, None], (patch // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, patch, stride=1)[0, 0]


def _parabola(correlation: Tensor, index: Tensor) -> Tensor:
    """Where between steps the top of the parabola through three values lies, in [-0.5, 0.5] steps."""
    before, at, after = (correlation.gather(0, (index + k)[None])[0] for k in (-1, 0, 1))
    bend = before - 2 * at + after
    return torch.where(bend < -1e-6, 0.5 * (before - after) / bend.clamp_max(-1e-6), 0.0).clamp(-0.5, 0.5)


def _agreement(lens: Lens, depth: Tensor, others: Sequence[tuple[Lens, Tensor]], config: SharpenConfig) -> Tensor:
    """(H, W) number of views whose own searched depth meets this one."""
    count = torch.zeros_like(depth)
    points = transform_points(lens.T_world_camera, unproject(depth, lens.focal, lens.principal_point).reshape(-1, 3))
    for other, found in others:
        pixels, far = project(
            transform_points(invert_rigid(other.T_world_camera), points), other.focal, other.principal_point
        )
        size = torch.tensor([found.shape[1], found.shape[0]], device=depth.device)
        grid = (pixels.nan_to_num(nan=-10.0) / size * 2 - 1)[None, None]
        seen = functional.grid_sample(found[None, None], grid, mode="nearest", align_corners=False)[0, 0, 0]
        meets = (seen > 0) & (far > 0) & ((seen - far).abs() < config.agreement * far)
        count += meets.view_as(depth)
    return count
