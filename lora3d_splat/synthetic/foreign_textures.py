"""Textures of a third style, which neither training nor its validation draws: same uses, other patterns.

Each generator stands in for one of `textures.GENERATORS` and meets the same contract.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from lora3d_splat.synthetic.textures import SIZE, blend, colour, fractal, grid


def marble(rng: Generator) -> np.ndarray:
    """Veins: fractal noise bent through a sine."""
    veins = np.abs(np.sin(rng.uniform(6, 14) * fractal(rng, rng.uniform(1.3, 1.9))))
    return blend(veins ** rng.uniform(0.3, 1.0), colour(rng), colour(rng))


def plaster(rng: Generator) -> np.ndarray:
    """One colour with trowel marks and grit."""
    field = 0.7 * fractal(rng, 1.1, rng.uniform(0.15, 0.5)) + 0.3 * fractal(rng, 0.1)
    return blend(field, c := colour(rng, 0.35), c * rng.uniform(0.6, 0.85))


def tartan(rng: Generator) -> np.ndarray:
    """Crossing bands of three colours."""
    rows, columns = grid()
    image = np.tile(colour(rng), (SIZE, SIZE, 1))
    for _ in range(int(rng.integers(2, 5))):
        count, width, shade = int(rng.integers(1, 6)), rng.uniform(0.08, 0.4), colour(rng)
        for axis in (rows, columns):
            image[(axis * count + rng.uniform()) % 1 < width] *= 0.5
            image[(axis * count + rng.uniform()) % 1 < width] += 0.5 * shade
    return np.clip(image, 0, 1) * (0.85 + 0.15 * fractal(rng, 0.4)[..., None])


def dots(rng: Generator) -> np.ndarray:
    """Staggered discs, each with its own shade."""
    count = 2 * int(rng.integers(2, 7))
    rows, columns = (axis * count for axis in grid())
    columns = columns + 0.5 * (rows.astype(int) % 2)
    radius = np.hypot(rows % 1 - 0.5, columns % 1 - 0.5)
    shade = rng.uniform(0, 1, (count, count))[rows.astype(int), columns.astype(int) % count]
    image = np.where((radius < rng.uniform(0.2, 0.45))[..., None], blend(shade, colour(rng), colour(rng)), colour(rng))
    return image * (0.8 + 0.2 * fractal(rng, 0.8)[..., None])


def shingles(rng: Generator) -> np.ndarray:
    """Overlapping scales with a shadow under each."""
    count = 2 * int(rng.integers(2, 6))
    rows, columns = (axis * count for axis in grid())
    bulge = np.sqrt(np.maximum(0.0, 1 - (2 * ((columns + 0.5 * (rows.astype(int) % 2)) % 1) - 1) ** 2))
    depth = (rows - 0.5 * bulge) % 1
    return blend(depth, base := colour(rng, 0.3), base * rng.uniform(0.3, 0.6)) * (
        0.8 + 0.2 * fractal(rng, 1.0)[..., None]
    )


def terrazzo(rng: Generator) -> np.ndarray:
    """Angular chips of four colours in a light ground."""
    image = np.tile(colour(rng, 0.6), (SIZE, SIZE, 1))
    for _ in range(4):
        chips = fractal(rng, rng.uniform(0.6, 1.1)) + 0.15 * np.abs(fractal(rng, 0.3) - 0.5)
        image = np.where((chips > rng.uniform(0.7, 0.85))[..., None], colour(rng), image)
    return image


def scribbles(rng: Generator) -> np.ndarray:
    """Closed curves of several colours over patches: posters, toys, foliage."""
    image = blend((fractal(rng, 1.2) > 0.5).astype(float), colour(rng), colour(rng))
    rows, columns = grid()
    for _ in range(int(rng.integers(12, 36))):
        v, u = rng.uniform(size=2)
        dv, du = (rows - v + 0.5) % 1 - 0.5, (columns - u + 0.5) % 1 - 0.5
        angle = np.arctan2(dv, du)
        outline = rng.uniform(0.04, 0.3) * (1 + 0.4 * np.sin(int(rng.integers(2, 7)) * angle + rng.uniform(0, 6)))
        gap = np.hypot(dv, du) - outline
        image[gap < 0 if rng.uniform() < 0.5 else np.abs(gap) < rng.uniform(0.004, 0.02)] = colour(rng)
    return image * (0.85 + 0.15 * fractal(rng, 0.5)[..., None])


def contours(rng: Generator) -> np.ndarray:
    """Level lines of a smooth field, coloured by height."""
    field, levels = fractal(rng, rng.uniform(1.4, 2.0)), int(rng.integers(5, 14))
    image = blend(np.floor(field * levels) / levels, colour(rng), colour(rng))
    return np.where((field * levels % 1 < rng.uniform(0.05, 0.2))[..., None], colour(rng), image)


def arches(rng: Generator) -> np.ndarray:
    """Rows of arched windows with ledges."""
    count_v, count_u = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    rows, columns = grid()
    v, u = rows * count_v % 1, columns * count_u % 1 - 0.5
    image = blend(fractal(rng, 0.6), wall := colour(rng, 0.4), wall * 0.7)
    half, top = rng.uniform(0.18, 0.34), rng.uniform(0.3, 0.45)
    inside = (np.abs(u) < half) & (v < 0.85) & ((v > top) | (np.hypot(u, (v - top) * 1.2) < half))
    image = np.where((np.abs(v - 0.9) < 0.03)[..., None], wall * 0.5, image)
    glass = blend(v, colour(rng, 0.05, 0.4), colour(rng, 0.3, 0.8))
    return np.where((inside & (np.abs(u) > 0.02))[..., None], glass, image)


FOREIGN: dict[str, Callable[[Generator], np.ndarray]] = {
    "noise": marble,
    "plain": plaster,
    "stripes": tartan,
    "checks": dots,
    "bricks": shingles,
    "wood": terrazzo,
    "clutter": scribbles,
    "text": dots,
    "cells": contours,
    "books": tartan,
    "facade": arches,
}
"""what stands in for each generator"""
