"""Formats of trained Gaussians and of whole scenes: what is written is read back, by ours and by other readers."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.dot_splat import read_dot_splat, write_dot_splat
from lora3d_splat.export.glb import read_glb, write_glb
from lora3d_splat.export.splat import SH_C0, Splat, moved_splat
from lora3d_splat.export.spz import read_spz, write_spz
from lora3d_splat.export.video import VideoConfig, film, orbit, through_inputs, write_mp4
from lora3d_splat.geometry.transforms import invert_rigid, rigid, se3_exp, wxyz_to_rotation


def random_splat(count: int = 40, coefficients: int = 15, extent: float = 3.0) -> Splat:
    """Gaussians in a box, some with a negative real part of their quaternion."""
    generator = np.random.default_rng(0)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return generator.uniform(low, high, shape).astype(np.float32)

    quaternions = generator.normal(size=(count, 4)).astype(np.float32)
    return Splat(
        means=uniform(-extent, extent, count, 3),
        sh_dc=uniform(-1.2, 1.2, count, 3),
        sh_rest=uniform(-0.4, 0.4, count, coefficients, 3),
        opacity_logit=uniform(-3, 3, count),
        log_scale=uniform(-6, -1, count, 3),
        quaternion_wxyz=quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
    )


def rotations(splat: Splat) -> torch.Tensor:
    """(N, 3, 3), equal for a quaternion and its negative."""
    return wxyz_to_rotation(torch.from_numpy(splat.quaternion_wxyz).double())


def cameras(count: int = 4) -> list[PhotographCamera]:
    """On an arc, looking at the origin from three units away, the last one not registered."""
    placed = []
    for index in range(count):
        turn = se3_exp(torch.tensor([0, 0, 0, 0, 0.15 * (index - 1), 0.02 * index], dtype=torch.float64))
        pose = turn @ rigid(torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, -9.0], dtype=torch.float64))
        placed.append(PhotographCamera(f"{index}.png", 64, 48, 70.0, 70.0, 32.0, 24.0, pose.numpy(), index < count - 1))
    return placed


@pytest.mark.parametrize("coefficients", [0, 3, 8, 15])
def test_spz_keeps_gaussians_to_its_precision(tmp_path: Path, coefficients: int) -> None:
    """Positions to a millionth of the extent, the rest to the step of its byte, in the frame that was given."""
    splat = random_splat(coefficients=coefficients)
    write_spz(tmp_path / "a.spz", splat)
    back = read_spz(tmp_path / "a.spz")
    np.testing.assert_allclose(back.means, splat.means, atol=3e-6)
    np.testing.assert_allclose(back.log_scale, splat.log_scale, atol=1 / 32 + 1e-6)
    np.testing.assert_allclose(back.sh_dc, splat.sh_dc, atol=0.5 / (255 * 0.15) + 1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-back.opacity_logit)), 1 / (1 + np.exp(-splat.opacity_logit)), atol=3e-3)
    assert torch.allclose(rotations(back), rotations(splat), atol=0.006)
    assert back.sh_rest.shape == splat.sh_rest.shape
    # Quantised before the turn back, which mixes the coefficients of a degree.
    np.testing.assert_allclose(back.sh_rest, splat.sh_rest, atol=0.25)
    assert np.abs(back.sh_rest - splat.sh_rest).sum() <= 0.04 * splat.sh_rest.size


def test_spz_header_and_axes(tmp_path: Path) -> None:
    """The published header; a point up, right and in front of a y-down world has SPZ's y positive and z negative."""
    import gzip

    splat = random_splat(1, 3)
    splat.means[:] = (1.0, -2.0, 3.0)
    write_spz(tmp_path / "a.spz", splat)
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", content)
    assert (magic, version, count, degree, flags, reserved) == (0x5053474E, 3, 1, 1, 0, 0)
    fixed = [int.from_bytes(content[16 + 3 * k : 19 + 3 * k], "little", signed=True) for k in range(3)]
    assert [value / 2**bits for value in fixed] == [1.0, 2.0, -3.0]
    assert len(content) == 16 + 9 + 1 + 3 + 3 + 4 + 9


def test_dot_splat_keeps_what_it_can(tmp_path: Path) -> None:
    """32 bytes a Gaussian, the most visible first; positions and scales exactly, colours and rotations to a byte."""
    splat = random_splat()
    write_dot_splat(tmp_path / "a.splat", splat)
    assert (tmp_path / "a.splat").stat().st_size == 32 * 40
    back = read_dot_splat(tmp_path / "a.splat")
    order = [int(np.flatnonzero((splat.means == mean).all(1))[0]) for mean in back.means]
    assert sorted(order) == list(range(40))
    np.testing.assert_allclose(back.log_scale, splat.log_scale[order], atol=1e-5)
    colour = np.clip(0.5 + SH_C0 * splat.sh_dc[order], 0, 1)
    np.testing.assert_allclose(0.5 + SH_C0 * back.sh_dc, colour, atol=0.5 / 255 + 1e-6)
    assert torch.allclose(rotations(back), rotations(splat)[order], atol=0.04)
    (tmp_path / "cut.splat").write_bytes((tmp_path / "a.splat").read_bytes()[:-3])
    with pytest.raises(InputError, match="32 bytes"):
        read_dot_splat(tmp_path / "cut.splat")


def test_dot_splat_has_the_published_layout(tmp_path: Path) -> None:
    """Read byte by byte, with nothing of ours: the one Gaussian's position, size, colour, opacity and rotation."""
    splat = random_splat(1)
    splat.sh_dc[:] = (0.5 / SH_C0, 0.0, -0.5 / SH_C0)
    splat.opacity_logit[:] = 0.0
    splat.quaternion_wxyz[:] = (0.5, -0.5, 0.75, 0.0)
    write_dot_splat(tmp_path / "a.splat", splat)
    x, y, z, *sizes, red, green, blue, alpha, w, i, j, k = struct.unpack("<6f8B", (tmp_path / "a.splat").read_bytes())
    assert [x, y, z] == splat.means[0].tolist()
    np.testing.assert_allclose(np.log(sizes), splat.log_scale[0], rtol=1e-6)
    assert (red, green, blue, alpha) == (255, 128, 0, 128)
    length = (0.25 + 0.25 + 0.5625) ** 0.5
    assert (w, i, j, k) == tuple(round(128 + 128 * q / length) for q in (0.5, -0.5, 0.75, 0.0))


def test_another_program_reads_dot_splat(tmp_path: Path) -> None:
    """Converted to PLY by GaussForge and read by plyfile, every Gaussian is where it was and looks as it did."""
    gaussforge, plyfile = pytest.importorskip("gaussforge"), pytest.importorskip("plyfile")
    write_dot_splat(tmp_path / "a.splat", random_splat())
    ours = read_dot_splat(tmp_path / "a.splat")
    converted = gaussforge.GaussForge().convert((tmp_path / "a.splat").read_bytes(), "splat", "ply")
    vertices = plyfile.PlyData.read(io.BytesIO(converted["data"]))["vertex"]

    def columns(*names: str) -> np.ndarray:
        return np.stack([vertices[name] for name in names], 1)

    np.testing.assert_array_equal(columns("x", "y", "z"), ours.means)
    np.testing.assert_allclose(columns("scale_0", "scale_1", "scale_2"), ours.log_scale, atol=1e-6)
    np.testing.assert_allclose(columns("rot_0", "rot_1", "rot_2", "rot_3"), ours.quaternion_wxyz, atol=1e-6)
    np.testing.assert_allclose(columns("f_dc_0", "f_dc_1", "f_dc_2"), ours.sh_dc, atol=1e-6)
    np.testing.assert_allclose(vertices["opacity"], ours.opacity_logit, atol=1e-5)


def test_a_moved_scene_looks_the_same_from_the_moved_camera() -> None:
    """Positions, shapes and directional colours move together: equal pictures before and after a similarity."""
    splat, camera = random_splat(200, extent=1.5), cameras()[1]
    motion = se3_exp(torch.tensor([0.3, -0.2, 0.5, 0.7, -0.4, 1.1], dtype=torch.float64))
    scale = 1.7
    moved = moved_splat(splat, scale, motion[:3, :3].numpy(), motion[:3, 3].numpy())
    pose = torch.from_numpy(camera.T_world_camera)
    centre = scale * (motion[:3, :3] @ pose[:3, 3]) + motion[:3, 3]
    pictures = [
        next(film(splat, camera, pose[None], 64)),
        next(film(moved, camera, rigid(motion[:3, :3] @ pose[:3, :3], centre)[None], 64)),
    ]
    assert pictures[0].max() > 100
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_glb_is_read_by_trimesh(tmp_path: Path) -> None:
    """Counts, positions and colours as written, by ours and by an independent reader; cameras in OpenCV axes."""
    splat = random_splat(30)
    rgb = np.random.default_rng(1).integers(0, 256, (30, 3)).astype(np.uint8)
    write_glb(tmp_path / "a.glb", splat.means, rgb, cameras(), "notice")
    scene = read_glb(tmp_path / "a.glb")
    np.testing.assert_array_equal(scene.points_world, splat.means)
    np.testing.assert_array_equal(scene.rgb, rgb)
    assert scene.names == ("0.png", "1.png", "2.png")
    np.testing.assert_allclose(scene.T_world_camera[2], cameras()[2].T_world_camera, atol=1e-12)
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(tmp_path / "a.glb")
    points = next(g for g in loaded.geometry.values() if isinstance(g, trimesh.PointCloud))
    np.testing.assert_array_equal(points.vertices, splat.means)
    np.testing.assert_array_equal(points.colors[:, :3], rgb)


def test_a_flight_starts_and_ends_at_the_photographs() -> None:
    """The path through the inputs passes through every camera; the orbit looks at the scene from before it."""
    kept = cameras()[:3]
    poses = through_inputs(kept, 5, random_splat())
    for frame, camera in zip((0, 2, 4), kept, strict=True):
        assert torch.allclose(poses[frame], torch.from_numpy(camera.T_world_camera), atol=1e-9)
    splat = random_splat()
    for pose in orbit(kept, 6, splat):
        assert torch.allclose(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-9)
        assert torch.linalg.det(pose[:3, :3]) > 0
        middle = invert_rigid(pose)[:3, 3]
        assert middle[2] > 5
        assert middle[:2].norm() < 0.2 * middle[2]


def test_mp4_holds_every_frame(tmp_path: Path) -> None:
    """imageio reads as many pictures of the asked size as were filmed, and they show the scene."""
    imageio = pytest.importorskip("imageio.v2")
    write_mp4(tmp_path / "a.mp4", random_splat(200, 0), cameras(), "inputs", VideoConfig(0.5, 12, 64))
    with imageio.get_reader(tmp_path / "a.mp4") as video:
        frames = [np.asarray(frame) for frame in video]
    assert len(frames) == 6
    assert frames[0].shape == (48, 64, 3)
    assert frames[3].max() > 60
    with pytest.raises(InputError, match="two pictures"):
        VideoConfig(0.01, 24)


def test_spz_is_read_by_gsply(tmp_path: Path) -> None:
    """An independent reader finds the same Gaussians, turned by half a turn about x into SPZ's axes."""
    gsply_spz = pytest.importorskip("gsply.spz")
    splat = random_splat()
    write_spz(tmp_path / "a.spz", splat)
    found = gsply_spz.read_spz(tmp_path / "a.spz")
    turned = moved_splat(splat, 1.0, np.diag([1.0, -1.0, -1.0]), np.zeros(3))
    np.testing.assert_allclose(found.means, turned.means, atol=3e-6)
    np.testing.assert_allclose(found.scales, turned.log_scale, atol=1 / 32 + 1e-6)
    found_rotations = wxyz_to_rotation(torch.from_numpy(np.array(found.quats)).double())
    assert torch.allclose(found_rotations, rotations(turned), atol=0.006)
    np.testing.assert_allclose(found.shN, turned.sh_rest, atol=1 / 16 + 1 / 256 + 1e-6)
