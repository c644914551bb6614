"""Features, matches, tracks: places to a fraction of a pixel, what one geometry explains, one place per view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from track_scene import make_track_scene

from lora3d_splat.images.load import load_view
from lora3d_splat.matching import Features, PairMatches, detect, link, nearest_both_ways, verify


def textured(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of blobs, (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 4, size[0] // 4), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def features_of(picture: Image.Image, path: Path) -> Features:
    picture.convert("RGB").save(path)
    return detect(load_view(path, path.name, 128, 16))


def test_a_shifted_picture_has_shifted_keypoints(tmp_path: Path) -> None:
    """A crop that starts at (24, 16) shows every place 24 pixels to the left and 16 up, to a tenth of a pixel."""
    picture = textured((320, 240))
    whole = features_of(picture, tmp_path / "a.png")
    crop = features_of(picture.crop((24, 16, 320, 240)), tmp_path / "b.png")
    matches, _ = nearest_both_ways(whole, crop)
    gaps = whole.pixels[matches[:, 0]] - crop.pixels[matches[:, 1]] - [24, 16]
    assert len(matches) > 100
    assert np.median(np.abs(gaps)) < 0.1


def test_pixels_are_those_of_the_photograph_and_corner_based(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture enlarged beyond the size that is searched shows everything at twice the coordinates."""
    monkeypatch.setattr("lora3d_splat.matching.features.LONG_SIDE", 320)
    picture = textured((320, 240))
    small = features_of(picture, tmp_path / "a.png")
    large = features_of(picture.resize((640, 480), Image.Resampling.BICUBIC), tmp_path / "b.png")
    matches, _ = nearest_both_ways(small, large)
    assert np.median(np.abs(2 * small.pixels[matches[:, 0]] - large.pixels[matches[:, 1]])) < 0.2


def test_masked_pixels_have_no_keypoints(tmp_path: Path) -> None:
    """The left half of the picture is masked: all keypoints lie to the right, as many as there were before."""
    textured((320, 240)).convert("RGB").save(tmp_path / "a.png")
    view = load_view(tmp_path / "a.png", "a.png", 128, 16)
    mask = np.ones(view.size, bool)
    mask[:, :64] = False
    whole, half = detect(view), detect(replace(view, mask=mask))
    assert half.pixels[:, 0].min() >= 160
    assert len(half.pixels) == (whole.pixels[:, 0] >= 160).sum()


def test_a_plain_wall_has_no_features(tmp_path: Path) -> None:
    assert len(features_of(Image.new("L", (320, 240), 128), tmp_path / "a.png").pixels) == 0


def test_mutual_nearest_neighbours_undo_a_permutation() -> None:
    scene = make_track_scene(1)
    order = np.random.default_rng(1).permutation(300)
    one = scene.features[0]
    other = Features(one.pixels[order], one.size[order], one.descriptors[order])
    matches, _ = nearest_both_ways(one, other)
    assert len(matches) == 300
    assert np.array_equal(order[matches[:, 1]], matches[:, 0])


def test_ambiguous_descriptors_match_nothing() -> None:
    """Two equal candidates fail the ratio test: repeated texture gives no matches rather than wrong ones."""
    one = make_track_scene(1).features[0]
    twice = Features(*(np.concatenate([part, part]) for part in (one.pixels, one.size, one.descriptors)))
    assert len(nearest_both_ways(one, twice)[0]) == 0


def test_verification_keeps_what_one_geometry_explains() -> None:
    """A fifth of the matches is random: at most a few of them survive, nearly all others do."""
    scene = make_track_scene(2, noise=0.2)
    one, two = scene.features[0].pixels, scene.features[1].pixels.copy()
    two[:60] = np.random.default_rng(2).uniform([0, 0], [640, 480], (60, 2))
    inliers, fundamental = verify(one, two, 1.5)
    assert inliers[:60].mean() < 0.1
    assert inliers[60:].mean() > 0.9
    homogeneous = [np.c_[pixels[60:], np.ones(240)] for pixels in (one, two)]
    lines = homogeneous[0] @ fundamental.T
    distance = np.abs((lines * homogeneous[1]).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert np.median(distance) < 0.5


@pytest.mark.parametrize("few", [0, 5, 15])
def test_too_few_matches_verify_nothing(few: int) -> None:
    pixels = np.random.default_rng(0).uniform(0, 100, (few, 2))
    assert not verify(pixels, pixels, 1.0)[0].any()


def test_tracks_run_through_all_views_and_drop_those_entered_twice() -> None:
    """0-1 and 1-2 make one track of three views; a second place in view 2 drops view 2 from it."""
    scene = make_track_scene(3)
    none = np.zeros((3, 3))
    pairs = [
        PairMatches(0, 1, np.array([[0, 0], [1, 1]]), none),
        PairMatches(1, 2, np.array([[0, 0], [1, 1]]), none),
        PairMatches(0, 2, np.array([[1, 7]]), none),
    ]
    tracks = link(scene.features, pairs)
    assert tracks.count == 2
    assert tracks.view.tolist() == [0, 1, 2, 0, 1]
    assert tracks.keypoint.tolist() == [0, 0, 0, 1, 1]
    assert np.allclose(tracks.pixels[2], scene.features[2].pixels[0])
