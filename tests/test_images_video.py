"""Video in: which frames are taken, that they are taken once, and what is said of files that are no video."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lora3d_splat.errors import InputError
from lora3d_splat.images.video import photographs, sharpness, video_frames

WIDTH, HEIGHT, FRAMES = 96, 64, 48


def frame(number: int, blurred: bool) -> np.ndarray:
    """A pattern that moves on, as sharp or as blurred as a hand held it."""
    rng = np.random.default_rng(5)
    wall = np.kron(rng.integers(0, 256, (16, 40, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    seen = np.ascontiguousarray(wall[:, number : number + WIDTH])
    return cv2.GaussianBlur(seen, (0, 0), 3.0) if blurred else seen


def write_video(path: Path, sharp: set[int], frames: int = FRAMES, options: tuple[str, ...] = ()) -> Path:
    """All frames blurred but the `sharp` ones."""
    writer = imageio_ffmpeg.write_frames(
        str(path), (WIDTH, HEIGHT), fps=24, codec="libx264", quality=9, macro_block_size=1, output_params=list(options)
    )
    writer.send(None)
    for number in range(frames):
        writer.send(frame(number, number not in sharp).tobytes())
    writer.close()
    return path


def numbers(paths: tuple[Path, ...]) -> list[int]:
    """Frame numbers in the names."""
    return [int(path.stem.rsplit("-", 1)[1]) for path in paths]


def test_of_every_stretch_the_sharpest_frame(tmp_path):
    """Four stretches of twelve frames: the sharp one in the middle of each, in order, upright RGB, full size."""
    video = write_video(tmp_path / "my walk.mp4", {5, 17, 31, 42})
    paths = photographs(video, 4, tmp_path / "cache")
    assert numbers(paths) == [5, 17, 31, 42]
    assert all(path.name.startswith("my_walk-") for path in paths)
    first = np.asarray(Image.open(paths[0]))
    assert first.shape == (HEIGHT, WIDTH, 3)
    off = {number: np.abs(first.astype(int) - frame(number, False)).mean() for number in (4, 5, 6)}
    assert min(off, key=off.get) == 5


def test_frames_stand_upright(tmp_path):
    """A phone held upright writes lying frames and how far to turn them."""
    video, turned = write_video(tmp_path / "walk.mp4", {3}, frames=8), tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-display_rotation", "90", "-i", video, "-c", "copy", turned]
    subprocess.run(command, check=True, capture_output=True)
    lying, upright = (Image.open(photographs(each, 2, tmp_path / "cache")[0]) for each in (video, turned))
    assert upright.size == (HEIGHT, WIDTH)
    off = [np.abs(np.rot90(np.asarray(lying).astype(int), turns) - np.asarray(upright)).mean() for turns in (1, -1)]
    assert min(off) < 2


def test_frames_keep_their_distance(tmp_path):
    """The sharpest frames stand at the joint of two stretches: not both are taken."""
    video = write_video(tmp_path / "walk.mp4", {11, 12})
    found = numbers(photographs(video, 4, tmp_path / "cache"))
    assert len(found) == 4
    assert np.diff(found).min() >= 6


def test_frames_are_taken_once_and_anew_for_another_number(tmp_path):
    """The second time nothing is decoded; more frames than there are give all of them."""
    video = write_video(tmp_path / "walk.mp4", {3}, frames=6)
    paths = photographs(str(video), 4, tmp_path / "cache")
    written = [path.stat().st_mtime_ns for path in paths]
    assert photographs([video], 4, tmp_path / "cache") == paths
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert numbers(video_frames(video, 30, tmp_path / "cache")) == [0, 1, 2, 3, 4, 5]


def test_more_frames_than_counted_belong_to_the_last_stretch(tmp_path, monkeypatch):
    """Players' counts are estimates; as many pictures come out as were asked for."""
    video = write_video(tmp_path / "walk.mp4", {5, 17, 29, 41})
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda _: (FRAMES - 8, 1.6))
    assert len(photographs(video, 4, tmp_path / "cache")) == 4


def test_photographs_and_videos_in_one_list(tmp_path):
    """In the order given."""
    video = write_video(tmp_path / "walk.mp4", {3})
    Image.fromarray(frame(0, False)).save(tmp_path / "img.png")
    paths = photographs([tmp_path / "img.png", video], 2, tmp_path / "cache")
    assert [path.name.split("-")[0] for path in paths] == ["img.png", "walk", "walk"]
    assert photographs(tmp_path, 2, tmp_path / "cache") == (tmp_path / "img.png",), "a folder's photographs come first"


def test_what_is_no_video_is_said(tmp_path):
    """A broken file, one frame only, and a folder that holds nothing but a video."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is not a video")
    with pytest.raises(InputError, match=r"broken\.mp4, of which no frame can be read.*what to do"):
        photographs(broken, 8, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.png"))
    with pytest.raises(InputError, match=r"no images.*but broken\.mp4.*name the video itself"):
        photographs(tmp_path, 8, tmp_path / "cache")
    with pytest.raises(InputError, match="at least 2 frames"):
        photographs(broken, 1, tmp_path / "cache")


def test_sharpness_falls_with_blur():
    """By much."""
    assert sharpness(frame(0, False)) > 10 * sharpness(frame(0, True))
