"""Rigid and similarity maps, axis conventions and quaternion order."""

from __future__ import annotations

import math

import torch

from lora3d_splat.geometry.transforms import (
    invert_rigid,
    invert_similarity,
    opencv_to_opengl,
    opengl_to_opencv,
    rigid,
    rotation_angle_deg,
    rotation_to_wxyz,
    se3_exp,
    similarity,
    skew,
    so3_exp,
    so3_log,
    split_similarity,
    transform_points,
    wxyz_to_rotation,
)

GENERATOR = torch.Generator().manual_seed(0)


def random_poses(count: int) -> torch.Tensor:
    vectors = torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64)
    return rigid(so3_exp(vectors), torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64))


def test_the_inverse_undoes_a_rigid_map():
    poses = random_poses(7)
    torch.testing.assert_close(poses @ invert_rigid(poses), torch.eye(4, dtype=torch.float64).expand(7, 4, 4))


def test_the_inverse_undoes_a_similarity_and_its_parts_come_back():
    poses = random_poses(5)
    scale = torch.rand(5, generator=GENERATOR, dtype=torch.float64) + 0.2
    maps = similarity(scale, poses[:, :3, :3], poses[:, :3, 3])
    torch.testing.assert_close(maps @ invert_similarity(maps), torch.eye(4, dtype=torch.float64).expand(5, 4, 4))
    back = split_similarity(maps)
    torch.testing.assert_close(back, (scale, poses[:, :3, :3], poses[:, :3, 3]))


def test_points_follow_the_composition_of_frames():
    """T_a_c = T_a_b T_b_c, on points and on matrices."""
    first, second = random_poses(2)
    points = torch.randn(11, 3, generator=GENERATOR, dtype=torch.float64)
    chained = transform_points(first, transform_points(second, points))
    torch.testing.assert_close(transform_points(first @ second, points), chained)


def test_a_quarter_turn_about_z_by_hand():
    """x goes to y; the real-first quaternion is (cos 45, 0, 0, sin 45)."""
    rotation = so3_exp(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    turned = transform_points(rigid(rotation, torch.zeros(3).double()), torch.tensor([[1.0, 0.0, 0.0]]).double())
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, 0.0]]).double())
    half = math.sqrt(0.5)
    torch.testing.assert_close(rotation_to_wxyz(rotation), torch.tensor([half, 0.0, 0.0, half]).double())


def test_rotation_vectors_and_quaternions_make_the_round_trip():
    vectors = torch.randn(9, 3, generator=GENERATOR, dtype=torch.float64)
    rotations = so3_exp(vectors)
    torch.testing.assert_close(so3_exp(so3_log(rotations)), rotations)
    quaternions = rotation_to_wxyz(rotations)
    torch.testing.assert_close(wxyz_to_rotation(-3.0 * quaternions), rotations)


def test_the_exponential_is_the_matrix_exponential():
    """Against torch.linalg.matrix_exp of the 4x4 generator, for large and for tiny angles."""
    twists = torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)
    twists[3:, 3:] *= 1e-6
    generator = torch.zeros(6, 4, 4, dtype=torch.float64)
    generator[:, :3, :3], generator[:, :3, 3] = skew(twists[:, 3:]), twists[:, :3]
    torch.testing.assert_close(se3_exp(twists), torch.linalg.matrix_exp(generator))


def test_the_exponential_has_the_right_derivative_at_and_away_from_zero():
    away = torch.randn(2, 6, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(se3_exp, (away,))
    zero = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(se3_exp, zero)
    torch.testing.assert_close(jacobian[0, :3, 3, 0, :3], torch.eye(3, dtype=torch.float64))
    assert bool(torch.isfinite(jacobian).all())


def test_flipping_camera_axes_twice_changes_nothing_and_looks_down_minus_z_once():
    pose = random_poses(1)[0]
    torch.testing.assert_close(opengl_to_opencv(opencv_to_opengl(pose)), pose)
    torch.testing.assert_close(opencv_to_opengl(pose)[:3, 2], -pose[:3, 2])
    torch.testing.assert_close(opencv_to_opengl(pose)[:3, 3], pose[:3, 3])


def test_the_angle_between_rotations_ignores_a_common_turn():
    poses = random_poses(3)[:, :3, :3]
    turn = so3_exp(torch.tensor([0.0, math.radians(25.0), 0.0], dtype=torch.float64))
    torch.testing.assert_close(
        rotation_angle_deg(poses[0] @ poses, poses[0] @ poses @ turn), torch.full((3,), 25.0).double()
    )
