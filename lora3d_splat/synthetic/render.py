"""Seed -> RGB-D photo series with exact cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora3d_splat.errors import InputError
from lora3d_splat.synthetic.cameras import draw_pose
from lora3d_splat.synthetic.movers import Mover, add_movers, at_view, on_movers
from lora3d_splat.synthetic.raycast import cast_view
from lora3d_splat.synthetic.scenes import KINDS, SHARES, Stand
from lora3d_splat.synthetic.textures import SEEDS, TextureAtlas, atlas
from lora3d_splat.synthetic.world import World, WorldBuilder

STYLE_OFFSET = {"train": 0, "heldout": 1 << 40, "foreign": 1 << 41}
"""separates the seeds of the styles"""
ATTEMPTS = 24
"""camera draws per view before the scene is given up"""
LEAST, LEAST_ALONE = 0.35, 0.12
"""share of a picture that shows a surface, at least; and of one with nothing but a thing alone"""
USUAL_LENS = 0.82
"""focal length of phones and most cameras, long sides"""
MOTION = (0.05, 0.6)
"""how far a series moves, as a share of the distance to what it shows: log-uniform between the two"""


@dataclass(frozen=True)
class SyntheticScene:
    """V views of one procedural scene. Square pixels, principal point at the image centre, world z up."""

    images: np.ndarray
    """(V, H, W, 3) uint8 RGB"""
    depth: np.ndarray
    """(V, H, W) float32 z-depth at pixel centres, metres; 0 = nothing there (sky)"""
    T_world_camera: np.ndarray
    """(V, 4, 4) float64"""
    focal: np.ndarray
    """(V,) float64 pixels"""
    kind: str
    """room, tabletop, floating, outdoor, street or showpiece"""
    moving: np.ndarray | None = None
    """(V, H, W) bool: pixels of things that stand elsewhere in other views; None where everything stands still"""


@dataclass(frozen=True)
class SceneFeatures:
    """What scenes may have beyond still things that do not mirror; without any, a seed draws what it always drew."""

    mirrors: float = 0.0
    """share of the surfaces that mirror what is around them, in half of the scenes"""
    movers: float = 0.0
    """share of the scenes in which something moves between the views"""
    streets: float = 0.0
    """share of the scenes that are streets between house fronts, whatever the seed would have drawn"""
    everyday_lenses: float = 0.0
    """share of the scenes seen through a lens such as phones and most cameras have, 0.82 long sides give or take 13 %;
    above zero, the others have 0.55 to 2 long sides"""
    showpieces: float = 0.0
    """share of the scenes that are one thing alone before an even backdrop, half of them through everyday lenses"""

    def __post_init__(self) -> None:
        for name in ("mirrors", "movers", "streets", "everyday_lenses", "showpieces"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}", "a share from 0 to 1", "correct the setting")


FEATURES = {
    "plain": SceneFeatures(),
    "rich": SceneFeatures(mirrors=0.25, movers=0.2, streets=0.15),
    "everyday": SceneFeatures(mirrors=0.25, movers=0.2, streets=0.15, everyday_lenses=0.75),
    "varied": SceneFeatures(mirrors=0.25, movers=0.2, streets=0.15, everyday_lenses=0.65, showpieces=0.2),
}
PLAIN_SCENES = FEATURES["plain"]


def cast(
    world: World,
    textures: TextureAtlas,
    pose: np.ndarray,
    focal: float,
    size: tuple[int, int],
    samples: int = 2,
    everywhere=False,
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and z-depth (H, W) of a world from T_world_camera `pose`; size is (H, W).

    Outlines are averaged over samples^2 rays, with `everywhere` every pixel is.
    """
    return _shot(world, textures, pose, focal, size, samples, everywhere)[:2]


def _shot(
    world: World,
    textures: TextureAtlas,
    pose: np.ndarray,
    focal: float,
    size: tuple[int, int],
    samples: int = 2,
    everywhere=False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with the ray caster's labels (H, W)."""
    textures.require(set(world.textures.ravel().tolist()))
    texture = (textures.texels, textures.offsets)
    return cast_view(
        world.geometry, world.looks, texture, world.light, world.sky, pose, focal, *size, samples, everywhere
    )


def sane(depth: np.ndarray, alone: bool = False) -> bool:
    """Whether a preview depth map shows something at a photographable distance; less of it where it stands `alone`."""
    seen = depth[depth > 0]
    if seen.size < (LEAST_ALONE if alone else LEAST) * depth.size:
        return False
    near, middle = np.quantile(seen, [0.02, 0.5])
    return near > 0.08 and near > 0.12 * middle and seen.min() > 0.03


def draw_series(
    rng: np.random.Generator,
    world: World,
    textures: TextureAtlas,
    stand: Stand,
    focal: float,
    long_side: int,
    views: int,
    motion: tuple[float, float],
):
    """Poses whose previews are sane, the first one at the stand; None when the place does not allow it."""
    kind = str(rng.choice(["orbit", "sidestep", "forward", "free"], p=[0.4, 0.25, 0.1, 0.25]))
    amount = float(np.exp(rng.uniform(*np.log(motion))))
    poses: list[np.ndarray] = []
    for _ in range(ATTEMPTS):
        pose = draw_pose(rng, stand, kind, amount, first=not poses)
        if sane(cast(world, textures, pose, focal * 24 / long_side, (18, 24), samples=1)[1], stand.alone):
            poses.append(pose)
        if len(poses) == views:
            return np.stack(poses)
    return None


def render_scene(
    seed: int,
    size: tuple[int, int],
    views: int = 6,
    style: str = "train",
    motion: tuple[float, float] = MOTION,
    features: SceneFeatures = PLAIN_SCENES,
    photographs: Path | None = None,
    texture_sets: int = 1,
) -> SyntheticScene:
    """A photo series that depends on its arguments alone. `size` (H, W) pixels; fov 40-80 degrees on the long side,
    unless the features say otherwise.

    With a folder of `photographs` every other surface wears a piece of one of them. `texture_sets` times as many
    textures as usual are there to choose from.
    """
    if style not in SEEDS:
        raise InputError(f"style {style!r}", " or ".join(SEEDS), "pass one of the accepted styles")
    rng, extra = (np.random.default_rng([seed + STYLE_OFFSET[style], salt]) for salt in (77, 78))
    textures = atlas(style, photographs, texture_sets)
    polished = features.mirrors if extra.uniform() < 0.5 else 0.0
    in_street, restless = extra.uniform() < features.streets, extra.uniform() < features.movers
    alone = features.showpieces > 0 and extra.uniform() < features.showpieces
    lenses = 0.5 if alone else features.everyday_lenses
    while True:  # a place without room for the series is drawn again; half of all places have it
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        kind = "showpiece" if alone else "street" if in_street else kind
        build = WorldBuilder(rng, textures, extra, polished)
        stand = KINDS[kind](build)
        still = build.count
        movers = add_movers(build, stand, kind, views, extra) if restless and not alone else []
        if style == "foreign":
            relight(build)
        world = build.finish()
        lens = draw_lens(rng, extra, lenses)
        stand, focal = stand.stepped_back(lens / USUAL_LENS) if alone else stand, max(size) * lens
        poses = draw_series(rng, world.first(still), textures, stand, focal, max(size), views, motion)
        if poses is not None and _unobstructed(world, movers, textures, poses, focal * 24 / max(size)):
            break
    zoom = np.exp(rng.normal(0, 0.12, views)) if rng.uniform() < 0.12 else np.ones(views)
    shots = [_shot(at_view(world, movers, k), textures, poses[k], focal * zoom[k], size) for k in range(views)]
    images, depth, label = (np.stack(part) for part in zip(*shots, strict=True))
    moving = on_movers(label, movers, len(world.shapes)) if movers else None
    return SyntheticScene(images, depth, poses, focal * zoom, kind, moving)


def draw_lens(rng: np.random.Generator, extra: np.random.Generator, everyday: float) -> float:
    """A focal length in long sides; `extra` is drawn from only where `everyday` lenses are wanted."""
    focal = 0.5 / np.tan(np.radians(rng.uniform(40, 80)) / 2)
    if everyday == 0:
        return focal
    if extra.uniform() < everyday:
        return USUAL_LENS * float(np.exp(extra.normal(0, 0.13)))
    return float(np.exp(extra.uniform(*np.log([0.55, 2.0]))))


def relight(build: WorldBuilder) -> None:
    """The light of the third style: strong and coloured, with weak fill of the opposite colour."""
    hue = np.array([1.25, 1.0, 0.7]) if build.rng.uniform() < 0.5 else np.array([0.75, 0.95, 1.3])
    build.light[1, :3] *= 1.5 * hue
    build.light[2, :3] *= 0.45 / hue


def _unobstructed(world: World, movers: list[Mover], textures: TextureAtlas, poses: np.ndarray, focal: float) -> bool:
    """Whether no moving thing stands in front of a lens."""
    views = range(len(poses) if movers else 0)
    return all(sane(cast(at_view(world, movers, k), textures, poses[k], focal, (18, 24), samples=1)[1]) for k in views)
