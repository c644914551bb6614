"""Backward kernel of the projection: gradients of splats to means, quaternions, scales and the view matrix."""

from __future__ import annotations

import math

from lora3d_splat.rasterize.numerics import strict_kernel
from lora3d_splat.rasterize.projection import jacobian_of_pinhole, rotation_times_scale


@strict_kernel
def quaternion_gradient(w, x, y, z, inverse, g00, g01, g02, g10, g11, g12, g20, g21, g22):
    """Pull a gradient of the rotation matrix back to a quaternion of length 1 / inverse with unit part (w, x, y, z)."""
    two = type(w)(2)
    vw = two * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
    vx = two * (w * (g21 - g12) + y * (g01 + g10) + z * (g02 + g20) - two * x * (g11 + g22))
    vy = two * (w * (g02 - g20) + x * (g01 + g10) + z * (g12 + g21) - two * y * (g00 + g22))
    vz = two * (w * (g10 - g01) + x * (g02 + g20) + y * (g12 + g21) - two * z * (g00 + g11))
    radial = vw * w + vx * x + vy * y + vz * z
    return (
        (vw - radial * w) * inverse,
        (vx - radial * x) * inverse,
        (vy - radial * y) * inverse,
        (vz - radial * z) * inverse,
    )


@strict_kernel
def project_backward(
    start, stop, means, quats, scales, view, K, width, height, eps2d, conics, compensations, radii,
    v_means2d, v_depths, v_conics, v_compensations, v_means, v_quats, v_scales, v_view, grain,
):  # fmt: skip
    """Add the gradients of Gaussians [start, stop) of one camera; ``v_view[range]`` is float64, rows of [R | t]."""
    real = means.dtype.type
    half, one, two = real(0.5), real(1), real(2)
    eps = real(eps2d)
    fx, fy = K[0, 0], K[1, 1]
    w00, w01, w02 = view[0, 0], view[0, 1], view[0, 2]
    w10, w11, w12 = view[1, 0], view[1, 1], view[1, 2]
    w20, w21, w22 = view[2, 0], view[2, 1], view[2, 2]
    view_sum = v_view[start // grain]
    for n in range(start, stop):
        if radii[n, 0] <= 0:
            continue
        # Inverse of the blurred covariance: dL/dcov = -K dL/dK K, the off-diagonal of the conic counting once.
        a, b, c = conics[n, 0], conics[n, 1], conics[n, 2]
        va, vb, vc = v_conics[n, 0], half * v_conics[n, 1], v_conics[n, 2]
        t00, t01 = a * va + b * vb, a * vb + b * vc
        t10, t11 = b * va + c * vb, b * vb + c * vc
        g00 = -(t00 * a + t01 * b)
        g01 = -(t00 * b + t01 * c)
        g11 = -(t10 * b + t11 * c)
        compensation = compensations[n]
        pull = v_compensations[n] * half / (compensation + real(1e-6))
        lost = one - compensation * compensation
        sharpness = eps * (a * c - b * b)
        g00 += pull * (lost * a - sharpness)
        g01 += pull * lost * b
        g11 += pull * (lost * c - sharpness)

        # The forward quantities again.
        mx, my, mz = means[n, 0], means[n, 1], means[n, 2]
        x = w00 * mx + w01 * my + w02 * mz + view[0, 3]
        y = w10 * mx + w11 * my + w12 * mz + view[1, 3]
        z = w20 * mx + w21 * my + w22 * mz + view[2, 3]
        qw, qx, qy, qz = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        inverse = one / max(norm, real(1e-12))
        qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
        sx, sy, sz = scales[n, 0], scales[n, 1], scales[n, 2]
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation_times_scale(qw, qx, qy, qz, one, one, one)
        m00, m01, m02 = r00 * sx, r01 * sy, r02 * sz
        m10, m11, m12 = r10 * sx, r11 * sy, r12 * sz
        m20, m21, m22 = r20 * sx, r21 * sy, r22 * sz
        j00, j11, j02, j12, inside_x, inside_y = jacobian_of_pinhole(x, y, z, K, width, height)
        a00, a01, a02 = j00 * w00 + j02 * w20, j00 * w01 + j02 * w21, j00 * w02 + j02 * w22
        a10, a11, a12 = j11 * w10 + j12 * w20, j11 * w11 + j12 * w21, j11 * w12 + j12 * w22
        u00, u01, u02 = (
            a00 * m00 + a01 * m10 + a02 * m20,
            a00 * m01 + a01 * m11 + a02 * m21,
            a00 * m02 + a01 * m12 + a02 * m22,
        )
        u10, u11, u12 = (
            a10 * m00 + a11 * m10 + a12 * m20,
            a10 * m01 + a11 * m11 + a12 * m21,
            a10 * m02 + a11 * m12 + a12 * m22,
        )

        # cov = U U^T, U = A M, A = J W.
        p00, p01, p02 = two * (g00 * u00 + g01 * u10), two * (g00 * u01 + g01 * u11), two * (g00 * u02 + g01 * u12)
        p10, p11, p12 = two * (g01 * u00 + g11 * u10), two * (g01 * u01 + g11 * u11), two * (g01 * u02 + g11 * u12)
        h00, h01, h02 = a00 * p00 + a10 * p10, a00 * p01 + a10 * p11, a00 * p02 + a10 * p12
        h10, h11, h12 = a01 * p00 + a11 * p10, a01 * p01 + a11 * p11, a01 * p02 + a11 * p12
        h20, h21, h22 = a02 * p00 + a12 * p10, a02 * p01 + a12 * p11, a02 * p02 + a12 * p12
        v_scales[n, 0] += r00 * h00 + r10 * h10 + r20 * h20
        v_scales[n, 1] += r01 * h01 + r11 * h11 + r21 * h21
        v_scales[n, 2] += r02 * h02 + r12 * h12 + r22 * h22
        vw, vx, vy, vz = quaternion_gradient(
            qw, qx, qy, qz, inverse,
            h00 * sx, h01 * sy, h02 * sz, h10 * sx, h11 * sy, h12 * sz, h20 * sx, h21 * sy, h22 * sz,
        )  # fmt: skip
        v_quats[n, 0] += vw
        v_quats[n, 1] += vx
        v_quats[n, 2] += vy
        v_quats[n, 3] += vz

        k00, k01, k02 = (
            p00 * m00 + p01 * m01 + p02 * m02,
            p00 * m10 + p01 * m11 + p02 * m12,
            p00 * m20 + p01 * m21 + p02 * m22,
        )
        k10, k11, k12 = (
            p10 * m00 + p11 * m01 + p12 * m02,
            p10 * m10 + p11 * m11 + p12 * m12,
            p10 * m20 + p11 * m21 + p12 * m22,
        )
        vj00 = k00 * w00 + k01 * w01 + k02 * w02
        vj02 = k00 * w20 + k01 * w21 + k02 * w22
        vj11 = k10 * w10 + k11 * w11 + k12 * w12
        vj12 = k10 * w20 + k11 * w21 + k12 * w22

        # Camera point: pixel, depth and Jacobian; a clamped ray makes the Jacobian depend on z alone.
        rz = one / z
        vpx, vpy = v_means2d[n, 0], v_means2d[n, 1]
        cam_x = fx * rz * vpx
        cam_y = fy * rz * vpy
        cam_z = v_depths[n] - (fx * x * vpx + fy * y * vpy + fx * vj00 + fy * vj11) * rz * rz
        cam_z -= (j02 * vj02 + j12 * vj12) * rz
        if inside_x:
            cam_x -= fx * rz * rz * vj02
            cam_z -= j02 * rz * vj02
        if inside_y:
            cam_y -= fy * rz * rz * vj12
            cam_z -= j12 * rz * vj12
        v_means[n, 0] += w00 * cam_x + w10 * cam_y + w20 * cam_z
        v_means[n, 1] += w01 * cam_x + w11 * cam_y + w21 * cam_z
        v_means[n, 2] += w02 * cam_x + w12 * cam_y + w22 * cam_z

        view_sum[0] += cam_x * mx + j00 * k00
        view_sum[1] += cam_x * my + j00 * k01
        view_sum[2] += cam_x * mz + j00 * k02
        view_sum[3] += cam_x
        view_sum[4] += cam_y * mx + j11 * k10
        view_sum[5] += cam_y * my + j11 * k11
        view_sum[6] += cam_y * mz + j11 * k12
        view_sum[7] += cam_y
        view_sum[8] += cam_z * mx + j02 * k00 + j12 * k10
        view_sum[9] += cam_z * my + j02 * k01 + j12 * k11
        view_sum[10] += cam_z * mz + j02 * k02 + j12 * k12
        view_sum[11] += cam_z
