"""Rigid and similarity maps, axis conventions and quaternion order: the one place where any of them is converted.

`T_a_b` maps coordinates in frame b to frame a. Batch dimensions lead; dtype and device follow the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

CAMERA_OPENCV_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""(4, 4) flip between OpenCV (y down, z forward) and OpenGL (y up, z backward) camera axes; its own inverse."""


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """Assemble (..., 4, 4) from a rotation (..., 3, 3) and a translation (..., 3)."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def invert_rigid(T_a_b: Tensor) -> Tensor:
    """T_b_a of a rigid (..., 4, 4)."""
    rotation = T_a_b[..., :3, :3].transpose(-1, -2)
    return rigid(rotation, -(rotation @ T_a_b[..., :3, 3:])[..., 0])


def similarity(scale: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Assemble (..., 4, 4) of p -> scale * rotation @ p + translation; `scale` is (...)."""
    return rigid(scale[..., None, None] * rotation, translation)


def invert_similarity(S_a_b: Tensor) -> Tensor:
    """S_b_a of a similarity (..., 4, 4)."""
    scale, rotation, translation = split_similarity(S_a_b)
    back = rotation.transpose(-1, -2)
    return similarity(1.0 / scale, back, -(back @ translation[..., None])[..., 0] / scale[..., None])


def split_similarity(S_a_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (...), rotation (..., 3, 3) and translation (..., 3) of a similarity (..., 4, 4)."""
    linear = S_a_b[..., :3, :3]
    scale = torch.linalg.det(linear).clamp_min(torch.finfo(linear.dtype).tiny) ** (1.0 / 3.0)
    return scale, linear / scale[..., None, None], S_a_b[..., :3, 3]


def transform_points(T_a_b: Tensor, points_b: Tensor) -> Tensor:
    """Points (..., N, 3) in frame a; `T_a_b` (..., 4, 4) is rigid or a similarity and shares the leading axes."""
    return points_b @ T_a_b[..., :3, :3].transpose(-1, -2) + T_a_b[..., None, :3, 3]


def so3_exp(rotation_vector: Tensor) -> Tensor:
    """Rotation matrix (..., 3, 3) of a rotation vector (..., 3), radians."""
    return torch.linalg.matrix_exp(skew(rotation_vector))


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vector (..., 3), angle in [0, pi], of a rotation matrix (..., 3, 3)."""
    quaternion = rotation_to_wxyz(rotation)
    axis, real = quaternion[..., 1:], quaternion[..., :1]
    sine = axis.norm(dim=-1, keepdim=True)
    # atan2 keeps tiny angles exact; at zero the ratio angle / sine tends to 2.
    ratio = torch.where(sine > 1e-12, 2 * torch.atan2(sine, real) / sine.clamp_min(1e-12), 2.0 / real)
    return ratio * axis


def skew(vector: Tensor) -> Tensor:
    """(..., 3, 3) matrix with skew(a) @ b = a x b."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def se3_exp(twist: Tensor) -> Tensor:
    """Exponential map (..., 6) -> (..., 4, 4); a twist is (translation part, rotation vector)."""
    velocity, omega = twist[..., :3], twist[..., 3:]
    squared = (omega * omega).sum(-1)[..., None, None]
    # The left Jacobian integrates the rotation along the path; below 1e-8 rad^2 its series is exact in float64.
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 0.5 - squared / 24.0, (1.0 - torch.cos(angle)) / safe)
    second = torch.where(small, 1.0 / 6.0 - squared / 120.0, (angle - torch.sin(angle)) / (safe * angle))
    cross = skew(omega)
    left_jacobian = torch.eye(3, dtype=twist.dtype, device=twist.device) + first * cross + second * (cross @ cross)
    return rigid(so3_exp(omega), (left_jacobian @ velocity[..., None])[..., 0])


def opencv_to_opengl(T_world_camera: Tensor) -> Tensor:
    """The same camera pose (..., 4, 4) with OpenGL camera axes instead of OpenCV's; the world frame stays."""
    return T_world_camera @ CAMERA_OPENCV_OPENGL.to(T_world_camera)


def opengl_to_opencv(T_world_camera: Tensor) -> Tensor:
    """The same camera pose (..., 4, 4) with OpenCV camera axes instead of OpenGL's; the world frame stays."""
    return opencv_to_opengl(T_world_camera)


def rotation_to_wxyz(rotation: Tensor) -> Tensor:
    """Unit quaternion (..., 4), real part first (COLMAP, gsplat) and not negative, of a rotation matrix (..., 3, 3)."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation.flatten(-2).unbind(-1)
    # Four times the outer product q q^T: the row with the largest diagonal is a well-conditioned multiple of q.
    outer = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], dim=-1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], dim=-1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m21 + m12], dim=-1),
            torch.stack([m10 - m01, m02 + m20, m21 + m12, 1 - m00 - m11 + m22], dim=-1),
        ],
        dim=-2,
    )
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    row = outer.take_along_dim(best, dim=-2)[..., 0, :]
    row = torch.where(row[..., :1] < 0, -row, row)
    return torch.nn.functional.normalize(row, dim=-1)


def wxyz_to_rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrix (..., 3, 3) of a quaternion (..., 4), real part first, of any non-zero norm."""
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    real, cross = quaternion[..., 0, None, None], skew(quaternion[..., 1:])
    return torch.eye(3).to(quaternion) + 2 * real * cross + 2 * cross @ cross


def rotation_angle_deg(rotation_a: Tensor, rotation_b: Tensor) -> Tensor:
    """Geodesic distance (...) in degrees between rotations (..., 3, 3)."""
    return torch.rad2deg(so3_log(rotation_a.transpose(-1, -2) @ rotation_b).norm(dim=-1))
