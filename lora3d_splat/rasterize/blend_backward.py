"""Backward blending kernel: the same walk from back to front, then one reduction per splat.

Transmittance is recovered by division from its stored final value, and what lies behind a splat is one scalar per pixel
(the colour behind, dotted with the pixel's gradient). Per (tile, splat) pair only moments of the gradient over the
pixel offsets are summed; the gradients of mean, conic and opacity follow from them.
"""

from __future__ import annotations

import numpy as np

from lora3d_splat.rasterize.blend import HALF, HALF_PIXELS, OFFSET_X, OFFSET_Y, SIGMA_MAX, rows_and_halves, tile_state
from lora3d_splat.rasterize.numerics import (
    ALPHA_MIN,
    PIXELS,
    TILE,
    exp_of_negative,
    fast_kernel,
    inlined_kernel,
    strict_kernel,
)

TRANS, LAST, BEHIND = (np.uint64(p * PIXELS) for p in (2, 3, 4))
V_RED, V_GREEN, V_BLUE, V_DEPTH = (np.uint64(p * PIXELS) for p in (5, 6, 7, 8))
BACKWARD_PLANES = 9

PAIR_COLUMNS = 10
"""Moments 1, x, y, xx, xy, yy of the gradient, then red, green, blue, depth; absgrad appends |x| and |y|."""


@inlined_kernel
def unblend_splat(state, begin, end, splat, x, y, number, alpha_max, with_depth, absgrad):
    """Gradient sums of one splat over pixels [begin, end); ``with_depth`` or ``absgrad`` None leaves that part out."""
    real = state.dtype.type
    zero, one, two = real(0), real(1), real(2)
    a, b, c, opacity = splat[2], splat[3], splat[4], splat[5]
    red, green, blue, depth = splat[6], splat[7], splat[8], splat[9]
    alpha_min, sigma_max = real(ALPHA_MIN), real(SIGMA_MAX)
    m = m_x = m_y = m_xx = m_xy = m_yy = zero
    s_red = s_green = s_blue = s_depth = abs_x = abs_y = zero
    for p in range(np.uint64(begin), np.uint64(end)):
        dx = x - state[p + OFFSET_X]
        dy = y - state[p + OFFSET_Y]
        sigma = a * dx * dx + c * dy * dy + b * dx * dy
        raw = opacity * exp_of_negative(-min(max(sigma, zero), sigma_max))
        alpha = min(alpha_max, raw)
        blends = (sigma >= zero) & (alpha >= alpha_min) & (state[p + LAST] >= number)
        inverse = one / (one - alpha) if blends else one
        trans = state[p + TRANS] * inverse
        behind = state[p + BEHIND]
        colour = red * state[p + V_RED] + green * state[p + V_GREEN] + blue * state[p + V_BLUE]
        if with_depth is not None:
            colour += depth * state[p + V_DEPTH]
        v_alpha = trans * colour - behind * inverse
        weight = alpha * trans if blends else zero
        state[p + TRANS] = trans
        state[p + BEHIND] = behind + weight * colour
        s_red += weight * state[p + V_RED]
        s_green += weight * state[p + V_GREEN]
        s_blue += weight * state[p + V_BLUE]
        if with_depth is not None:
            s_depth += weight * state[p + V_DEPTH]
        # -dL/dsigma; a clamped alpha passes nothing on.
        pull = raw * v_alpha if blends & (raw <= alpha_max) else zero
        pull_x, pull_y = pull * dx, pull * dy
        m += pull
        m_x += pull_x
        m_y += pull_y
        m_xx += pull_x * dx
        m_xy += pull_x * dy
        m_yy += pull_y * dy
        if absgrad is not None:
            abs_x += abs(two * a * pull_x + b * pull_y)
            abs_y += abs(b * pull_x + two * c * pull_y)
    return m, m_x, m_y, m_xx, m_xy, m_yy, s_red, s_green, s_blue, s_depth, abs_x, abs_y


@strict_kernel
def load_tile(
    state, tile, tiles_x, width, height, background, expected, image, alphas, transmittances, last_entries, v_image,
    v_alphas, with_depth,
):  # fmt: skip
    """Fill the backward state of one tile and return its last contributing entry for each half column."""
    real = state.dtype.type
    last_left, last_right = real(0), real(0)
    for p in range(PIXELS):
        column, row = (tile % tiles_x) * TILE + int(state[p]), (tile // tiles_x) * TILE + int(state[PIXELS + p])
        trans, last = transmittances[tile, p], last_entries[tile, p]
        for plane in range(2, BACKWARD_PLANES):
            state[plane * PIXELS + p] = real(0)
        if column >= width or row >= height:
            continue
        red, green, blue = v_image[row, column, 0], v_image[row, column, 1], v_image[row, column, 2]
        v_alpha = v_alphas[row, column]
        if with_depth is not None:
            v_depth = v_image[row, column, 3]
            if expected:
                alpha = alphas[row, column]
                v_depth /= max(alpha, real(1e-10))
                if alpha > real(1e-10):
                    v_alpha -= v_depth * image[row, column, 3]
            state[8 * PIXELS + p] = v_depth
        state[2 * PIXELS + p] = trans
        state[3 * PIXELS + p] = last
        # alpha = 1 - T and the background T c act like a last, opaque splat behind everything.
        v_trans = red * background[0] + green * background[1] + blue * background[2] - v_alpha
        state[4 * PIXELS + p] = trans * v_trans
        state[5 * PIXELS + p], state[6 * PIXELS + p], state[7 * PIXELS + p] = red, green, blue
        if p < HALF_PIXELS:
            last_left = max(last_left, last)
        else:
            last_right = max(last_right, last)
    return last_left, last_right


@fast_kernel
def unblend_tiles(
    start, stop, tiles_x, width, height, offsets, ranks, slots, splats, background, expected, alpha_max,
    image, alphas, transmittances, last_entries, v_image, v_alphas, pairs, with_depth, absgrad,
):  # fmt: skip
    """Write the gradient sums of every (tile, splat) pair of tiles [start, stop) to the pair's own row of ``pairs``."""
    real = splats.dtype.type
    clamp = real(alpha_max)
    state = tile_state(BACKWARD_PLANES, splats)
    for tile in range(start, stop):
        last_left, last_right = load_tile(
            state, tile, tiles_x, width, height, background, expected, image, alphas, transmittances, last_entries,
            v_image, v_alphas, with_depth,
        )  # fmt: skip
        begin = offsets[tile]
        for back in range(offsets[tile + 1] - begin):
            i = offsets[tile + 1] - 1 - back
            number = real(i - begin + 1)
            row = pairs[slots[i]]
            row[:] = real(0)
            if number > max(last_left, last_right):
                continue
            s = splats[ranks[i]]
            x, y = s[0] - real((tile % tiles_x) * TILE), s[1] - real((tile // tiles_x) * TILE)
            from_row, to_row, reaches_left, reaches_right = rows_and_halves(x, y, s[10], s[11])
            left, right = reaches_left & (number <= last_left), reaches_right & (number <= last_right)
            if to_row <= from_row:
                continue
            for half in range(2):
                if (half == 0 and left) or (half == 1 and right):
                    first, last = half * HALF_PIXELS + from_row * HALF, half * HALF_PIXELS + to_row * HALF
                    sums = unblend_splat(state, first, last, s, x, y, number, clamp, with_depth, absgrad)
                    for column in range(PAIR_COLUMNS):
                        row[column] += sums[column]
                    if absgrad is not None:
                        row[10] += sums[10]
                        row[11] += sums[11]


@strict_kernel
def gather_splats(
    start, stop, order, pair_starts, pairs, splats, v_means2d, v_conics, v_opacities, v_colours, v_depths, v_abs,
):  # fmt: skip
    """Sum the pairs of each splat of depth ranks [start, stop) and turn moments into gradients.

    Every splat adds its own pairs in a fixed order, so the result does not depend on the number of threads.
    """
    real = splats.dtype.type
    half, two = real(0.5), real(2)
    sums = np.empty(pairs.shape[1], splats.dtype)
    for rank in range(start, stop):
        sums[:] = real(0)
        for pair in range(pair_starts[rank], pair_starts[rank + 1]):
            for column in range(sums.size):
                sums[column] += pairs[pair, column]
        n = order[rank]
        a, b, c = two * splats[rank, 2], splats[rank, 3], two * splats[rank, 4]
        v_means2d[n, 0] = -(a * sums[1] + b * sums[2])
        v_means2d[n, 1] = -(b * sums[1] + c * sums[2])
        v_conics[n, 0], v_conics[n, 1], v_conics[n, 2] = -half * sums[3], -sums[4], -half * sums[5]
        if splats[rank, 5] > real(0):
            v_opacities[n] = sums[0] / splats[rank, 5]
        v_colours[n, 0], v_colours[n, 1], v_colours[n, 2] = sums[6], sums[7], sums[8]
        v_depths[n] = sums[9]
        if v_abs is not None:
            v_abs[n, 0], v_abs[n, 1] = sums[10], sums[11]
