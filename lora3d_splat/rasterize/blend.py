"""Forward blending kernel: tiles of 16 x 16 pixels, splat by splat from front to back.

A tile's state is one flat array of planes of 256 values. Pixels are stored as two half columns of 8 x 16, so that a
splat visits only the rows and halves its ellipse reaches, in one flat loop that LLVM turns into vector code. One array
instead of several spares the loop its aliasing checks; unsigned indices spare it the negative-index wrap.
"""

from __future__ import annotations

import numpy as np

from lora3d_splat.rasterize.numerics import (
    ALPHA_MIN,
    PIXELS,
    TILE,
    TRANSMITTANCE_MIN,
    exp_of_negative,
    fast_kernel,
    inlined_kernel,
)

HALF = TILE // 2
HALF_PIXELS = PIXELS // 2
CACHE_LINE = 64
"""Bytes."""
SIGMA_MAX = 12.0
"""exp(-12) is far below 1/255: larger exponents only need to stay in the range of the fast exponential."""
STOP_TEST_EVERY = 32
"""Splats between two looks at whether any pixel of the tile is still unfinished."""

# Planes of the forward state; the first two, OFFSET_X and OFFSET_Y, hold pixel centres relative to the tile.
OFFSET_X, OFFSET_Y = np.uint64(0), np.uint64(PIXELS)
TRANS, LAST = np.uint64(2 * PIXELS), np.uint64(3 * PIXELS)
RED, GREEN, BLUE, DEPTH = (np.uint64(p * PIXELS) for p in (4, 5, 6, 7))
FORWARD_PLANES = 8


@fast_kernel
def tile_state(planes, like):
    """Room for one tile's planes of the type of ``like``, aligned to cache lines; the pixels' offsets are filled in."""
    size = planes * PIXELS
    buffer = np.empty(size + CACHE_LINE, like.dtype)
    skip = (-buffer.ctypes.data % CACHE_LINE) // like.itemsize
    state = buffer[skip : skip + size]
    fill_offsets(state)
    return state


@fast_kernel
def fill_offsets(state):
    """Pixel centres of the two half columns, relative to the tile's corner."""
    real = state.dtype.type
    for half in range(2):
        for row in range(TILE):
            for column in range(HALF):
                p = half * HALF_PIXELS + row * HALF + column
                state[p] = real(half * HALF + column) + real(0.5)
                state[PIXELS + p] = real(row) + real(0.5)


@inlined_kernel
def rows_and_halves(x, y, extent_x, extent_y):
    """Row range and the two flags of the half columns whose pixel centres an ellipse's bounding box can hold.

    The rows are widened to whole pairs: 16 pixels are one vector of AVX-512, and a remainder takes as long as several.
    """
    half = type(x)(0.5)
    from_row = max(int(np.ceil(y - extent_y - half)), 0)
    to_row = min(int(np.floor(y + extent_y - half)) + 1, TILE)
    left = x - extent_x <= type(x)(HALF) - half
    right = x + extent_x >= type(x)(HALF) + half
    return from_row & ~1, (to_row + 1) & ~1, left, right


@inlined_kernel
def blend_splat(state, begin, end, splat, x, y, number, alpha_max, with_depth):
    """Blend one splat into pixels [begin, end) of the state; ``with_depth`` None leaves the depth plane out.

    A finished pixel keeps its transmittance with the sign flipped: the stop test then rejects every later splat.
    """
    real = state.dtype.type
    zero, one = real(0), real(1)
    a, b, c, opacity = splat[2], splat[3], splat[4], splat[5]
    red, green, blue, depth = splat[6], splat[7], splat[8], splat[9]
    alpha_min, trans_min, sigma_max = real(ALPHA_MIN), real(TRANSMITTANCE_MIN), real(SIGMA_MAX)
    for p in range(np.uint64(begin), np.uint64(end)):
        dx = x - state[p + OFFSET_X]
        dy = y - state[p + OFFSET_Y]
        sigma = a * dx * dx + c * dy * dy + b * dx * dy
        alpha = min(alpha_max, opacity * exp_of_negative(-min(max(sigma, zero), sigma_max)))
        trans = state[p + TRANS]
        after = trans * (one - alpha)
        seen = (sigma >= zero) & (alpha >= alpha_min)
        open_ = after > trans_min
        blends = seen & open_
        stops = seen & (not open_)
        weight = alpha * trans if blends else zero
        state[p + RED] += weight * red
        state[p + GREEN] += weight * green
        state[p + BLUE] += weight * blue
        if with_depth is not None:
            state[p + DEPTH] += weight * depth
        kept = -abs(trans) if stops else trans
        state[p + TRANS] = after if blends else kept
        state[p + LAST] = number if blends else state[p + LAST]


@fast_kernel
def any_open(state):
    """Whether any pixel of the tile still lets light through."""
    highest = state.dtype.type(-1)
    for p in range(np.uint64(PIXELS)):
        highest = max(highest, state[p + TRANS])
    return highest > state.dtype.type(0)


@fast_kernel
def blend_tiles(
    start, stop, tiles_x, width, height, offsets, ranks, splats, background, expected, alpha_max,
    image, alphas, transmittances, last_entries, with_depth,
):  # fmt: skip
    """Render tiles [start, stop).

    Outputs: ``image`` [H, W, 3 or 4], ``alphas`` [H, W]; for the backward pass, per tile and pixel in half-column
    order, ``transmittances`` [tiles, 256] and ``last_entries`` [tiles, 256] (1 + list position of the last
    contribution, relative to the tile's list). ``with_depth`` is True or None; ``expected`` divides
    the depth sum by alpha.
    """
    real = splats.dtype.type
    clamp = real(alpha_max)
    state = tile_state(FORWARD_PLANES, splats)
    for tile in range(start, stop):
        corner_x, corner_y = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        state[2 * PIXELS :] = real(0)
        room_x, room_y = real(width - corner_x), real(height - corner_y)
        for p in range(PIXELS):
            inside = (state[p] < room_x) & (state[PIXELS + p] < room_y)
            state[2 * PIXELS + p] = real(1) if inside else real(-1)
        begin, end = offsets[tile], offsets[tile + 1]
        for block in range(begin, end, STOP_TEST_EVERY):
            for i in range(block, min(block + STOP_TEST_EVERY, end)):
                s = splats[ranks[i]]
                x, y = s[0] - real(corner_x), s[1] - real(corner_y)
                number = real(i - begin + 1)
                from_row, to_row, left, right = rows_and_halves(x, y, s[10], s[11])
                if to_row <= from_row:
                    continue
                for half in range(2):
                    if (half == 0 and left) or (half == 1 and right):
                        first, last = half * HALF_PIXELS + from_row * HALF, half * HALF_PIXELS + to_row * HALF
                        blend_splat(state, first, last, s, x, y, number, clamp, with_depth)
            if not any_open(state):
                break
        for p in range(PIXELS):
            trans = abs(state[2 * PIXELS + p])
            transmittances[tile, p] = trans
            last_entries[tile, p] = state[3 * PIXELS + p]
            column, row = corner_x + int(state[p]), corner_y + int(state[PIXELS + p])
            if column < width and row < height:
                alpha = real(1) - trans
                alphas[row, column] = alpha
                for channel in range(3):
                    image[row, column, channel] = state[(4 + channel) * PIXELS + p] + trans * background[channel]
                if with_depth is not None:
                    depth = state[7 * PIXELS + p]
                    image[row, column, 3] = depth / max(alpha, real(1e-10)) if expected else depth
