"""Range kernels that turn spherical-harmonics coefficients into view-dependent colours and back."""

from __future__ import annotations

import math

import numpy as np

from lora3d_splat.rasterize.harmonics import basis_gradient, evaluate_basis, unit_direction
from lora3d_splat.rasterize.numerics import strict_kernel


@strict_kernel
def shade(start, stop, means, centre, coefficients, radii, degree, colours, invalid, grain):
    """max(SH(direction) + 1/2, 0) for visible Gaussians [start, stop).

    ``coefficients`` is [N, 3 K] with the channel running fastest, ``colours`` [N, 3]; a culled Gaussian gets zeros.
    ``invalid[range]`` becomes 1 + the index of a visible Gaussian whose colour is not finite.
    """
    real = means.dtype.type
    terms = (degree + 1) * (degree + 1)
    basis = np.empty(16, means.dtype)
    for n in range(start, stop):
        red, green, blue = real(0.5), real(0.5), real(0.5)
        if radii[n, 0] <= 0:
            colours[n, 0] = colours[n, 1] = colours[n, 2] = real(0)
            continue
        x, y, z, _ = unit_direction(means, n, centre)
        evaluate_basis(x, y, z, degree, basis)
        for k in range(terms):
            red += basis[k] * coefficients[n, 3 * k]
            green += basis[k] * coefficients[n, 3 * k + 1]
            blue += basis[k] * coefficients[n, 3 * k + 2]
        if not math.isfinite(red + green + blue):
            invalid[start // grain] = n + 1
        colours[n, 0], colours[n, 1], colours[n, 2] = max(red, real(0)), max(green, real(0)), max(blue, real(0))


@strict_kernel
def shade_backward(
    start, stop, means, centre, coefficients, radii, degree, colours, v_colours, v_means, v_coefficients, v_centre,
    fresh, grain,
):  # fmt: skip
    """Add the gradients of Gaussians [start, stop); with ``fresh`` the coefficient gradients are overwritten instead.

    A channel that was clamped at zero passes nothing. ``v_centre[range]`` [3] is float64.
    """
    real = means.dtype.type
    terms = (degree + 1) * (degree + 1)
    basis = np.empty(16, means.dtype)
    v_basis = np.zeros(16, means.dtype)
    centre_sum = v_centre[start // grain]
    for n in range(start, stop):
        if fresh:
            v_coefficients[n, :] = real(0)
        if radii[n, 0] <= 0:
            continue
        red = v_colours[n, 0] if colours[n, 0] > real(0) else real(0)
        green = v_colours[n, 1] if colours[n, 1] > real(0) else real(0)
        blue = v_colours[n, 2] if colours[n, 2] > real(0) else real(0)
        x, y, z, inverse = unit_direction(means, n, centre)
        evaluate_basis(x, y, z, degree, basis)
        for k in range(terms):
            v_coefficients[n, 3 * k] += basis[k] * red
            v_coefficients[n, 3 * k + 1] += basis[k] * green
            v_coefficients[n, 3 * k + 2] += basis[k] * blue
            v_basis[k] = (
                red * coefficients[n, 3 * k] + green * coefficients[n, 3 * k + 1] + blue * coefficients[n, 3 * k + 2]
            )
        if degree < 1:
            continue
        gx, gy, gz = basis_gradient(x, y, z, degree, v_basis)
        along = gx * x + gy * y + gz * z
        gx, gy, gz = (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse
        v_means[n, 0] += gx
        v_means[n, 1] += gy
        v_means[n, 2] += gz
        centre_sum[0] -= gx
        centre_sum[1] -= gy
        centre_sum[2] -= gz
