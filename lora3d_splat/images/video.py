"""A video as photographs: of every stretch of it the sharpest frame, written once as a picture file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lora3d_splat.checksums import sha256
from lora3d_splat.console import stage
from lora3d_splat.errors import InputError
from lora3d_splat.files import atomic_folder
from lora3d_splat.images.load import list_images

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp"})
JUDGED_SIDE = 480
"""Long side, pixels, at which frames are compared: noise counts for little there, blur by hand does not."""
MIDDLE = 0.5
"""Share of a stretch, in its middle, that a frame is chosen from, so that chosen frames keep their distance."""


def photographs(source: Path | str | Sequence[Path | str], frames: int, cache: Path) -> tuple[Path, ...]:
    """Image paths of a folder, a glob or a list (`list_images`), or `frames` frames of a video file.

    Frames lie in a folder of `cache` and are taken from there the next time. Raises InputError where a path does not
    exist, nothing is found, or a video cannot be read.
    """
    if not isinstance(source, (str, Path)):
        return tuple(path for item in source for path in photographs(item, frames, cache)) or list_images(source)
    path = Path(source).expanduser()
    if is_video(path):
        return video_frames(path, frames, cache)
    try:
        return list_images(source)
    except InputError as error:
        videos = sorted(filter(is_video, path.iterdir())) if path.is_dir() else []
        if not videos:
            raise
        names = ", ".join(video.name for video in videos)
        named = f"name the video itself: {videos[0]}"
        raise InputError(f"{error.found}, but {names}", error.accepted, named) from error


def is_video(path: Path) -> bool:
    """Whether it is a file named like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def video_frames(video: Path, count: int, cache: Path) -> tuple[Path, ...]:
    """At most `count` frames in the order of time, each the sharpest in the middle of its stretch; as PNG files."""
    if count < 2:
        raise InputError(f"video_frames={count}", "at least 2 frames", "use 8 to 30")
    folder = cache / "video" / f"{sha256(video)[:32]}-{count}"
    if not folder.is_dir():
        stem = re.sub(r"[^\w.-]+", "_", video.stem)
        with atomic_folder(folder) as unfinished:
            for number, frame in _sharpest(video, count):
                Image.fromarray(frame).save(unfinished / f"{stem}-{number:06d}.png", compress_level=1)
    return tuple(sorted(folder.glob("*.png")))


def sharpness(frame: np.ndarray) -> float:
    """Variance of the Laplacian of an (H, W, 3) uint8 frame, reduced (Pech-Pacheco et al. 2000)."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    ratio = min(1.0, JUDGED_SIDE / max(grey.shape))
    small = cv2.resize(grey, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(small, cv2.CV_32F).var())


def _sharpest(video: Path, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, frame) of the chosen frames; one of them is held at a time, whatever the length."""
    total, decoded = _decoded(video)
    share = MIDDLE if total >= 4 * count else 1.0
    with stage(f"frames of {video.name}", total) as advance:

        def seen() -> Iterator[tuple[int, np.ndarray]]:
            for item in enumerate(decoded):
                yield item
                advance(1)

        def place(item: tuple[int, np.ndarray]) -> float:
            return item[0] * count / total

        # A count of frames may be a little off: what lies beyond it belongs to the last stretch.
        for stretch, items in groupby(seen(), key=lambda item: min(int(place(item)), count - 1)):
            middle = (item for item in items if abs(place(item) - stretch - 0.5) <= share / 2)
            best = max(middle, key=lambda item: sharpness(item[1]), default=None)
            if best is not None:
                yield best


def _decoded(video: Path) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames there are, and all of them, upright, (H, W, 3) uint8."""
    import imageio_ffmpeg

    try:
        total, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
        reader = imageio_ffmpeg.read_frames(str(video))
        width, height = next(reader)["size"]
        first = next(reader)
    except (RuntimeError, OSError, StopIteration, KeyError) as error:
        raise InputError(
            found=f"{video}, of which no frame can be read",
            accepted="a video that ffmpeg decodes, such as MP4 with H.264",
            remedy="copy the file again from its source, convert it, or give photographs",
        ) from error

    def frames() -> Iterator[np.ndarray]:
        yield np.frombuffer(first, np.uint8).reshape(height, width, 3)
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)

    return max(total, 1), frames()
