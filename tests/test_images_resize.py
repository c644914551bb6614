"""Image preparation: the published rules, whole patches, and an exact way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora3d_splat.errors import InputError
from lora3d_splat.images.resize import centre_crop, prepare, resized

FIXTURE = Path(__file__).parents[1].parent / "shared" / "spec" / "fixtures" / "preprocess.npz"


def synthetic_image(width: int, height: int) -> Image.Image:
    """The formula image of the published fixtures."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))

    def triangle(k: np.ndarray) -> np.ndarray:
        return np.minimum(255, np.abs(np.mod(k, 512) - 256))

    red = triangle(3 * x + 2 * y)
    green = triangle(2 * x - 5 * y + 40 * (((x // 32) + (y // 32)) % 2))
    blue = triangle(x * x // 64 + y)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


@pytest.mark.skipif(not FIXTURE.exists(), reason="the published fixtures are not on this machine")
def test_preparation_reproduces_the_published_cases():
    """Shapes equal, sampled pixels within one grey level (Pillow versions), for all cases of both networks."""
    with np.load(FIXTURE) as fixture:
        cases = json.loads(str(fixture["meta_json"]))["cases"]
        arrays = [fixture[key] for key in sorted(key for key in fixture.files if key.endswith("_u8"))]
    for case, expected in zip(cases, arrays, strict=True):
        size, (width, height) = case["size"], case["in_wh"]
        shape = "square" if size == 224 else "free" if case["square_ok"] else "no-square"
        image, _ = prepare(synthetic_image(width, height), size, 16, shape)
        assert list(image.shape[:2]) == list(case["out_hw"]), case
        assert (
            np.abs(image[:: case["sample_stride"], :: case["sample_stride"]].astype(int) - expected.astype(int)).max()
            <= 1
        ), case


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 1001), (300, 300), (97, 160), (4000, 1111)])
@pytest.mark.parametrize(("long_side", "patch"), [(512, 16), (224, 8), (256, 16), (336, 14)])
def test_crop_is_whole_centred_patches_inside_the_resized_image(size, long_side, patch):
    """Sides are positive multiples of the patch, at most one patch is lost, margins differ by at most one pixel."""
    width, height = resized(size, long_side, "free")
    left, top, crop_width, crop_height = centre_crop((width, height), patch, "free")
    assert max(width, height) == long_side
    for offset, kept, whole in ((left, crop_width, width), (top, crop_height, height)):
        assert kept % patch == 0
        assert 0 < kept <= whole < kept + patch + 1
        assert offset >= 0
        assert abs(offset - (whole - kept - offset)) <= 1


def test_affine_finds_a_feature_of_the_photograph():
    """A bright disc drawn at a known photograph position appears where the affine map says, to 0.1 pixel."""
    y, x = np.mgrid[:600, :900] + 0.5
    spot = 255 * np.exp(-((x - 612.5) ** 2 + (y - 271.25) ** 2) / (2 * 12.0**2))
    photo = Image.fromarray(np.repeat(spot.round().astype(np.uint8)[..., None], 3, axis=2))
    image, affine = prepare(photo, 224, 16)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weight = image[..., 0].astype(float)
    found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
    expected = 612.5 * affine.scale_x + affine.offset_x, 271.25 * affine.scale_y + affine.offset_y
    assert found == pytest.approx(expected, abs=0.1)


def test_squares_are_cut_only_where_the_network_wants_it():
    """A square stays square ('free'), becomes 4:3 ('no-square'), and any shape becomes a square ('square')."""
    photo = Image.new("RGB", (700, 700))
    assert prepare(photo, 512, 16, "free")[0].shape[:2] == (512, 512)
    assert prepare(photo, 512, 16, "no-square")[0].shape[:2] == (384, 512)
    assert prepare(Image.new("RGB", (640, 400)), 224, 16, "square")[0].shape[:2] == (224, 224)


def test_extreme_shapes_are_refused_with_a_sentence():
    """Less than one patch of the short side cannot be used, and the message says what to do."""
    with pytest.raises(InputError, match="crop the image"):
        prepare(Image.new("RGB", (2000, 20)), 256, 16)
