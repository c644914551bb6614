"""Where the cameras of a ray-cast scene stand: arcs, full orbits, forward walks, straight lines, a room from inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lora3d_splat.synthetic.cameras import look_at
from lora3d_splat.synthetic.render import cast, sane
from lora3d_splat.synthetic.scenes import Stand, room, tabletop
from lora3d_splat.synthetic.textures import atlas
from lora3d_splat.synthetic.world import World, WorldBuilder

STYLE = "train"
Poses = Callable[[np.random.Generator, Stand, int], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """A kind of place, and poses (V, 4, 4) in it."""

    place: Callable[[WorldBuilder], Stand]
    poses: Poses


def stand_up(layout: Layout, rng: np.random.Generator, stand: Stand, world: World, count: int) -> np.ndarray:
    """`count` poses T_world_camera; each of all layouts but the arc is drawn again until it shows something."""
    poses = layout.poses(rng, stand, count)
    if layout.poses is arc:
        return poses
    for index in range(count):
        for _ in range(40):
            if sane(cast(world, atlas(STYLE), poses[index], 24.0, (18, 24), samples=1)[1]):
                break
            poses[index] = layout.poses(rng, stand, count)[index]
    return poses


def arc(rng: np.random.Generator, stand: Stand, count: int) -> np.ndarray:
    """A wobbling arc of 40 to 70 degrees, all looking at the middle."""
    arm = stand.eye - stand.target
    half = np.radians(rng.uniform(20, 35))
    poses = []
    for fraction in np.linspace(-1, 1, count):
        angle = half * fraction + rng.normal(0, 0.03)
        turned = _turned(arm, angle) * (1 + rng.normal(0, 0.06))
        turned[2] += rng.normal(0, 0.08) * np.linalg.norm(arm)
        gaze = stand.target + rng.normal(0, 0.05, 3) * np.linalg.norm(arm)
        poses.append(look_at(stand.target + turned, gaze, rng.normal(0, 0.05)))
    return np.stack(poses)


def orbit(rng: np.random.Generator, stand: Stand, count: int) -> np.ndarray:
    """All around and from above: opposite cameras see different sides of everything."""
    arm = stand.eye - stand.target
    reach = min(float(np.linalg.norm(arm)), 0.75)
    start, lift = np.arctan2(arm[1], arm[0]), rng.uniform(0.6, 0.9)
    poses = []
    for angle in start + np.linspace(0, 2 * np.pi, count, endpoint=False):
        rise = lift + rng.normal(0, 0.08)
        away = np.array([np.cos(angle) * np.cos(rise), np.sin(angle) * np.cos(rise), np.sin(rise)])
        eye = stand.target + reach * (1 + rng.normal(0, 0.05)) * away
        poses.append(look_at(eye, stand.target + rng.normal(0, 0.03, 3) * reach, rng.normal(0, 0.05)))
    return np.stack(poses)


def walk(rng: np.random.Generator, stand: Stand, count: int) -> np.ndarray:
    """Forward along the gaze, three fifths of the way, a hand's breadth off the line."""
    arm = stand.eye - stand.target
    reach = float(np.linalg.norm(arm))
    poses = []
    for fraction in np.linspace(0, 0.6, count):
        eye = stand.eye - fraction * arm + rng.normal(0, 0.02, 3) * reach
        poses.append(look_at(eye, stand.target + rng.normal(0, 0.03, 3) * reach, rng.normal(0, 0.05)))
    return np.stack(poses)


def line(rng: np.random.Generator, stand: Stand, count: int) -> np.ndarray:
    """Sideways on a straight line as long as the distance to the target, nearly parallel gazes."""
    arm = stand.eye - stand.target
    reach, right = float(np.linalg.norm(arm)), np.cross([0.0, 0.0, 1.0], arm)
    right /= max(float(np.linalg.norm(right)), 1e-6)
    poses = []
    for fraction in np.linspace(-0.5, 0.5, count):
        eye = stand.eye + fraction * reach * right
        gaze = eye - arm + rng.normal(0, 0.05, 3) * reach
        poses.append(look_at(eye, gaze, rng.normal(0, 0.05)))
    return np.stack(poses)


def inside(rng: np.random.Generator, stand: Stand, count: int) -> np.ndarray:
    """About a room, gazes wandering over most of one wall."""
    reach = float(np.linalg.norm(stand.eye - stand.target))
    poses = []
    for _ in range(count):
        eye = stand.eye + rng.normal(0, 0.25, 3) * reach * [1, 1, 0.4]
        gaze = stand.target + rng.normal(0, 0.3, 3) * reach * [1, 1, 0.5]
        poses.append(look_at(eye, gaze, rng.normal(0, 0.05)))
    return np.stack(poses)


def _turned(arm: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * arm[0] - sin * arm[1], sin * arm[0] + cos * arm[1], arm[2]])


LAYOUTS: dict[str, Layout] = {
    "arc": Layout(tabletop, arc),
    "orbit": Layout(tabletop, orbit),
    "walk": Layout(tabletop, walk),
    "line": Layout(tabletop, line),
    "room": Layout(room, inside),
}
