"""Textures cut from photographs, for whoever has some whose licence allows it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from lora3d_splat.errors import InputError

ENDINGS = {".jpg", ".jpeg", ".png"}


@lru_cache(maxsize=2)
def photographs(folder: Path) -> tuple[np.ndarray, ...]:
    """The pictures of a folder by name, each (H, W, 3) uint8 RGB.

    Raises:
        InputError: no folder, or none of its files is a picture.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in ENDINGS)
    pictures = tuple(cv2.imread(str(f), cv2.IMREAD_COLOR) for f in files)
    if not pictures or any(picture is None for picture in pictures):
        raise InputError(
            f"no pictures, or broken ones, in {folder}",
            "a folder of .jpg or .png files",
            "name a folder of photographs whose licence allows training, or leave it out",
        )
    return tuple(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in pictures)


def photograph_texture(rng: np.random.Generator, pictures: tuple[np.ndarray, ...], side: int) -> np.ndarray:
    """A crop (side, side, 3) of one of the pictures, in [0, 1], faded into itself along two edges so that it tiles.

    Half of the crops keep the picture's colours; the others get some of their own, so that few pictures go far.
    """
    picture = pictures[int(rng.integers(len(pictures)))]
    extent = int(min(picture.shape[:2]) * np.exp(rng.uniform(np.log(0.2), 0)))
    row, column = (int(rng.integers(0, length - extent + 1)) for length in picture.shape[:2])
    crop = np.rot90(picture[row : row + extent, column : column + extent], int(rng.integers(4)))
    fade = side // 8
    image = cv2.resize(np.ascontiguousarray(crop), (side + fade, side + fade), interpolation=cv2.INTER_AREA) / 255
    for _ in range(2):
        share = np.linspace(0, 1, fade)[:, None, None]
        image[:fade] = share * image[:fade] + (1 - share) * image[side:]
        image = image[:side].swapaxes(0, 1)
    return image if rng.uniform() < 0.5 else image * rng.uniform(0.5, 1.4, 3) + rng.uniform(-0.1, 0.1)
