"""Photographs in: order, orientation, focal hints, and files that cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from lora3d_splat.errors import InputError
from lora3d_splat.images.load import list_images, load_views, open_upright


def photograph(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth random image that survives JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good photographs named so that text order and natural order differ."""
    for number in (1, 2, 10):
        photograph(number).save(tmp_path / f"img{number}.jpg")
    return tmp_path


def test_folders_globs_and_lists_name_the_same_images(folder):
    """img2 precedes img10, whatever way the images are given; a list keeps the user's order."""
    names = ["img1.jpg", "img2.jpg", "img10.jpg"]
    assert [path.name for path in list_images(folder)] == names
    assert [path.name for path in list_images(str(folder / "*.jpg"))] == names
    assert [path.name for path in list_images([folder / "img10.jpg", folder / "img1.jpg"])] == ["img10.jpg", "img1.jpg"]


def test_files_that_are_no_images_by_name_are_ignored(folder):
    """Notes, JSON files, hidden files and folders beside the photographs are no business of ours."""
    for name in ("notes.txt", "scene.json", ".DS_Store", "._img1.jpg"):
        (folder / name).write_text("x")
    (folder / "sub.jpg").mkdir()
    assert len(list_images(folder)) == 3


@pytest.mark.parametrize("source", ["absent", "absent/*.jpg", "."])
def test_nothing_found_is_an_error_with_a_remedy(tmp_path, source):
    """A missing path, a glob without matches and an empty folder each raise InputError."""
    with pytest.raises(InputError, match="what to do"):
        list_images(tmp_path / source)


def test_bad_files_are_named_and_the_rest_goes_on(folder):
    """Text, truncated, empty and repeated files are left out with their reason; three good ones remain."""
    whole = (folder / "img1.jpg").read_bytes()
    (folder / "a_copy.jpg").write_bytes(whole)
    Image.open(folder / "img2.jpg").save(folder / "z_same_pixels.png")
    (folder / "text.jpg").write_text("this is not a photograph")
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    loaded = load_views(list_images(folder), 64, 16)
    reasons = dict(loaded.left_out)
    assert [view.file for view in loaded.views] == ["a_copy.jpg", "img2.jpg", "img10.jpg"]
    assert reasons["img1.jpg"] == "the same photograph as a_copy.jpg"
    assert reasons["z_same_pixels.png"] == "the same photograph as img2.jpg"
    assert "not an image" in reasons["text.jpg"]
    assert "empty" in reasons["empty.png"]
    assert "truncated" in reasons["truncated.jpg"]
    assert not any(file in reason for file, reason in loaded.left_out)  # the name is the key; said once is enough


def test_too_few_photographs_say_what_was_left_out(tmp_path):
    """One usable photograph and one text file raise InputError that names the text file."""
    photograph(0).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"one usable photograph \(left out: bad\.jpg"):
        load_views(list_images(tmp_path), 64, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """However the file stores it, the bright corner of the upright photograph is at the top left."""
    upright = Image.fromarray(np.zeros((48, 80, 3), np.uint8))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose methods that store it that way
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    photo = open_upright(tmp_path / "photo.png")
    assert photo.size == (80, 48)
    np.testing.assert_array_equal(np.asarray(photo), np.asarray(upright))


def exif_photograph(path: Path, size: tuple[int, int], tags: dict[int, object]) -> Path:
    """A JPEG with the given tags in its EXIF block."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    photograph(3, *size).save(path, exif=exif)
    return path


def test_focal_hint_of_the_35mm_equivalent(tmp_path):
    """36 mm on a 3:2 image: the long side is 36 mm wide in full frame, so the focal length is the width."""
    path = exif_photograph(tmp_path / "a.jpg", (150, 100), {ExifTags.Base.FocalLengthIn35mmFilm: 36})
    assert load_views([path], 64, 16, minimum=1).views[0].focal_hint == pytest.approx(150.0, rel=1e-6)


def test_focal_hint_of_the_sensor(tmp_path):
    """10 mm at 5080 pixels per inch is 2000 pixels on the sensor's 3000, 100 on a file 150 pixels wide."""
    tags = {
        ExifTags.Base.FocalLength: IFDRational(10, 1),
        ExifTags.Base.FocalPlaneXResolution: IFDRational(5080, 1),
        ExifTags.Base.FocalPlaneResolutionUnit: 2,
        ExifTags.Base.ExifImageWidth: 3000,
    }
    path = exif_photograph(tmp_path / "b.jpg", (150, 100), tags)
    assert load_views([path], 64, 16, minimum=1).views[0].focal_hint == pytest.approx(100.0, rel=1e-6)


@pytest.mark.parametrize(
    "tags", [{}, {ExifTags.Base.FocalLengthIn35mmFilm: 0}, {ExifTags.Base.FocalLength: IFDRational(0, 0)}]
)
def test_no_focal_hint_where_exif_says_nothing(tmp_path, tags):
    """Absent and zero values are unknown, not zero."""
    assert (
        load_views([exif_photograph(tmp_path / "c.jpg", (150, 100), tags)], 64, 16, minimum=1).views[0].focal_hint
        is None
    )


def test_mixed_sizes_keep_their_own_records(tmp_path):
    """Portrait, landscape and 16-bit grey in one set: each view has its own size, affine map and name."""
    (tmp_path / "sub").mkdir()
    photograph(1, 96, 64).save(tmp_path / "wide.jpg")
    photograph(2, 60, 120).save(tmp_path / "sub" / "tall.png")
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    paths = [tmp_path / "wide.jpg", tmp_path / "sub" / "tall.png", tmp_path / "deep.png"]
    wide, tall, deep = load_views(paths, 64, 8).views
    assert (wide.file, tall.file) == ("wide.jpg", "sub/tall.png")
    assert (wide.size, tall.size, deep.size) == ((40, 64), (64, 32), (64, 64))
    assert (tall.width, tall.height, tall.affine.scale_x) == (60, 120, 32 / 60)
    assert 100 < deep.image.mean() < 155, "16 bits are scaled to 8, not clipped"


def test_heif_says_what_it_needs(folder, monkeypatch):
    """Without pillow-heif such a file is left out with the remedy; the others go on."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (folder / "IMG_1.HEIC").write_bytes(b"....ftypheic")
    loaded = load_views(list_images(folder), 64, 16)
    assert [view.file for view in loaded.views] == ["img1.jpg", "img2.jpg", "img10.jpg"]
    assert loaded.left_out[0][0] == "IMG_1.HEIC"
    assert "pip install pillow-heif" in loaded.left_out[0][1]


def test_heif_is_read_by_what_pillow_heif_registers(folder, monkeypatch):
    """Here a stand-in that opens PNG under that name."""
    opened = []
    package = ModuleType("pillow_heif")
    package.register_heif_opener = lambda: opened.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    photograph(7).save(folder / "IMG_7.heic", format="PNG")
    loaded = load_views(list_images(folder), 64, 16)
    assert "IMG_7.heic" in [view.file for view in loaded.views]
    assert opened
