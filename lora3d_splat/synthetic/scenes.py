"""The kinds of scenes, and where a photographer would stand in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lora3d_splat.synthetic.furniture import clutter_item, house, picture, shelf, sofa, table, tree
from lora3d_splat.synthetic.raycast import BOX, CONE, CYLINDER, SPHERE
from lora3d_splat.synthetic.world import WorldBuilder, turn


@dataclass(frozen=True)
class Stand:
    """Where the camera may be and what it looks at (world frame, metres)."""

    target: np.ndarray
    """(3,) centre of interest"""
    eye: np.ndarray
    """(3,) first camera position"""
    spread: float
    """how far the gaze wanders around the target"""


def shell(build: WorldBuilder, half: np.ndarray) -> None:
    """Floor, walls and ceiling of a room with its floor at z = 0."""
    walls = [build.look("plain", "plain", "noise", "bricks", "wood", "stripes", "cells", scale=(0.2, 1.0))] * 4
    if build.rng.uniform() < 0.4:
        walls[int(build.rng.integers(4))] = build.look("books", "bricks", "clutter", "facade", scale=(0.2, 0.6))
    floor = build.look("wood", "checks", "noise", "cells", "plain", "stripes", scale=(0.3, 1.2))
    build.box((0, 0, half[2]), half, [*walls, floor, build.look("plain", "plain", "stripes", "checks")])
    lamp = np.append(build.rng.uniform(-0.7, 0.7, 2) * half[:2], half[2] * build.rng.uniform(1.4, 1.9))
    build.lamp(lamp, half[2] ** 2 * build.rng.uniform(0.5, 2.0), build.rng.uniform(0.25, 0.8))


def against_wall(build: WorldBuilder, half: np.ndarray, gap: float) -> tuple[np.ndarray, float]:
    """A floor position `gap` metres off a random wall, and the yaw that faces the room."""
    side = int(build.rng.integers(4))
    along = build.rng.uniform(-0.8, 0.8)
    at, yaw = [
        ((along * half[0], gap - half[1]), 0.0),
        ((half[0] - gap, along * half[1]), np.pi / 2),
        ((along * half[0], half[1] - gap), np.pi),
        ((gap - half[0], along * half[1]), -np.pi / 2),
    ][side]
    return np.array([*at, 0.0]), yaw


def room(build: WorldBuilder) -> Stand:
    """A furnished room seen from inside."""
    rng = build.rng
    half = np.array([*rng.uniform(1.5, 3.5, 2), rng.uniform(1.15, 1.6)])
    shell(build, half)
    for _ in range(int(rng.integers(2, 6))):
        at, yaw = against_wall(build, half, 0.25)
        shelf(build, at, yaw)
    for _ in range(int(rng.integers(0, 3))):
        sofa(build, *against_wall(build, half, 0.5))
    for _ in range(int(rng.integers(1, 3))):
        at = np.array([*rng.uniform(-0.6, 0.6, 2) * half[:2], 0])
        table(build, at, rng.uniform(0, np.pi), int(rng.integers(1, 7)))
    for _ in range(int(rng.integers(2, 7))):
        at, yaw = against_wall(build, half, 0.02)
        picture(build, np.add(at, (0, 0, rng.uniform(1.0, 1.8))), yaw)
    for _ in range(int(rng.integers(2, 8))):
        clutter_item(build, np.append(rng.uniform(-0.9, 0.9, 2) * half[:2], 0), rng.uniform(0.2, 0.8))
    target = np.array([*rng.uniform(-0.9, 0.9, 2) * half[:2], rng.uniform(0.3, 1.4)])
    eye = np.array([*rng.uniform(-0.85, 0.85, 2) * half[:2], rng.uniform(0.8, 1.8)])
    return Stand(target, eye, 0.5)


def tabletop(build: WorldBuilder) -> Stand:
    """Things on a table (or the floor), circled at arm's length."""
    rng = build.rng
    shell(build, np.array([*rng.uniform(1.2, 3.5, 2), rng.uniform(1.2, 1.8)]))
    centre = np.append(rng.uniform(-0.5, 0.5, 2), 0)
    height = 0.0
    if rng.uniform() < 0.7:
        height = rng.uniform(0.4, 0.8)
        look = build.look("wood", "plain", "checks", "noise", "cells", "stripes", "text")
        half = (*rng.uniform(0.35, 0.9, 2), height / 2)
        build.box(np.add(centre, (0, 0, height / 2)), half, look, rng.uniform(0, np.pi))
    for _ in range(int(rng.integers(3, 13))):
        base = centre + np.append(rng.normal(0, 0.2, 2), height)
        clutter_item(build, base, rng.uniform(0.08, 0.4))
    target = np.add(centre, (0, 0, height + rng.uniform(0, 0.15)))
    angle, lift, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.0), rng.uniform(0.5, 1.2)
    eye = target + reach * np.array([np.cos(angle) * np.cos(lift), np.sin(angle) * np.cos(lift), np.sin(lift)])
    return Stand(target, eye, 0.1)


def floating(build: WorldBuilder) -> Stand:
    """Turned shapes hanging in a room: geometry without habits."""
    rng = build.rng
    half = rng.uniform(1.2, 4.0, 3)
    shell(build, half)
    for _ in range(int(rng.integers(6, 26))):
        size = rng.uniform(0.08, 0.3) * half.min() * 2
        extent = size * rng.uniform(0.15, 0.7, 3)
        spin = turn(2, rng.uniform(0, 6.3)) @ turn(0, rng.uniform(0, 6.3)) @ turn(1, rng.uniform(0, 6.3))
        centre = rng.uniform(-0.85, 0.85, 3) * half + [0, 0, half[2]]
        shape = int(rng.choice([BOX, SPHERE, CYLINDER, CONE], p=[0.5, 0.2, 0.2, 0.1]))
        build.add(shape, centre, extent, build.look(scale=(0.3 / size, 1.5 / size)), spin)
    target = rng.uniform(-0.5, 0.5, 3) * half + [0, 0, half[2]]
    return Stand(target, rng.uniform(-0.85, 0.85, 3) * half + [0, 0, half[2]], 0.4)


def outdoor(build: WorldBuilder) -> Stand:
    """Ground with houses, trees, boulders and parked boxes under a sky."""
    rng = build.rng
    build.box((0, 0, -1), (150, 150, 1), build.look("noise", "cells", "checks", "bricks", "clutter", scale=(0.05, 0.5)))
    for _ in range(int(rng.integers(0, 5))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(25, 90)
        half = (*rng.uniform(10, 30, 2), rng.uniform(2, 9))
        build.add(
            SPHERE, (reach * np.cos(angle), reach * np.sin(angle), 0), half, build.look("noise", scale=(0.02, 0.1))
        )
    for _ in range(int(rng.integers(1, 7))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(6, 25)
        house(build, (reach * np.cos(angle), reach * np.sin(angle), 0), rng.uniform(0, np.pi))
    for _ in range(int(rng.integers(2, 14))):
        tree(build, (*rng.normal(0, 8, 2), 0), rng.uniform(1.5, 7))
    for _ in range(int(rng.integers(3, 14))):
        clutter_item(build, (*rng.normal(0, 4, 2), 0), rng.uniform(0.3, 2.5))
    build.sun((*rng.normal(0, 1, 2), rng.uniform(0.4, 2)), rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.7))
    pale = np.array([0.75, 0.82, 0.9]) * rng.uniform(0.6, 1)
    build.sky = np.stack([pale, np.array([0.15, 0.3, 0.65]) * rng.uniform(0.5, 1.4), np.full(3, rng.uniform(0, 0.9))])
    build.fog(pale, rng.uniform(0, 0.012))
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(4, 14)
    eye = np.array([reach * np.cos(angle), reach * np.sin(angle), rng.uniform(1.0, 3.0)])
    return Stand(np.append(rng.normal(0, 2, 2), rng.uniform(0.5, 2.5)), eye, 1.5)


KINDS: dict[str, tuple[Callable[[WorldBuilder], Stand], float]] = {
    "room": (room, 0.36),
    "tabletop": (tabletop, 0.28),
    "floating": (floating, 0.16),
    "outdoor": (outdoor, 0.2),
}
"""builder of each kind and its share of scenes"""
