"""Photographs and masks as nerfstudio's datasets can read them: upright, 8 bits, no larger than asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lora3d_splat.files import atomic_file
from lora3d_splat.images.load import HEIF_SUFFIXES, open_upright, upright_mask
from lora3d_splat.images.masks import OPAQUE
from lora3d_splat.images.straighten import resampled, source_pixels
from lora3d_splat.records import PixelAffine, View

EXIF_ORIENTATION = 0x0112
WHOLE = PixelAffine(1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class PreparedPhotograph:
    """A file to train on, and how its pixels relate to the original's: u = scale_x * u_original."""

    path: Path
    width: int
    height: int
    scale_x: float
    scale_y: float


def prepare_photograph(view: View, long_side: int, folder: Path) -> PreparedPhotograph:
    """The original where it is fit as it is; else a lossless copy in `folder`, made once.

    A lens's distortion (`view.radial`) is taken out of the copy, which shows what a pinhole camera sees.
    Pixels are corner-based, so a resize scales focal length and principal point alike, with no half-pixel shift.
    """
    ratio = min(1.0, long_side / max(view.width, view.height))
    width, height = max(1, round(view.width * ratio)), max(1, round(view.height * ratio))
    scales = width / view.width, height / view.height
    if ratio == 1.0 and not view.radial and _plain(view.path):
        return PreparedPhotograph(view.path.absolute(), width, height, *scales)
    lens = f"-{view.radial:.8f}" if view.radial else ""
    copy = folder / f"{view.digest}-{width}x{height}{lens}.png"
    if not _holds(copy, (width, height)):
        photo = open_upright(view.path)
        if view.radial:
            places = source_pixels(view, WHOLE, (view.height, view.width), view.radial)
            photo = Image.fromarray(resampled(np.asarray(photo), places, cv2.INTER_CUBIC))
        with atomic_file(copy) as temporary:
            photo.resize((width, height), Image.Resampling.LANCZOS).save(temporary, format="PNG", compress_level=3)
    return PreparedPhotograph(copy.absolute(), width, height, *scales)


def prepare_mask(view: View, photograph: PreparedPhotograph, folder: Path) -> Path:
    """A file of the prepared photograph's size, white where pixels count: everywhere, if the view has no mask."""
    size = (photograph.width, photograph.height)
    mask = None if view.mask is None else upright_mask(view.path)
    counted = np.full(size[::-1], 255, np.uint8)
    if mask is not None:
        counted = np.where(np.asarray(mask.resize(size, Image.Resampling.NEAREST)) >= OPAQUE, 255, 0).astype(np.uint8)
    if view.radial:
        affine = PixelAffine(photograph.scale_x, photograph.scale_y, 0.0, 0.0)
        counted = resampled(counted, source_pixels(view, affine, size[::-1], view.radial), cv2.INTER_NEAREST)
    file = folder / f"mask-{hashlib.sha256(counted.tobytes()).hexdigest()[:32]}-{size[0]}x{size[1]}.png"
    if not _holds(file, size):
        with atomic_file(file) as temporary:
            Image.fromarray(counted).save(temporary, format="PNG")
    return file.absolute()


def _plain(path: Path) -> bool:
    """Whether reading the file without further care gives the upright 8-bit RGB picture."""
    if path.suffix.lower() in HEIF_SUFFIXES:
        return False
    with Image.open(path) as photo:
        return photo.mode == "RGB" and photo.getexif().get(EXIF_ORIENTATION, 1) == 1


def _holds(path: Path, size: tuple[int, int]) -> bool:
    try:
        with Image.open(path) as photo:
            return photo.size == size
    except OSError:
        return False
