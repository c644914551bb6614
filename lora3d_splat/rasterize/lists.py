"""Per-tile lists of splats in depth order, without sorting (tile, splat) pairs.

Visible splats are sorted once by depth; walking them in that order and appending each to its tiles leaves every list
sorted. The order is that of gsplat's sort of (tile, float32 depth bits), ties by index, in time O(splats + pairs).
"""

from __future__ import annotations

import math

import numpy as np

from lora3d_splat.rasterize.numerics import ALPHA_MIN, TILE, strict_kernel

SPLAT_COLUMNS = 12
"""x, y, xx/2, xy, yy/2, opacity, red, green, blue, depth, half extents in x and y of the alpha = 1/255 ellipse."""

DIGIT_BITS = 11
BUCKETS = 1 << DIGIT_BITS
EXTENT_MARGIN = 0.02
"""Pixels added to the ellipse's half extents: they only skip work and never decide a pixel."""


@strict_kernel
def sort_by_depth(depths, radii):
    """Indices of the visible splats by increasing float32 depth, ties by index (stable radix sort, 3 x 11 bits)."""
    visible = 0
    for n in range(depths.size):
        visible += radii[n, 0] > 0
    keys, order = np.empty(visible, np.uint32), np.empty(visible, np.int32)
    other_keys, other_order = np.empty(visible, np.uint32), np.empty(visible, np.int32)
    counts = np.zeros((3, BUCKETS), np.int32)
    m = 0
    for n in range(depths.size):
        if radii[n, 0] > 0:
            key = np.float32(depths[n]).view(np.uint32)
            keys[m], order[m] = key, n
            for digit in range(3):
                counts[digit, (key >> np.uint32(DIGIT_BITS * digit)) & np.uint32(BUCKETS - 1)] += 1
            m += 1
    for digit in range(3):
        position = 0
        for bucket in range(BUCKETS):
            count = counts[digit, bucket]
            counts[digit, bucket] = position
            position += count
        for i in range(visible):
            bucket = (keys[i] >> np.uint32(DIGIT_BITS * digit)) & np.uint32(BUCKETS - 1)
            slot = counts[digit, bucket]
            counts[digit, bucket] = slot + 1
            other_keys[slot], other_order[slot] = keys[i], order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return order


@strict_kernel
def pack(
    start, stop, order, means2d, conics, opacities, colours, depths, radii, square_radius, tiles_x, tiles_y,
    splats, boxes, pair_counts, invalid, grain,
):  # fmt: skip
    """Gather splats of depth ranks [start, stop) into one row each and bound the tiles they touch.

    ``boxes`` [M, 4] int16 is tile x from/to, y from/to: the bounding box of the ellipse outside which alpha stays below
    1/255, with ``square_radius`` cut down to the square of the radius snapped to tiles. ``invalid[range]`` becomes
    1 + the index of a splat whose opacity or colour is not finite.
    """
    real = splats.dtype.type
    half, one, zero = real(0.5), real(1), real(0)
    size = real(TILE)
    for rank in range(start, stop):
        n = order[rank]
        x, y, opacity = means2d[n, 0], means2d[n, 1], opacities[n]
        a, b, c = conics[n, 0], conics[n, 1], conics[n, 2]
        if not math.isfinite(opacity + colours[n, 0] + colours[n, 1] + colours[n, 2]):
            invalid[start // grain] = n + 1
            opacity = zero
        reach, extent_x, extent_y = real(2) * math.log(max(opacity / real(ALPHA_MIN), one)), real(-1), real(-1)
        if opacity >= real(ALPHA_MIN * 0.999):
            inverse_det = one / max(a * c - b * b, real(1e-30))
            extent_x = math.sqrt(reach * c * inverse_det) * real(1.001) + real(EXTENT_MARGIN)
            extent_y = math.sqrt(reach * a * inverse_det) * real(1.001) + real(EXTENT_MARGIN)
        splats[rank, 0], splats[rank, 1] = x, y
        splats[rank, 2], splats[rank, 3], splats[rank, 4] = half * a, b, half * c
        splats[rank, 5] = opacity
        splats[rank, 6], splats[rank, 7], splats[rank, 8] = colours[n, 0], colours[n, 1], colours[n, 2]
        splats[rank, 9], splats[rank, 10], splats[rank, 11] = depths[n], extent_x, extent_y
        from_x, to_x = math.floor((x - extent_x) / size), math.ceil((x + extent_x) / size)
        from_y, to_y = math.floor((y - extent_y) / size), math.ceil((y + extent_y) / size)
        if square_radius:
            tile_x, tile_y, tile_radius = x / size, y / size, real(radii[n, 0]) / size
            from_x, to_x = max(from_x, math.floor(tile_x - tile_radius)), min(to_x, math.ceil(tile_x + tile_radius))
            from_y, to_y = max(from_y, math.floor(tile_y - tile_radius)), min(to_y, math.ceil(tile_y + tile_radius))
        from_x, to_x = min(max(from_x, 0), tiles_x), min(max(to_x, 0), tiles_x)
        from_y, to_y = min(max(from_y, 0), tiles_y), min(max(to_y, 0), tiles_y)
        if extent_x < zero or to_x < from_x or to_y < from_y:
            to_x, to_y = from_x, from_y
        boxes[rank, 0], boxes[rank, 1], boxes[rank, 2], boxes[rank, 3] = from_x, to_x, from_y, to_y
        pair_counts[rank] = (to_x - from_x) * (to_y - from_y)


@strict_kernel
def exclusive_sum(counts, sums):
    """sums[0] = 0, sums[i + 1] = sums[i] + counts[i]."""
    total = 0
    sums[0] = 0
    for i in range(counts.size):
        total += counts[i]
        sums[i + 1] = total


@strict_kernel
def count_pairs(start, stop, boxes, tiles_x, tile_counts):
    """Number of splats in each tile of the tile rows [start, stop)."""
    for rank in range(boxes.shape[0]):
        for tile_y in range(max(boxes[rank, 2], start), min(boxes[rank, 3], stop)):
            for tile in range(tile_y * tiles_x + boxes[rank, 0], tile_y * tiles_x + boxes[rank, 1]):
                tile_counts[tile] += 1


@strict_kernel
def fill_lists(start, stop, boxes, tiles_x, pair_starts, cursors, ranks, slots):
    """Append the splats to the tiles of the tile rows [start, stop).

    ``ranks[i]`` is the depth rank of list entry i, ``slots[i]`` the place of this pair among all pairs counted splat by
    splat, where its gradients will be written.
    """
    for rank in range(boxes.shape[0]):
        from_x, to_x, from_y = boxes[rank, 0], boxes[rank, 1], boxes[rank, 2]
        for tile_y in range(max(from_y, start), min(boxes[rank, 3], stop)):
            slot = pair_starts[rank] + (tile_y - from_y) * (to_x - from_x)
            for tile in range(tile_y * tiles_x + from_x, tile_y * tiles_x + to_x):
                entry = cursors[tile]
                cursors[tile] = entry + 1
                ranks[entry] = rank
                slots[entry] = slot
                slot += 1
