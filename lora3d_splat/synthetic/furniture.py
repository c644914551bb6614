"""Things that stand in scenes: tables, shelves, sofas, pictures, trees, houses. All put themselves into a builder."""

from __future__ import annotations

import numpy as np

from lora3d_splat.synthetic.raycast import BOX, CONE, CYLINDER, SPHERE
from lora3d_splat.synthetic.world import WorldBuilder, turn


def spot(frame: np.ndarray, yaw: float, offset) -> np.ndarray:
    """World position of `offset` (3,) in a frame at `frame` (3,) turned by `yaw`."""
    return np.asarray(frame, float) + turn(2, yaw) @ np.asarray(offset, float)


def clutter_item(build: WorldBuilder, base, size: float) -> None:
    """One small object of about `size` metres standing on the point `base`."""
    rng = build.rng
    kind = rng.choice(["box", "tin", "ball", "books", "cone"], p=[0.4, 0.25, 0.15, 0.12, 0.08])
    look = build.look("clutter", "text", "checks", "stripes", "noise", "cells", "wood", scale=(2 / size / 4, 2 / size))
    yaw = rng.uniform(0, 2 * np.pi)
    half = size * rng.uniform(0.2, 0.6, 3)
    at = np.asarray(base, float)
    if kind == "box":
        build.box(np.add(at, (0, 0, half[2])), half, look, yaw)
    elif kind in ("tin", "cone"):
        half[:2] = half[:2].min()
        build.add(CYLINDER if kind == "tin" else CONE, np.add(at, (0, 0, half[2])), half, look)
    elif kind == "ball":
        half = half if rng.uniform() < 0.5 else np.full(3, half[2])
        build.add(SPHERE, np.add(at, (0, 0, half[2])), half, look, turn(2, yaw))
    else:
        height = 0.0
        for _ in range(int(rng.integers(2, 6))):
            thin = size * rng.uniform(0.04, 0.1)
            cover = build.look("plain", "text", "stripes", scale=(1.0, 4.0))
            build.box(
                np.add(at, (0, 0, height + thin)), (size * 0.4, size * 0.3, thin), cover, yaw + rng.normal(0, 0.2)
            )
            height += 2 * thin


def table(build: WorldBuilder, at, yaw: float, items: int) -> None:
    """A table with four legs and objects on it, standing on the floor at `at`."""
    rng = build.rng
    half_x, half_y, height = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.8)
    look = build.look("wood", "plain", "stripes", "checks", "noise")
    build.box(spot(at, yaw, (0, 0, height - 0.02)), (half_x, half_y, 0.02), look, yaw)
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg = spot(at, yaw, (sx * (half_x - 0.06), sy * (half_y - 0.06), height / 2 - 0.02))
            build.box(leg, (0.03, 0.03, height / 2 - 0.02), look, yaw)
    for _ in range(items):
        base = spot(at, yaw, (rng.uniform(-0.85, 0.85) * half_x, rng.uniform(-0.8, 0.8) * half_y, height))
        clutter_item(build, base, rng.uniform(0.08, 0.35))


def shelf(build: WorldBuilder, at, yaw: float) -> None:
    """An open shelf: back, sides, boards, and things on the boards. Its back is towards local -y."""
    rng = build.rng
    half_x, deep, height = rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.22), rng.uniform(0.9, 2.1)
    look = build.look("wood", "plain")
    back = build.look("wood", "plain", "books", scale=(0.5, 1.5))
    build.box(spot(at, yaw, (0, -deep, height / 2)), (half_x, 0.015, height / 2), back, yaw)
    for side in (-1, 1):
        build.box(spot(at, yaw, (side * half_x, 0, height / 2)), (0.015, deep, height / 2), look, yaw)
    boards = int(rng.integers(3, 6))
    for board in range(boards):
        z = board * height / (boards - 1)
        build.box(spot(at, yaw, (0, 0, z)), (half_x, deep, 0.015), look, yaw)
        if board < boards - 1:
            width, tall = half_x * rng.uniform(0.3, 0.9), height / (boards - 1) * rng.uniform(0.25, 0.42)
            row = spot(at, yaw, (rng.uniform(-1, 1) * (half_x - width), -0.02, z + 0.015 + tall))
            build.box(row, (width, deep * 0.7, tall), build.look("books", "clutter", "text", scale=(1, 3)), yaw)


def sofa(build: WorldBuilder, at, yaw: float) -> None:
    """Seat, back and arms. Its back is towards local -y."""
    half_x = build.rng.uniform(0.5, 1.1)
    look = build.look("plain", "stripes", "noise", "checks", "cells")
    build.box(spot(at, yaw, (0, 0, 0.2)), (half_x, 0.4, 0.2), look, yaw)
    build.box(spot(at, yaw, (0, -0.32, 0.6)), (half_x, 0.1, 0.25), look, yaw)
    for side in (-1, 1):
        build.box(spot(at, yaw, (side * (half_x + 0.08), 0, 0.3)), (0.09, 0.42, 0.3), look, yaw)
        pillow = build.look("clutter", "stripes", "checks", scale=(1, 4))
        build.box(spot(at, yaw, (side * half_x * 0.6, -0.15, 0.55)), (0.2, 0.06, 0.18), pillow, yaw + side * 0.2)


def picture(build: WorldBuilder, at, yaw: float) -> None:
    """A framed picture whose face looks along local +y."""
    half_x, half_z = build.rng.uniform(0.15, 0.6, 2)
    build.box(at, (half_x + 0.03, 0.012, half_z + 0.03), build.look("plain", "wood"), yaw)
    art = build.look("clutter", "noise", "text", "cells", "facade", scale=(0.5 / half_x / 2, 1 / half_x))
    build.box(spot(at, yaw, (0, 0.008, 0)), (half_x, 0.012, half_z), art, yaw)


def tree(build: WorldBuilder, at, height: float) -> None:
    """A trunk with one to four leaf masses."""
    rng = build.rng
    trunk = height * rng.uniform(0.25, 0.5)
    thick = height * 0.04
    build.add(CYLINDER, np.add(at, (0, 0, trunk / 2)), (thick, thick, trunk / 2), build.look("wood", "noise"))
    leaves = build.look("noise", "clutter", "cells", scale=(0.2, 0.8))
    if rng.uniform() < 0.3:
        half = (height - trunk) / 2
        build.add(CONE, np.add(at, (0, 0, trunk + half)), (half * 0.7, half * 0.7, half), leaves)
        return
    for _ in range(int(rng.integers(1, 5))):
        half = height * rng.uniform(0.12, 0.3, 3)
        centre = np.add(at, (*rng.normal(0, height * 0.1, 2), trunk + half[2] * rng.uniform(0.6, 1.4)))
        build.add(SPHERE, centre, half, leaves)


def house(build: WorldBuilder, at, yaw: float) -> None:
    """A block with windows, sometimes with a pitched roof or a doorstep."""
    rng = build.rng
    half = np.array([rng.uniform(2, 6), rng.uniform(2, 5), rng.uniform(1.5, 6)])
    wall = build.look("facade", "bricks", "facade", scale=(0.08, 0.3))
    roof = build.look("bricks", "stripes", "plain", "checks", scale=(0.2, 0.8))
    build.box(spot(at, yaw, (0, 0, half[2])), half, [wall] * 5 + [roof], yaw)
    if rng.uniform() < 0.6:
        side = half[1] / 2**0.5
        build.add(
            BOX,
            spot(at, yaw, (0, 0, 2 * half[2])),
            (half[0] * 1.02, side, side),
            roof,
            turn(2, yaw) @ turn(0, np.pi / 4),
        )
    for _ in range(int(rng.integers(0, 4))):
        base = spot(at, yaw, (rng.uniform(-1, 1) * half[0], half[1] + 0.2, 0))
        clutter_item(build, base, rng.uniform(0.6, 2.0))
