"""Which pixels of a photograph count: a file in a folder `masks/`, or the photograph's own alpha channel.

White (128 and above) counts, black does not, as in nerfstudio and COLMAP. A mask is an image with its photograph's
name, with another ending, or with `.png` behind it; the folder lies in the photographs' folder or beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lora3d_splat.errors import InputError

FOLDER = "masks"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
OPAQUE = 128
"""Smallest value, of 255, that counts."""


def find_mask(path: Path) -> Path | None:
    """The mask file of a photograph, None where there is none."""
    for folder in (path.parent / FOLDER, path.parent.parent / FOLDER):
        for name in (path.name + ".png", *(path.stem + ending for ending in ENDINGS)):
            if (folder / name).is_file():
                return folder / name
    return None


def photograph_mask(path: Path, photo: Image.Image) -> Image.Image | None:
    """The upright mask (mode L, the photograph's size) of an opened photograph; None where all pixels count.

    A file comes before the alpha channel. Raises InputError where the file cannot be read.
    """
    file = find_mask(path)
    alpha = _alpha(photo) if file is None else _read(file)
    if alpha is None:
        return None
    upright = ImageOps.exif_transpose(photo).size
    mask = ImageOps.exif_transpose(alpha) if file is not None else alpha
    mask = mask if mask.size == upright else mask.resize(upright, Image.Resampling.NEAREST)
    return None if bool((np.asarray(mask) >= OPAQUE).all()) else mask


def _alpha(photo: Image.Image) -> Image.Image | None:
    if "A" not in photo.getbands() and "transparency" not in photo.info:
        return None
    return ImageOps.exif_transpose(photo).convert("RGBA").getchannel("A")


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as mask:
            return ImageOps.exif_transpose(mask).convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{FOLDER}/{file.name}, a mask that cannot be read ({error})",
            "masks that Pillow can read, white where pixels count",
            "replace the mask, or remove it",
        ) from error
