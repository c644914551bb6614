"""Textures cut from a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora3d_splat.errors import InputError
from lora3d_splat.synthetic.photographs import photograph_texture, photographs
from lora3d_splat.synthetic.render import render_scene
from lora3d_splat.synthetic.textures import SIZE, atlas


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One picture that gets brighter from left to right, blue throughout."""
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[..., 2] = np.linspace(40, 240, 400)
    Image.fromarray(picture).save(tmp_path / "blue.png")
    return tmp_path


def test_a_texture_repeats_without_a_seam(folder: Path) -> None:
    """The step across the edge is no larger than those within, though the picture's own edges differ by far."""
    for seed in range(6):
        image = photograph_texture(np.random.default_rng(seed), photographs(folder), SIZE)
        assert image.shape == (SIZE, SIZE, 3)
        for axis in (0, 1):
            steps = np.abs(np.diff(image, axis=axis))
            seam = np.abs(image.take(0, axis) - image.take(-1, axis))
            assert seam.max() <= steps.max() + 1e-6


def test_every_other_texture_comes_from_the_photographs(folder: Path) -> None:
    with_pictures, without = atlas("train", folder), atlas("train")
    for name, group in without.groups.items():
        assert len(with_pictures.groups[name]) == 2 * len(group)
    numbers = with_pictures.groups["bricks"]
    with_pictures.require(set(numbers.tolist()))
    blue = [with_pictures.texels[n][..., 2].mean() > 3 * with_pictures.texels[n][..., 0].mean() for n in numbers]
    assert 0.25 * len(numbers) < sum(blue) <= 0.6 * len(numbers)
    plain, dressed = (render_scene(4, (32, 48), 2, photographs=each) for each in (None, folder))
    assert not np.array_equal(plain.images, dressed.images)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures, or broken ones"):
        render_scene(4, (32, 48), 2, photographs=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"folder of \.jpg or \.png files"):
        photographs(tmp_path)
