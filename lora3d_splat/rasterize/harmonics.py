"""Colours from spherical harmonics up to degree 3 (basis and signs of gsplat), forward and backward."""

from __future__ import annotations

import math

from lora3d_splat.rasterize.numerics import strict_kernel

C0 = 0.2820947917738781
C1 = 0.48860251190292
C2 = (1.092548430592079, 0.9461746957575601, 0.3153915652525201, 0.5462742152960395)
C3 = (0.5900435899266435, 2.890611442640554, 2.285228997322329, 0.4570457994644658)
C3Z = (1.865881662950577, 1.119528997770346)
C3S = 1.445305721320277


@strict_kernel
def evaluate_basis(x, y, z, degree, basis):
    """Write the (degree + 1)^2 basis values at the unit direction (x, y, z)."""
    real = basis.dtype.type
    basis[0] = real(C0)
    if degree < 1:
        return
    basis[1], basis[2], basis[3] = -real(C1) * y, real(C1) * z, -real(C1) * x
    if degree < 2:
        return
    zz, cos2, sin2 = z * z, x * x - y * y, real(2) * x * y
    basis[4] = real(C2[3]) * sin2
    basis[5] = -real(C2[0]) * z * y
    basis[6] = real(C2[1]) * zz - real(C2[2])
    basis[7] = -real(C2[0]) * z * x
    basis[8] = real(C2[3]) * cos2
    if degree < 3:
        return
    ring = real(C3[3]) - real(C3[2]) * zz
    basis[9] = -real(C3[0]) * (x * sin2 + y * cos2)
    basis[10] = real(C3S) * z * sin2
    basis[11] = ring * y
    basis[12] = z * (real(C3Z[0]) * zz - real(C3Z[1]))
    basis[13] = ring * x
    basis[14] = real(C3S) * z * cos2
    basis[15] = -real(C3[0]) * (x * cos2 - y * sin2)


@strict_kernel
def basis_gradient(x, y, z, degree, v):
    """Gradient to (x, y, z) of the sum of basis values weighted by ``v``."""
    real = v.dtype.type
    two = real(2)
    gx, gy, gz = -real(C1) * v[3], -real(C1) * v[1], real(C1) * v[2]
    if degree < 2:
        return gx, gy, gz
    zz, cos2, sin2 = z * z, x * x - y * y, two * x * y
    v_cos2, v_sin2 = real(C2[3]) * v[8], real(C2[3]) * v[4]
    gx -= real(C2[0]) * z * v[7]
    gy -= real(C2[0]) * z * v[5]
    gz += two * real(C2[1]) * z * v[6] - real(C2[0]) * (x * v[7] + y * v[5])
    if degree >= 3:
        ring = real(C3[3]) - real(C3[2]) * zz
        v_cos2 += real(C3S) * z * v[14] - real(C3[0]) * (x * v[15] + y * v[9])
        v_sin2 += real(C3S) * z * v[10] - real(C3[0]) * (x * v[9] - y * v[15])
        gx += ring * v[13] - real(C3[0]) * (sin2 * v[9] + cos2 * v[15])
        gy += ring * v[11] - real(C3[0]) * (cos2 * v[9] - sin2 * v[15])
        gz += real(C3S) * (sin2 * v[10] + cos2 * v[14]) - two * real(C3[2]) * z * (x * v[13] + y * v[11])
        gz += (real(3) * real(C3Z[0]) * zz - real(C3Z[1])) * v[12]
    return gx + two * (x * v_cos2 + y * v_sin2), gy + two * (x * v_sin2 - y * v_cos2), gz


@strict_kernel
def unit_direction(means, n, centre):
    """Unit vector from the camera centre to Gaussian n, and one over the distance."""
    real = means.dtype.type
    x, y, z = means[n, 0] - centre[0], means[n, 1] - centre[1], means[n, 2] - centre[2]
    inverse = real(1) / max(math.sqrt(x * x + y * y + z * z), real(1e-12))
    return x * inverse, y * inverse, z * inverse, inverse
