"""The kinds of scenes, and where a photographer would stand in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lora3d_splat.synthetic.furniture import clutter_item, house, picture, shelf, sofa, spot, table, tree
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
    alone: bool = False
    """whether the target is all there is: long lenses stand farther off, so that it fills the picture"""

    def stepped_back(self, factor: float) -> Stand:
        """From `factor` times as far."""
        return replace(self, eye=self.target + factor * (self.eye - self.target))


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


def terrace(build: WorldBuilder, side: float, length: float) -> None:
    """A row of adjoining houses whose fronts look across the street; `side` is the distance of the fronts, signed."""
    rng, along = build.rng, -length
    while along < length:
        half, deep, high = rng.uniform(2.5, 7), rng.uniform(3, 6), rng.uniform(2.5, 9)
        wall = build.look("facade", "facade", "facade", "bricks", "plain", scale=(0.08, 0.25))
        roof = build.look("bricks", "stripes", "plain")
        out = rng.uniform(0, 0.6)
        build.box((along + half, side + np.sign(side) * (deep - out), high), (half, deep, high), [wall] * 5 + [roof])
        front = side - np.sign(side) * out
        for _ in range(int(rng.integers(0, 4))):  # doors, signs, shop windows
            size = (rng.uniform(0.4, 1.2), 0.06, rng.uniform(0.3, 1.2))
            at = (along + half + rng.uniform(-0.8, 0.8) * half, front, size[2] + rng.uniform(0, 2.5))
            build.box(at, size, build.look("text", "wood", "clutter", "plain", "stripes", scale=(0.3, 1.5)))
        along += 2 * half + (rng.uniform(1, 3) if rng.uniform() < 0.2 else 0)


def car(build: WorldBuilder, at, yaw: float) -> None:
    """Body, cabin and four wheels."""
    half = build.rng.uniform((1.7, 0.75, 0.3), (2.4, 0.95, 0.45))
    paint, glass, tyre = build.look("plain", scale=(0.2, 0.5)), build.look("facade", "plain"), build.look("noise")
    build.box(spot(at, yaw, (0, 0, 0.3 + half[2])), half, paint, yaw)
    cabin = (half[0] * 0.55, half[1] * 0.9, 0.3)
    build.box(spot(at, yaw, (-0.1 * half[0], 0, 0.3 + 2 * half[2] + 0.3)), cabin, glass, yaw)
    for sx in (-0.62, 0.62):
        for sy in (-1, 1):
            hub = spot(at, yaw, (sx * half[0], sy * half[1], 0.32))
            build.add(CYLINDER, hub, (0.32, 0.32, 0.12), tyre, turn(2, yaw) @ turn(0, np.pi / 2))


def street(build: WorldBuilder) -> Stand:
    """Two rows of fronts with pavements, cars, trees and lamp posts; seen along the street or square on."""
    rng = build.rng
    width, length = rng.uniform(4, 9), rng.uniform(25, 50)
    ground = build.look("noise", "cells", "bricks", "checks", scale=(0.1, 0.6))
    build.box((0, 0, -1), (150, 150, 1), ground)
    kerb = build.look("checks", "bricks", "cells", "plain", scale=(0.3, 1.0))
    for side in (-1, 1):
        terrace(build, side * width, length)
        build.box((0, side * (width - 0.9), 0.06), (length, 0.9, 0.06), kerb)
        for _ in range(int(rng.integers(0, 6))):
            car(build, (rng.uniform(-1, 1) * length, side * (width - 2.9), 0), rng.normal(0, 0.05))
        for _ in range(int(rng.integers(0, 5))):
            at = (rng.uniform(-1, 1) * length, side * (width - 1.0), 0)
            if rng.uniform() < 0.5:
                tree(build, at, rng.uniform(2.5, 6))
            else:
                build.add(CYLINDER, np.add(at, (0, 0, 2)), (0.06, 0.06, 2), build.look("plain"))
        for _ in range(int(rng.integers(0, 6))):
            clutter_item(build, (rng.uniform(-1, 1) * length, side * (width - 0.8), 0.12), rng.uniform(0.3, 1.2))
    build.sun((*rng.normal(0, 1, 2), rng.uniform(0.5, 2)), rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.7))
    pale = np.array([0.75, 0.82, 0.9]) * rng.uniform(0.6, 1)
    build.sky = np.stack([pale, np.array([0.15, 0.3, 0.65]) * rng.uniform(0.5, 1.4), np.full(3, rng.uniform(0, 0.9))])
    build.fog(pale, rng.uniform(0, 0.01))
    across, away = rng.uniform(-0.5, 0.5) * width, float(rng.choice([-1, 1]))
    eye = np.array([rng.uniform(-0.5, 0.5) * length, across, rng.uniform(1.2, 2.2)])
    ahead = rng.uniform(0, 4) if rng.uniform() < 0.5 else rng.uniform(6, 14)
    target = np.array([eye[0] + away * ahead, float(rng.choice([-1, 1])) * width, rng.uniform(1.0, 3.5)])
    return Stand(target, eye, 1.5)


def composition(build: WorldBuilder, size: float) -> None:
    """Turned and stacked shapes that hang together, of about `size` metres, standing on the origin."""
    rng = build.rng
    middle = np.array([0, 0, 0.5 * size])
    looks = [build.look(scale=(0.6 / size, 6 / size)) for _ in range(int(rng.integers(2, 6)))]
    for _ in range(int(rng.integers(4, 20))):
        half = size * np.exp(rng.uniform(np.log(0.05), np.log(0.4), 3))
        shape = int(rng.choice([BOX, SPHERE, CYLINDER, CONE], p=[0.55, 0.2, 0.15, 0.1]))
        spin = turn(2, rng.uniform(0, 6.3))
        if rng.uniform() < 0.5:
            spin = spin @ turn(0, rng.uniform(0, 6.3)) @ turn(1, rng.uniform(0, 6.3))
        at = middle + rng.normal(0, 0.25, 3) * size
        at[2] = max(at[2], half[2])
        build.add(shape, at, half, looks[int(rng.integers(len(looks)))], spin)
        middle = 0.7 * middle + 0.3 * at


def showpiece(build: WorldBuilder) -> Stand:
    """One thing alone before an even backdrop, as turntables and studios show it; on a slab or on nothing."""
    rng = build.rng
    kind = str(rng.choice(["composition", "pile", "house", "car", "sofa"], p=[0.4, 0.2, 0.2, 0.1, 0.1]))
    size = {"house": 8.0, "car": 3.0, "sofa": 1.6}.get(kind, 1.0)
    if kind == "composition":
        composition(build, size)
    elif kind == "pile":
        for _ in range(int(rng.integers(3, 12))):
            clutter_item(build, (*rng.normal(0, 0.2, 2), rng.uniform(0, 0.3)), rng.uniform(0.2, 0.6))
    elif kind == "house":
        for _ in range(int(rng.integers(1, 4))):
            house(build, (*rng.normal(0, 2, 2), 0), rng.uniform(0, np.pi))
        tree(build, (*rng.normal(0, 5, 2), 0), rng.uniform(2, 7))
    else:
        (car if kind == "car" else sofa)(build, (0, 0, 0), 0.0)
        clutter_item(build, (*rng.normal(0, 0.3, 2) * size, 0), size * rng.uniform(0.2, 0.5))
    if rng.uniform() < 0.5:
        half = size * rng.uniform(0.5, 1.2)
        shape = BOX if rng.uniform() < 0.6 else CYLINDER
        build.add(shape, (0, 0, -0.05 * size), (half, half, 0.05 * size), build.look(scale=(0.3 / size, 3 / size)))
    build.sun((*rng.normal(0, 1, 2), rng.uniform(0.4, 2)), rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.8))
    backdrop = float(rng.choice([0.0, 1.0, rng.uniform(0, 1)])) * np.exp(rng.normal(0, 0.05, 3))
    build.sky = np.stack([backdrop, backdrop * rng.uniform(0.8, 1), np.zeros(3)])
    build.fog(backdrop, 0.0)
    angle, lift, reach = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 1.1), size * rng.uniform(1.3, 2.2)
    arm = np.array([np.cos(angle) * np.cos(lift), np.sin(angle) * np.cos(lift), np.sin(lift)])
    target = np.array([0, 0, size * rng.uniform(0.25, 0.5)])
    return Stand(target, target + reach * arm, 0.1 * size, alone=True)


KINDS: dict[str, Callable[[WorldBuilder], Stand]] = {
    "room": room,
    "tabletop": tabletop,
    "floating": floating,
    "outdoor": outdoor,
    "street": street,
    "showpiece": showpiece,
}
"""builder of each kind"""
SHARES = {"room": 0.36, "tabletop": 0.28, "floating": 0.16, "outdoor": 0.2}
"""how many of the scenes are of what kind, where nothing else is asked for"""
