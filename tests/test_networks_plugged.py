"""A network in a file of its own: the example of docs/networks.md, run as it stands there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracle_network import OracleNetwork
from PIL import Image
from wall_example import write_wall

from lora3d_splat.alignment import AlignmentConfig
from lora3d_splat.errors import InputError
from lora3d_splat.geometry.procrustes import align_trajectories
from lora3d_splat.networks import load_network, network_digest, network_files
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.weights import tell_licence
from lora3d_splat.self_calibration import CalibrationConfig, calibrate

PLACES = ((0, 0), (7, 3), (12, -4), (-6, 5))
"""where the camera stood before the wall, in pixels of the wall's picture"""


@pytest.fixture
def wall(tmp_path: Path) -> Path:
    """The file of the page."""
    return write_wall(tmp_path)


def photographs(folder: Path) -> Path:
    """64x48 pixels each, cut out of one picture of random grains."""
    picture = np.random.default_rng(0).integers(0, 255, (112, 128, 3), dtype=np.uint8)
    folder.mkdir()
    for index, (x, y) in enumerate(PLACES):
        Image.fromarray(picture[30 + y : 78 + y, 30 + x : 94 + x]).save(folder / f"{index}.png")
    return folder


def test_the_example_of_the_page_calibrates_photographs(tmp_path: Path, wall: Path, capsys) -> None:
    """Cameras and focal length are those under which the pictures were cut; its name and licence are in the result.

    A network that names no layers for LoRA is calibrated without it, and the report says why.
    """
    torch.set_num_threads(1)
    wall.write_text(wall.read_text() + "\n\nclass Rigid(WallNetwork):\n    lora_targets = ()\n")
    config = CalibrationConfig(
        network=f"{wall}:Rigid", device="cpu", cache=tmp_path / "cache",
        alignment=AlignmentConfig(steps=10, samples_per_view=120),
    )  # fmt: skip
    tell_licence.cache_clear()  # told once in a process, and other tests may have come first
    calibration = calibrate(photographs(tmp_path / "photos"), config)
    focal = 1.2 * 64
    true = torch.tensor([[x, y, 0] for x, y in PLACES], dtype=torch.float64) / focal
    found = calibration.scene.T_world_camera[:, :3, 3]
    torch.testing.assert_close(align_trajectories(found, true).apply(found), true, atol=1e-4, rtol=0)
    assert calibration.rows[1].focal == pytest.approx(focal, rel=1e-3)
    assert (calibration.network, calibration.licence) == ("wall", "Apache-2.0")
    assert calibration.rows[2].reason == "wall names no layers to adapt"
    assert "wall: weights under Apache-2.0" in capsys.readouterr().out


def test_a_change_of_the_file_is_another_network(wall: Path) -> None:
    """What was cached with the old code is not found again: file and digest are part of the keys."""
    before = network_digest(load_network(f"{wall}:WallNetwork"))
    assert isinstance(load_network(f"{wall}:WallNetwork"), PointmapNetwork)
    assert network_files(f"{wall}:WallNetwork") == (wall,)
    assert network_digest(load_network(f"{wall}:WallNetwork")) == before
    wall.write_text(wall.read_text().replace("FOCAL = 1.2", "FOCAL = 1.3"))
    assert network_digest(load_network(f"{wall}:WallNetwork")) != before


def test_a_network_in_an_installed_package() -> None:
    """module:Class, and functions that build one."""
    assert isinstance(load_network("oracle_network:OracleNetwork"), OracleNetwork)
    assert network_files("oracle_network:OracleNetwork")[0].name == "oracle_network.py"
    assert network_files("no_such_package.module:Class") == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/absent.py:Network", "no file"),
        ("{}/wall.py:Absent", "no Absent in"),
        ("{}/wall.py:FOCAL", "no FOCAL in"),
        ("{}/wall.py:WallNet", "without name, licence, patch_size"),
        ("{}/wall.py:Tensor", "without licence"),
        ("no_such_package.module:Class", "no module no_such_package.module"),
    ],
)
def test_what_is_no_network_is_one_sentence(wall: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_network(name.format(wall.parent))
