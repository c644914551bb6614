"""Forward kernel: Gaussians in the world to splats on the image (EWA, gsplat's pinhole rules)."""

from __future__ import annotations

import math

import numpy as np

from lora3d_splat.rasterize.numerics import ALPHA_MIN, strict_kernel

REACH_MAX = 3.33
"""Standard deviations at which alpha is below 1/255 whatever the opacity."""


@strict_kernel
def rotation_times_scale(w, x, y, z, sx, sy, sz):
    """Row-major 3x3 matrix R(q) diag(s) of a unit quaternion (w, x, y, z)."""
    two = type(w)(2)
    one = type(w)(1)
    return (
        (one - two * (y * y + z * z)) * sx,
        two * (x * y - w * z) * sy,
        two * (x * z + w * y) * sz,
        two * (x * y + w * z) * sx,
        (one - two * (x * x + z * z)) * sy,
        two * (y * z - w * x) * sz,
        two * (x * z - w * y) * sx,
        two * (y * z + w * x) * sy,
        (one - two * (x * x + y * y)) * sz,
    )


@strict_kernel
def jacobian_of_pinhole(x, y, z, K, width, height):
    """Non-zero entries of d(pixel)/d(camera point) and whether each ray lies inside the widened frustum.

    The ray is clamped to 1.15 times the half field of view around the principal point; only the Jacobian sees that.
    """
    real = K.dtype.type
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x = real(0.15) * real(width) / fx
    margin_y = real(0.15) * real(height) / fy
    rz = real(1) / z
    ray_x = min((real(width) - cx) / fx + margin_x, max(-cx / fx - margin_x, x * rz))
    ray_y = min((real(height) - cy) / fy + margin_y, max(-cy / fy - margin_y, y * rz))
    return fx * rz, fy * rz, -fx * ray_x * rz, -fy * ray_y * rz, ray_x == x * rz, ray_y == y * rz


@strict_kernel
def project(
    start, stop, means, quats, scales, opacities, view, K, width, height, eps2d, near, far, radius_clip,
    square_radius, antialiased, compensation_min, means2d, depths, conics, compensations, radii, invalid, grain,
):  # fmt: skip
    """Project Gaussians [start, stop) into one camera.

    Inputs: ``means`` [N, 3], ``quats`` [N, 4] wxyz of any length, ``scales`` [N, 3], ``opacities`` [N], ``view`` [4, 4]
    camera from world, ``K`` [3, 3]; ``square_radius`` and ``compensation_min`` as in :class:`Rules`. Outputs:
    ``means2d`` [N, 2] px, ``depths`` [N] z, ``conics`` [N, 3] (xx, xy, yy of the inverse blurred covariance),
    ``compensations`` [N], ``radii`` [N, 2] int32 in x and y; a culled Gaussian has radius 0 and zeros elsewhere.
    ``invalid[range]`` becomes 1 + the index of a Gaussian with a value that is not finite.
    """
    real = means.dtype.type
    half, zero, one = real(0.5), real(0), real(1)
    eps = real(eps2d)
    for n in range(start, stop):
        radii[n, 0] = radii[n, 1] = 0
        depths[n] = zero
        compensations[n] = zero
        means2d[n, 0] = means2d[n, 1] = zero
        conics[n, 0] = conics[n, 1] = conics[n, 2] = zero
        mx, my, mz = means[n, 0], means[n, 1], means[n, 2]
        qw, qx, qy, qz = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        total = mx + my + mz + qw + qx + qy + qz + scales[n, 0] + scales[n, 1] + scales[n, 2]
        total += opacities[n]
        if not math.isfinite(total):
            invalid[start // grain] = n + 1
            continue
        z = view[2, 0] * mx + view[2, 1] * my + view[2, 2] * mz + view[2, 3]
        if z < real(near) or z > real(far):
            continue
        x = view[0, 0] * mx + view[0, 1] * my + view[0, 2] * mz + view[0, 3]
        y = view[1, 0] * mx + view[1, 1] * my + view[1, 2] * mz + view[1, 3]
        norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        inverse = one / max(norm, real(1e-12))
        m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation_times_scale(
            qw * inverse, qx * inverse, qy * inverse, qz * inverse, scales[n, 0], scales[n, 1], scales[n, 2]
        )
        j00, j11, j02, j12, _, _ = jacobian_of_pinhole(x, y, z, K, width, height)
        # The 2D covariance is U U^T with U = J R_view R S (2x3): no 3x3 covariance is ever formed.
        a00 = j00 * view[0, 0] + j02 * view[2, 0]
        a01 = j00 * view[0, 1] + j02 * view[2, 1]
        a02 = j00 * view[0, 2] + j02 * view[2, 2]
        a10 = j11 * view[1, 0] + j12 * view[2, 0]
        a11 = j11 * view[1, 1] + j12 * view[2, 1]
        a12 = j11 * view[1, 2] + j12 * view[2, 2]
        u00 = a00 * m00 + a01 * m10 + a02 * m20
        u01 = a00 * m01 + a01 * m11 + a02 * m21
        u02 = a00 * m02 + a01 * m12 + a02 * m22
        u10 = a10 * m00 + a11 * m10 + a12 * m20
        u11 = a10 * m01 + a11 * m11 + a12 * m21
        u12 = a10 * m02 + a11 * m12 + a12 * m22
        xx = u00 * u00 + u01 * u01 + u02 * u02
        xy = u00 * u10 + u01 * u11 + u02 * u12
        yy = u10 * u10 + u11 * u11 + u12 * u12
        # det(U U^T) as a sum of squared minors: never negative, no cancellation for needle-like splats.
        minor0, minor1, minor2 = u01 * u12 - u02 * u11, u02 * u10 - u00 * u12, u00 * u11 - u01 * u10
        sharp = minor0 * minor0 + minor1 * minor1 + minor2 * minor2
        det = sharp + eps * (xx + yy) + eps * eps
        if not (det > zero and det < real(np.inf)):
            continue
        xx += eps
        yy += eps
        compensation = max(math.sqrt(sharp / det), real(compensation_min))
        if square_radius:
            mid, gap = half * (xx + yy), half * (xx - yy)
            reach = real(3) * math.sqrt(mid + math.sqrt(max(real(0.01), gap * gap + xy * xy)))
            radius_x = radius_y = math.ceil(reach)
        else:
            opacity = opacities[n] * compensation if antialiased else opacities[n]
            if opacity < real(ALPHA_MIN):
                continue
            reach = min(real(REACH_MAX), math.sqrt(real(2) * math.log(opacity / real(ALPHA_MIN))))
            radius_x, radius_y = math.ceil(reach * math.sqrt(xx)), math.ceil(reach * math.sqrt(yy))
        if radius_x <= radius_clip and radius_y <= radius_clip:
            continue
        px = K[0, 0] * x / z + K[0, 2]
        py = K[1, 1] * y / z + K[1, 2]
        if px + radius_x <= zero or px - radius_x >= width or py + radius_y <= zero or py - radius_y >= height:
            continue
        radii[n, 0], radii[n, 1] = np.int32(min(radius_x, 1 << 30)), np.int32(min(radius_y, 1 << 30))
        means2d[n, 0], means2d[n, 1] = px, py
        depths[n] = z
        conics[n, 0], conics[n, 1], conics[n, 2] = yy / det, -xy / det, xx / det
        compensations[n] = compensation
