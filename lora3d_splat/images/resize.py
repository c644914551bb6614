"""A photograph made ready for a network: resized with antialiasing, cropped to whole patches, with the exact way back.

The rules are those under which the public DUSt3R networks were trained; the crop is centred, the long side is resized
to a target, and rounding makes the two scale factors differ slightly, which the affine map keeps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from lora3d_splat.errors import InputError
from lora3d_splat.records import PixelAffine

Shape = Literal["free", "no-square", "square"]
"""What a network accepts: any shape; any but squares, which are cut to 4:3 (DUSt3R 512); only squares (DUSt3R 224)."""


def prepare(photo: Image.Image, long_side: int, patch: int, shape: Shape = "free") -> tuple[np.ndarray, PixelAffine]:
    """Resize and crop an upright RGB photograph; returns (H, W, 3) uint8 and the map photograph -> network pixels.

    `long_side` is the target of the longer side, for the shape "square" the side of the square. Raises InputError for
    a photograph so thin that less than one patch of its short side remains.
    """
    resized_size = resized(photo.size, long_side, shape)
    left, top, width, height = centre_crop(resized_size, patch, shape)
    if width == 0 or height == 0:
        raise InputError(
            found=f"an image of {photo.width}x{photo.height} pixels, {resized_size[0]}x{resized_size[1]} when resized",
            accepted=f"images whose short side keeps at least {patch} pixels",
            remedy="crop the image to a less extreme shape or raise the long side",
        )
    smaller = max(photo.size) > max(resized_size)
    filtered = photo.resize(resized_size, Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC)
    pixels = np.asarray(filtered.crop((left, top, left + width, top + height)))
    scale_x, scale_y = resized_size[0] / photo.width, resized_size[1] / photo.height
    return pixels, PixelAffine(scale_x, scale_y, float(-left), float(-top))


def resized(size: tuple[int, int], long_side: int, shape: Shape) -> tuple[int, int]:
    """(width, height) before the crop: the longer side becomes the target; ties of rounding go to the even number."""
    width, height = size
    if shape == "square":  # here the short side becomes the side of the square
        long_side = round(long_side * max(width / height, height / width))
    longest = max(size)
    return max(1, round(width * long_side / longest)), max(1, round(height * long_side / longest))


def centre_crop(size: tuple[int, int], patch: int, shape: Shape) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the largest centred crop in whole patches that the network accepts."""
    centre_x, centre_y = size[0] // 2, size[1] // 2
    width, height = (patch * (2 * centre // patch) for centre in (centre_x, centre_y))
    if shape == "square":
        width = height = min(width, height)
    elif shape == "no-square" and size[0] == size[1]:
        height = patch * (3 * width // 4 // patch)
    return centre_x - width // 2, centre_y - height // 2, width, height
