"""Things that move between the photographs of a series: people and cars do, and pointmaps must live with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora3d_splat.synthetic.furniture import clutter_item
from lora3d_splat.synthetic.scenes import Stand
from lora3d_splat.synthetic.world import World, WorldBuilder, turn


@dataclass(frozen=True)
class Mover:
    """One thing and its place in every view."""

    primitives: slice
    """its numbers in the world"""
    T_view_first: np.ndarray
    """(V, 4, 4) rigid world transforms from where it was built"""


def add_movers(build: WorldBuilder, stand: Stand, kind: str, views: int, rng: np.random.Generator) -> list[Mover]:
    """Put one to three things between the camera and what it looks at, each on a straight path with a turn."""
    usual, build.rng = build.rng, rng
    reach = np.linalg.norm(stand.target - stand.eye)
    movers = []
    for _ in range(int(rng.integers(1, 4))):
        nearer = stand.target + rng.uniform(-0.2, 0.35) * (stand.eye - stand.target)
        base = nearer + rng.normal(0, 0.2, 3) * reach * [1, 1, 0]
        base[2] = {"tabletop": stand.target[2] - 0.05, "floating": nearer[2]}.get(kind, 0.0)
        first = build.count
        clutter_item(build, base, reach * rng.uniform(0.12, 0.35))
        heading = rng.uniform(0, 2 * np.pi)
        path = reach * rng.uniform(0.05, 0.4) * np.array([np.cos(heading), np.sin(heading), 0])
        when, spin = rng.uniform(-1, 1, views), rng.normal(0, 0.5)
        places = np.stack([_place(base, time * path, time * spin) for time in when])
        movers.append(Mover(slice(first, build.count), places))
    build.rng = usual
    return movers


def at_view(world: World, movers: list[Mover], view: int) -> World:
    """The world as a view finds it."""
    for mover in movers:
        world = world.moved(mover.primitives, mover.T_view_first[view])
    return world


def on_movers(label: np.ndarray, movers: list[Mover], primitives: int) -> np.ndarray:
    """(H, W) bool: pixels that show a moving thing, from the ray caster's labels."""
    number = np.where(label < 0, -1, label % (8 * primitives) // 8)
    return np.any([(number >= m.primitives.start) & (number < m.primitives.stop) for m in movers], axis=0)


def _place(centre: np.ndarray, shift: np.ndarray, yaw: float) -> np.ndarray:
    """A turn about the vertical through `centre`, then a shift (4, 4)."""
    T = np.eye(4)
    T[:3, :3] = turn(2, yaw)
    T[:3, 3] = centre + shift - T[:3, :3] @ centre
    return T
