"""Photographs in: find them, read them upright, and say which could not be used and why."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lora3d_splat.errors import InputError
from lora3d_splat.images.exif import camera_from_exif, focal_from_exif
from lora3d_splat.images.masks import OPAQUE, photograph_mask
from lora3d_splat.images.resize import Shape, prepare
from lora3d_splat.records import View

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""What phones write; read where the package pillow-heif is there, which is no dependency: its wheels hold GPL code."""
IMAGE_SUFFIXES = HEIF_SUFFIXES | {
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".jfif", ".avif",
}  # fmt: skip
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on truncated, damaged or hostile files."""


@dataclass(frozen=True)
class LoadedViews:
    """The usable photographs, and (file, reason) of those left out."""

    views: tuple[View, ...]
    left_out: tuple[tuple[str, str], ...]


def list_images(source: Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    """Image paths of a folder or a glob in natural order (img2 before img10), of a list in the order given.

    In a folder only files named like images count. Raises InputError where a path does not exist or nothing is found.
    """
    if not isinstance(source, (str, Path)):
        paths = tuple(path for item in source for path in list_images(item))
        if not paths:
            raise InputError("an empty list of images", "at least two photographs", "name the photographs or a folder")
        return paths
    path = Path(source).expanduser()
    if path.is_dir():
        return _nonempty(source, [entry for entry in path.iterdir() if _is_image_name(entry)])
    if path.exists():
        return (path,)
    if glob.has_magic(str(path)):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        return _nonempty(source, [match for match in matches if _is_image_name(match)])
    raise InputError(
        found=f"the path {source}, which does not exist",
        accepted="a folder of photographs, a list of image files, or a glob such as 'photos/*.jpg'",
        remedy="check the spelling of the path",
    )


def load_views(
    paths: Sequence[Path],
    long_side: int,
    patch_size: int,
    root: Path | None = None,
    minimum: int = 2,
    shape: Shape = "free",
    masked: bool = True,
) -> LoadedViews:
    """Read photographs of any mixture of sizes and orientations at network resolution.

    A file that cannot be read and every later copy of a photograph (same bytes, or the same pixels in another file)
    is left out with a reason. `masked` honours masks and alpha channels.
    `root` is what the views' names are relative to (default: the folder they share).
    Raises InputError when fewer than `minimum` remain.
    """
    root = root.absolute() if root is not None else _shared_folder(paths)
    views: list[View] = []
    left_out: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for path in paths:
        file = _relative_name(path, root)
        try:
            view = load_view(path, file, long_side, patch_size, shape, masked)
        except InputError as error:
            left_out.append((file, error.found.removeprefix(f"{path.name}: ")))
            continue
        keys = (view.digest, _pixel_digest(view))
        twin = next((seen[key] for key in keys if key in seen), None)
        if twin is not None:
            left_out.append((file, f"the same photograph as {twin}"))
            continue
        seen.update(dict.fromkeys(keys, file))
        views.append(view)
    if len(views) < minimum:
        raise _too_few(views, left_out, minimum)
    return LoadedViews(tuple(views), tuple(left_out))


def load_view(
    path: Path, file: str, long_side: int, patch_size: int, shape: Shape = "free", masked: bool = True
) -> View:
    """Read one photograph; raises InputError whose `found` says what is wrong with it."""
    opened = _open(path)
    photo = opened.photo
    image, affine = prepare(photo, long_side, patch_size, shape)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mask = None
    if masked and opened.mask is not None:
        mask = prepare(opened.mask.convert("RGB"), long_side, patch_size, shape)[0][..., 0] >= OPAQUE
    return View(file, path, photo.width, photo.height, image, affine, digest, opened.focal_hint, opened.camera, mask)


def open_upright(path: Path) -> Image.Image:
    """The photograph as 8-bit RGB with its EXIF orientation applied; raises InputError where it cannot be read."""
    return _open(path).photo


def upright_mask(path: Path) -> Image.Image | None:
    """The photograph's mask (mode L) in its upright size, white where pixels count; None where all do."""
    return _open(path).mask


@dataclass(frozen=True)
class _Opened:
    """A photograph as it was read, upright."""

    photo: Image.Image
    mask: Image.Image | None
    focal_hint: float | None
    camera: str


def _open(path: Path) -> _Opened:
    if path.suffix.lower() in HEIF_SUFFIXES:
        _provide_heif(path)
    try:
        with Image.open(path) as photo:
            focal_hint, camera = focal_from_exif(photo), camera_from_exif(photo)
            photo.load()
            mask = photograph_mask(path, photo)
            return _Opened(_eight_bit(ImageOps.exif_transpose(photo)), mask, focal_hint, camera)
    except READ_ERRORS as error:
        raise InputError(
            found=f"{path.name}: {_why_unreadable(path, error)}",
            accepted="photographs that Pillow can read: JPEG, PNG, WebP, TIFF, BMP",
            remedy="copy the file again from its source, convert it, or remove it",
        ) from error


def _provide_heif(path: Path) -> None:
    """Let Pillow read HEIF; raises InputError where the package for it is missing."""
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            found=f"{path.name}: HEIF, which needs the package pillow-heif (pip install pillow-heif)",
            accepted="photographs that Pillow can read: JPEG, PNG, WebP, TIFF, BMP; HEIF with pillow-heif",
            remedy="pip install pillow-heif (its wheels hold GPL code), or convert the photographs to JPEG",
        ) from error
    register_heif_opener()


def _eight_bit(photo: Image.Image) -> Image.Image:
    """RGB 8 bit; 16-bit grey is scaled, not clipped."""
    if photo.mode.startswith("I;16"):
        photo = photo.point(lambda value: value / 256).convert("L")
    return photo.convert("RGB")


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, whatever its name says"
    if "truncated" in str(error).lower():
        return "the image is cut short (truncated file)"
    return f"cannot be read ({str(error) or type(error).__name__})"


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _nonempty(source: Path | str, paths: list[Path]) -> tuple[Path, ...]:
    if not paths:
        raise InputError(
            found=f"no images in {source}",
            accepted=f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))}",
            remedy="point to the folder that holds the photographs themselves",
        )
    return tuple(sorted(paths, key=_natural_key))


def _natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Numbers inside names compare as numbers; the plain path settles ties such as 01 and 1."""
    parts = re.findall(r"\d+|\D+", str(path).lower())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), str(path)


def _shared_folder(paths: Sequence[Path]) -> Path | None:
    return Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else None


def _relative_name(path: Path, root: Path | None) -> str:
    absolute = path.absolute()
    return absolute.relative_to(root).as_posix() if root is not None and absolute.is_relative_to(root) else path.name


def _pixel_digest(view: View) -> str:
    """Equal for files that show the same pixels, for instance one saved again without loss."""
    return hashlib.sha256(f"{view.width}x{view.height} {view.size}".encode() + view.image.tobytes()).hexdigest()


def _too_few(views: list[View], left_out: list[tuple[str, str]], minimum: int) -> InputError:
    count = {0: "no usable photograph", 1: "one usable photograph"}.get(len(views), f"{len(views)} usable photographs")
    names = "; ".join(reason if reason.startswith(file) else f"{file}: {reason}" for file, reason in left_out)
    return InputError(
        found=f"{count}" + (f" (left out: {names})" if names else ""),
        accepted=f"at least {minimum} different, readable photographs of one scene",
        remedy="add photographs that overlap with these, or replace the files that were left out",
    )
