"""Tileable textures, drawn from a seed: procedural ones, and cut from photographs where a folder of them is given.

Every generator returns (SIZE, SIZE, 3) floats in [0, 1] that repeat without a seam, because surfaces tile them.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from lora3d_splat.synthetic.photographs import photograph_texture, photographs

SIZE = 256
"""side of a texture at its finest level, texels"""
LEVELS = 8
"""mip levels; the coarsest is SIZE >> (LEVELS - 1) texels wide"""
SEEDS = {"train": 11, "heldout": 97, "foreign": 211}
"""held-out scenes are drawn with other textures than training scenes, foreign ones with other patterns and light"""
COUNT = {"train": 144, "heldout": 72, "foreign": 72}

Generator = np.random.Generator


class TextureAtlas:
    """All textures of a style with their mip levels, laid out flat for the ray caster; drawn when first needed.

    With a folder of photographs every other texture is cut from one of them. `sets` multiplies the number of textures.
    """

    def __init__(self, style: str, folder: Path | None = None, sets: int = 1) -> None:
        self.seed = SEEDS[style]
        self.generators: list[Callable[[Generator], np.ndarray]] = []
        self.groups: dict[str, np.ndarray] = {}
        """texture numbers by generator name"""
        for name, (usual, share) in GENERATORS.items():
            generator = usual if style != "foreign" else _foreign(name)
            count = max(3, round(share * COUNT[style])) * sets
            self.groups[name] = np.arange(self.count, self.count + (count if folder is None else 2 * count))
            self.generators += [generator] * count
            if folder is not None:
                self.generators += [partial(photograph_texture, pictures=photographs(folder), side=SIZE)] * count
        sides = np.array([SIZE >> level for level in range(LEVELS)], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sides**2)[:-1]])
        """(LEVELS,) int64 start of each level among the texels"""
        self.texels = np.zeros((self.count, int((sides**2).sum()), 3), np.uint8)
        """(T, sum of squared sides, 3), levels one after the other, finest first"""
        self._drawn: set[int] = set()

    @property
    def count(self) -> int:
        """Number of textures."""
        return len(self.generators)

    def require(self, numbers: set[int]) -> None:
        """Draw the textures of these numbers; each depends on style and number alone."""
        for number in numbers - self._drawn:
            rng = np.random.default_rng([self.seed, number])
            self.texels[number] = mip_levels(self.generators[number](rng))
            self._drawn.add(number)


def _foreign(name: str) -> Callable[[Generator], np.ndarray]:
    """What stands in for a generator in the third style; its module builds on this one."""
    from lora3d_splat.synthetic.foreign_textures import FOREIGN

    return FOREIGN[name]


def colour(rng: Generator, low: float = 0.1, high: float = 0.95) -> np.ndarray:
    """A colour with moderate saturation and brightness in [low, high]."""
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.beta(1.4, 2.2), rng.uniform(low, high)))


def fractal(rng: Generator, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Tileable noise in [0, 1] with amplitude falling as frequency**-slope; `stretch` < 1 draws it out along rows."""
    rows, columns = np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE
    radius = np.hypot(rows[:, None] * stretch, columns)
    radius[0, 0] = np.inf
    spectrum = rng.standard_normal((2, *radius.shape), np.float32)
    field = np.fft.irfft2((spectrum[0] + 1j * spectrum[1]) * radius**-slope)
    return np.clip(0.5 + field * (0.25 / field.std()), 0, 1)


def blend(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mix two colours by a field in [0, 1]."""
    return first + field[..., None] * (second - first)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column texel coordinates in [0, 1)."""
    axis = np.arange(SIZE) / SIZE
    return np.meshgrid(axis, axis, indexing="ij")


def noise(rng: Generator) -> np.ndarray:
    """Two overlaid fractal fields in three colours."""
    image = blend(fractal(rng, rng.uniform(0.8, 1.8)), colour(rng), colour(rng))
    return image + blend(fractal(rng, rng.uniform(0.5, 1.2)) ** 3, np.zeros(3), colour(rng) - 0.5) * 0.6


def plain(rng: Generator) -> np.ndarray:
    """Nearly one colour: painted walls, cloth."""
    return blend(fractal(rng, rng.uniform(0.3, 1.5)), c := colour(rng, 0.3), c * rng.uniform(0.75, 0.95))


def stripes(rng: Generator) -> np.ndarray:
    """Straight or wavy stripes of two or three colours."""
    rows, columns = grid()
    across = int(rng.integers(-8, 9))
    along = int(rng.integers(0 if across else 2, 9))
    phase = across * rows + along * columns + rng.uniform(0, 0.6) * fractal(rng, 2.0)
    image = blend((np.sin(2 * np.pi * phase) > rng.uniform(-0.6, 0.6)).astype(float), colour(rng), colour(rng))
    return image * (0.85 + 0.15 * fractal(rng, 1.0)[..., None])


def checks(rng: Generator) -> np.ndarray:
    """Checks or tiles, each tile with its own shade, with joints."""
    count = int(rng.integers(2, 10))
    rows, columns = (axis * count for axis in grid())
    row, column = rows.astype(int), columns.astype(int)
    shade = rng.uniform(0, 1, (count, count)) if rng.uniform() < 0.6 else np.indices((count, count)).sum(0) % 2
    image = blend(shade[row, column].astype(float), colour(rng), colour(rng))
    joint = (np.minimum(rows % 1, columns % 1) < rng.uniform(0, 0.08))[..., None]
    return np.where(joint, colour(rng), image) * (0.8 + 0.2 * fractal(rng, rng.uniform(0.5, 1.5))[..., None])


def bricks(rng: Generator) -> np.ndarray:
    """Running bond with mortar; every brick differs."""
    courses, per_row = 2 * int(rng.integers(3, 8)), int(rng.integers(2, 6))
    rows, columns = grid()
    course = (rows * courses).astype(int)
    across = (columns + 0.5 / per_row * (course % 2)) * per_row
    shade = rng.uniform(0, 1, (courses, per_row))[course, across.astype(int) % per_row]
    image = blend(shade, base := colour(rng, 0.25, 0.8), base * rng.uniform(0.5, 0.8)) * (
        0.7 + 0.3 * fractal(rng, 0.8)[..., None]
    )
    mortar = (rows * courses % 1 < 0.12) | (across % 1 < 0.12 * per_row / courses)
    return np.where(mortar[..., None], colour(rng, 0.5), image)


def wood(rng: Generator) -> np.ndarray:
    """Planks with drawn-out grain."""
    planks = int(rng.integers(1, 8))
    rows, _ = grid()
    row = (rows * planks).astype(int)
    light = np.array([0.72, 0.5, 0.3]) * rng.uniform(0.5, 1.3) + rng.uniform(-0.06, 0.06, 3)
    grain = 0.6 * fractal(rng, rng.uniform(0.8, 1.3), 0.06) + 0.4 * np.sin(9 * fractal(rng, 2.0, 0.15))
    image = blend(np.clip(grain, 0, 1), light, light * 0.55) * rng.uniform(0.75, 1.1, planks)[row][..., None]
    return np.where((rows * planks % 1 < 0.03)[..., None], image * 0.4, image)


def clutter(rng: Generator) -> np.ndarray:
    """Overlapping rectangles, discs and lines: pictures, packaging, leaves."""
    image = blend(fractal(rng, 1.5), colour(rng), colour(rng))
    rows, columns = grid()
    largest = rng.uniform(0.05, 0.3)
    for _ in range(int(rng.integers(15, 70))):
        v, u = rng.uniform(size=2)
        dv, du = np.abs((rows - v + 0.5) % 1 - 0.5), np.abs((columns - u + 0.5) % 1 - 0.5)
        half = rng.uniform(0.01, largest, 2)
        inside = np.hypot(dv / half[0], du / half[1]) < 1 if rng.uniform() < 0.4 else (dv < half[0]) & (du < half[1])
        image[inside] = colour(rng)
    return image * (0.85 + 0.15 * fractal(rng, 1.0)[..., None])


def text(rng: Generator) -> np.ndarray:
    """Lines of small dark marks on paper."""
    lines = int(rng.integers(5, 16))
    pitch = SIZE // (lines * 2)
    marks = np.zeros((SIZE, SIZE), bool)
    for line in range(lines):
        top, column = line * SIZE // lines + pitch // 2, int(rng.integers(4, 40))
        while column < SIZE * rng.uniform(0.7, 0.98):
            width = int(rng.integers(2, max(3, pitch)))
            up, down = rng.integers(0, pitch // 2 + 1, 2)
            marks[top + up : top + pitch - down, column : column + width] = rng.uniform() < 0.85
            column += width + int(rng.integers(1, pitch + 1)) * (3 if rng.uniform() < 0.15 else 1)
    return blend(marks.astype(float), colour(rng, 0.7), colour(rng, 0.0, 0.35)) * (
        0.9 + 0.1 * fractal(rng, 1)[..., None]
    )


def cells(rng: Generator) -> np.ndarray:
    """Voronoi cells with edges: stone, leather, mosaics."""
    seeds = rng.uniform(size=(int(rng.integers(12, 80)), 2))
    rows, columns = grid()
    nearest, second = np.full((SIZE, SIZE), 9.0), np.full((SIZE, SIZE), 9.0)
    owner = np.zeros((SIZE, SIZE), int)
    for k, (v, u) in enumerate(seeds):
        distance = np.hypot((rows - v + 0.5) % 1 - 0.5, (columns - u + 0.5) % 1 - 0.5)
        second = np.minimum(second, np.maximum(distance, nearest))
        owner = np.where(distance < nearest, k, owner)
        nearest = np.minimum(nearest, distance)
    image = blend(rng.uniform(size=len(seeds))[owner], colour(rng), colour(rng)) * (
        0.75 + 0.25 * fractal(rng, 1)[..., None]
    )
    return np.where((second - nearest < rng.uniform(0.004, 0.02))[..., None], colour(rng), image)


def books(rng: Generator) -> np.ndarray:
    """Shelf boards with book spines between them."""
    shelves = int(rng.integers(2, 5))
    height = SIZE // shelves
    image = np.tile(colour(rng, 0.1, 0.3), (SIZE, SIZE, 1))
    for shelf in range(shelves):
        bottom, column = (shelf + 1) * height - height // 12, 0
        while column < SIZE:
            width, tall = int(rng.integers(5, 22)), int(height * rng.uniform(0.5, 0.85))
            spine = image[bottom - tall : bottom, column : column + width]
            spine[:] = colour(rng)
            spine[tall // 5 : tall // 5 + int(rng.integers(1, 12))] = colour(rng)
            spine[:, :1] *= 0.5
            column += width
        image[bottom : (shelf + 1) * height] = np.array([0.5, 0.36, 0.24])
    return image * (0.85 + 0.15 * fractal(rng, 1.0)[..., None])


def facade(rng: Generator) -> np.ndarray:
    """Rows of framed windows in a wall."""
    count_v, count_u = int(rng.integers(2, 6)), int(rng.integers(2, 6))
    rows, columns = grid()
    v, u = rows * count_v % 1, columns * count_u % 1
    image = blend(fractal(rng, 0.8), wall := colour(rng, 0.35), wall * 0.85)
    half_v, half_u = rng.uniform(0.2, 0.36, 2)
    frame = (np.abs(v - 0.5) < half_v + 0.05) & (np.abs(u - 0.5) < half_u + 0.05)
    pane = (np.abs(v - 0.5) < half_v) & (np.abs(u - 0.5) < half_u) & (np.abs(u - 0.5) > 0.015)
    image = np.where(frame[..., None], colour(rng, 0.5), image)
    shade = rng.uniform(0.1, 0.7, (count_v, count_u))[(rows * count_v).astype(int), (columns * count_u).astype(int)]
    return np.where(pane[..., None], shade[..., None] * np.array([0.8, 0.9, 1.0]), image)


GENERATORS: dict[str, tuple[Callable[[Generator], np.ndarray], float]] = {
    "noise": (noise, 0.17),
    "plain": (plain, 0.12),
    "stripes": (stripes, 0.06),
    "checks": (checks, 0.09),
    "bricks": (bricks, 0.08),
    "wood": (wood, 0.1),
    "clutter": (clutter, 0.17),
    "text": (text, 0.06),
    "cells": (cells, 0.07),
    "books": (books, 0.04),
    "facade": (facade, 0.04),
}
"""generator and share of the atlas"""


def mip_levels(image: np.ndarray) -> np.ndarray:
    """(SIZE, SIZE, 3) -> all levels flattened to (sum, 3) uint8, averaged in linear light (gamma 2)."""
    levels, linear = [], np.clip(image, 0, 1) ** 2
    for _ in range(LEVELS):
        levels.append((np.sqrt(linear) * 255 + 0.5).astype(np.uint8).reshape(-1, 3))
        half = linear.shape[0] // 2
        linear = linear.reshape(half, 2, half, 2, 3).mean((1, 3))
    return np.concatenate(levels)


@lru_cache(maxsize=3)
def atlas(style: str, folder: Path | None = None, sets: int = 1) -> TextureAtlas:
    """The textures of one style, always the same for the same version of this file and the same photographs."""
    return TextureAtlas(style, folder, sets)
