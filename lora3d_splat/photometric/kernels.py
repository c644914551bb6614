"""Range kernels of L1 + SSIM: the value and its gradient to the rendering in two passes over the rows.

The window is separable. Rows are kept flat, channels running fastest, so that both blurs are loops over neighbouring
floats that LLVM turns into vector code.
"""

from __future__ import annotations

import numpy as np

from lora3d_splat.rasterize.numerics import fast_kernel

TAPS = 11
C1, C2 = 0.01**2, 0.03**2
"""Stabilisers of Wang et al. 2004 for a data range of 1."""
FIELDS = 5
"""x, y, xx, yy, xy"""


@fast_kernel
def ssim_rows(start, stop, rendered, photo, window, channels, slopes, sums, grain):
    """SSIM of the window positions in rows [start, stop) and its partial derivatives.

    ``rendered`` and ``photo`` are [H, W * channels]; window positions [H - 10, (W - 10) * channels]. ``slopes``
    [3, H - 10, (W - 10) * channels] becomes d SSIM / d blur(x), d / d blur(xx), d / d blur(xy); ``sums[range]`` the sum
    of SSIM, float64.
    """
    real = rendered.dtype.type
    two, c1, c2 = real(2), real(C1), real(C2)
    across, inner = rendered.shape[1], slopes.shape[2]
    columns = np.empty((FIELDS, across), rendered.dtype)
    total = 0.0
    for row in range(start, stop):
        columns[:] = real(0)
        for tap in range(TAPS):
            weight = window[tap]
            x_row, y_row = rendered[row + tap], photo[row + tap]
            for i in range(np.uint64(across)):
                x, y = x_row[i], y_row[i]
                columns[0, i] += weight * x
                columns[1, i] += weight * y
                columns[2, i] += weight * x * x
                columns[3, i] += weight * y * y
                columns[4, i] += weight * x * y
        row_sum = real(0)
        for i in range(np.uint64(inner)):
            mx = my = xx = yy = xy = real(0)
            for tap in range(TAPS):
                j = i + np.uint64(tap * channels)
                weight = window[tap]
                mx += weight * columns[0, j]
                my += weight * columns[1, j]
                xx += weight * columns[2, j]
                yy += weight * columns[3, j]
                xy += weight * columns[4, j]
            a1, b1 = two * mx * my + c1, mx * mx + my * my + c1
            a2, b2 = two * (xy - mx * my) + c2, (xx - mx * mx) + (yy - my * my) + c2
            both = real(1) / (b1 * b2)
            value = a1 * a2 * both
            row_sum += value
            to_xx = -value / b2
            to_xy = two * a1 * both
            slopes[0, row, i] = two * my * a2 * both - two * mx * value / b1 - two * mx * to_xx - my * to_xy
            slopes[1, row, i] = to_xx
            slopes[2, row, i] = to_xy
        total += row_sum
    sums[start // grain] = total


@fast_kernel
def gradient_rows(
    start, stop, rendered, photo, window, channels, slopes, ssim_scale, l1_scale, gradient, sums, grain
):  # fmt: skip
    """Gradient of the loss to rows [start, stop) of the rendering; ``sums[range]`` is the sum of |x - y|, float64."""
    real = rendered.dtype.type
    height, inner = slopes.shape[1], slopes.shape[2]
    pad = (TAPS - 1) * channels
    # Zeros on both sides make the transposed blur one flat loop.
    columns = np.zeros((3, inner + 2 * pad), rendered.dtype)
    total = 0.0
    for row in range(start, stop):
        columns[:, pad : pad + inner] = real(0)
        for tap in range(TAPS):
            source = row - tap
            if source < 0 or source >= height:
                continue
            weight = window[tap]
            for field in range(3):
                slope_row, column_row = slopes[field, source], columns[field]
                for i in range(np.uint64(inner)):
                    column_row[i + np.uint64(pad)] += weight * slope_row[i]
        x_row, y_row, out = rendered[row], photo[row], gradient[row]
        row_sum = real(0)
        for i in range(np.uint64(x_row.size)):
            g0 = g1 = g2 = real(0)
            for tap in range(TAPS):
                j = i + np.uint64(pad - tap * channels)
                weight = window[tap]
                g0 += weight * columns[0, j]
                g1 += weight * columns[1, j]
                g2 += weight * columns[2, j]
            x, y = x_row[i], y_row[i]
            gap = x - y
            side = real(1) if gap > real(0) else (real(-1) if gap < real(0) else real(0))
            out[i] = real(ssim_scale) * (g0 + real(2) * x * g1 + y * g2) + real(l1_scale) * side
            row_sum += abs(gap)
        total += row_sum
    sums[start // grain] = total
