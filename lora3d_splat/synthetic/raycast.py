"""Numba ray caster: boxes, ellipsoids, cylinders and cones with textures, one light, shadows, mirrors and fog.

A primitive is a canonical shape under an affine map; the ray is moved into the shape's own frame, which leaves the ray
parameter unchanged, so with a direction of unit z in the camera the parameter *is* the z-depth.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from lora3d_splat.synthetic.textures import LEVELS, SIZE

BOX, SPHERE, CYLINDER, CONE = 0, 1, 2, 3
FAR = 1e9

jit = njit(cache=True, fastmath=True, nogil=True, error_model="numpy")


@jit
def _slabs(o, d):
    """Entry and exit of the box [-1, 1]^3 with the axes hit."""
    near, far, near_axis, far_axis = -FAR, FAR, 0, 0
    for axis in range(3):
        if abs(d[axis]) < 1e-12:
            if abs(o[axis]) > 1:
                return FAR, -FAR, 0, 0
            continue
        a = (-1 - o[axis]) / d[axis]
        b = (1 - o[axis]) / d[axis]
        if a > b:
            a, b = b, a
        if a > near:
            near, near_axis = a, axis
        if b < far:
            far, far_axis = b, axis
    return near, far, near_axis, far_axis


@jit
def _round_sides(shape, o, d):
    """Quadratic of the lateral surface: sphere, unit cylinder, or cone with apex at z = 1."""
    a = d[0] * d[0] + d[1] * d[1]
    b = o[0] * d[0] + o[1] * d[1]
    c = o[0] * o[0] + o[1] * o[1]
    if shape == SPHERE:
        return a + d[2] * d[2], b + o[2] * d[2], c + o[2] * o[2] - 1
    if shape == CYLINDER:
        return a, b, c - 1
    rest = 0.5 * (1 - o[2])
    return a - 0.25 * d[2] * d[2], b + 0.5 * rest * d[2], c - rest * rest


@jit
def _cap(shape, o, d, z, start, best):
    """Distance to the flat cap at height z, or `best` where it is not nearer."""
    if abs(d[2]) < 1e-12:
        return best
    t = (z - o[2]) / d[2]
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    return t if start < t < best and x * x + y * y <= 1 else best


@jit
def _hit(shape, o, d, start):
    """Nearest hit beyond `start` in the local frame: (t, face). Box faces are 2 * axis + (positive side)."""
    if shape == BOX:
        near, far, near_axis, far_axis = _slabs(o, d)
        if near > far or far <= start:
            return FAR, 0
        if near > start:
            return near, 2 * near_axis + (1 if d[near_axis] < 0 else 0)
        return far, 2 * far_axis + (1 if d[far_axis] > 0 else 0)
    best, face = FAR, 0
    a, b, c = _round_sides(shape, o, d)
    discriminant = b * b - a * c
    if discriminant >= 0 and abs(a) > 1e-12:
        root = math.sqrt(discriminant)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            z = o[2] + t * d[2]
            if start < t < best and (shape == SPHERE or abs(z) <= 1):
                best = t
    if shape != SPHERE:
        t = _cap(shape, o, d, -1.0, start, best)
        if t < best:
            best, face = t, 4
        if shape == CYLINDER:
            t = _cap(shape, o, d, 1.0, start, best)
            if t < best:
                best, face = t, 5
    return best, face


@jit
def _to_local(matrix, o, d, lo, ld):
    for r in range(3):
        lo[r] = matrix[r, 0] * o[0] + matrix[r, 1] * o[1] + matrix[r, 2] * o[2] + matrix[r, 3]
        ld[r] = matrix[r, 0] * d[0] + matrix[r, 1] * d[1] + matrix[r, 2] * d[2]


@jit
def _misses_bound(bound, o, d, dd):
    """True when the ray line misses the bounding sphere (x, y, z, squared radius)."""
    x, y, z = bound[0] - o[0], bound[1] - o[1], bound[2] - o[2]
    along = x * d[0] + y * d[1] + z * d[2]
    distance = x * x + y * y + z * z
    return distance * dd - along * along > bound[3] * dd or (along < 0 and distance > bound[3])


@jit
def _nearest(shapes, matrices, bounds, o, d, start, lo, ld):
    """Primitive number, face and distance of the nearest hit; number -1 when there is none."""
    best, which, face = FAR, -1, 0
    dd = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    for k in range(shapes.shape[0]):
        if _misses_bound(bounds[k], o, d, dd):
            continue
        _to_local(matrices[k], o, d, lo, ld)
        t, f = _hit(shapes[k], lo, ld, start)
        if t < best:
            best, which, face = t, k, f
    return which, face, best


@jit
def _occluded(shapes, matrices, bounds, o, d, lo, ld):
    """True when something lies between o and o + d."""
    dd = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    for k in range(shapes.shape[0]):
        if _misses_bound(bounds[k], o, d, dd):
            continue
        _to_local(matrices[k], o, d, lo, ld)
        if _hit(shapes[k], lo, ld, 1e-3)[0] < 0.999:
            return True
    return False


@jit
def _texel(texels, offset, side, u, v, out, weight):
    """Add a bilinear lookup in one mip level, in linear light (gamma 2)."""
    x, y = (u - math.floor(u)) * side - 0.5, (v - math.floor(v)) * side - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    fx, fy = x - x0, y - y0
    for dy in range(2):
        for dx in range(2):
            w = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * weight
            row, column = (int(y0) + dy) % side, (int(x0) + dx) % side
            texel = texels[offset + row * side + column]
            for c in range(3):
                value = texel[c] / 255.0
                out[c] += w * value * value


@jit
def _albedo(texels, offsets, u, v, footprint, out):
    """Trilinear lookup; `footprint` is the pixel's width in texture repeats."""
    level = min(max(math.log2(max(footprint * SIZE, 1.0)), 0.0), LEVELS - 1.001)
    low = int(level)
    out[0] = out[1] = out[2] = 0.0
    _texel(texels, offsets[low], SIZE >> low, u, v, out, 1 - (level - low))
    _texel(texels, offsets[low + 1], SIZE >> (low + 1), u, v, out, level - low)


@jit
def _local_normal(shape, face, p, n):
    n[0] = n[1] = n[2] = 0.0
    if shape == BOX:
        n[face // 2] = 1.0 if face % 2 else -1.0
    elif face >= 4:
        n[2] = 1.0 if face == 5 else -1.0
    else:
        n[0], n[1] = p[0], p[1]
        n[2] = p[2] if shape == SPHERE else (0.25 * (1 - p[2]) if shape == CONE else 0.0)


@jit
def _surface_uv(shape, face, p, half):
    """Texture coordinates in world units, upright on vertical faces."""
    if shape == BOX:
        axis = face // 2
        if axis == 0:
            return p[1] * half[1], -p[2] * half[2]
        if axis == 1:
            return p[0] * half[0], -p[2] * half[2]
        return p[0] * half[0], p[1] * half[1]
    if face >= 4:
        return p[0] * half[0], p[1] * half[1]
    angle = math.atan2(p[1], p[0]) * max(half[0], half[1])
    if shape == SPHERE:
        return angle, -math.asin(min(1.0, max(-1.0, p[2]))) * half[2]
    return angle, -p[2] * half[2]


@jit
def _sky(sky, d, out):
    """Horizon-to-zenith gradient with soft bands of cloud."""
    up = d[2] / math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    x, y = d[0] / max(up, 0.05), d[1] / max(up, 0.05)
    cloud = 0.5 + 0.25 * math.sin(1.3 * x + 2 * math.sin(0.7 * y)) + 0.25 * math.sin(1.9 * y + 1.5 * math.sin(1.1 * x))
    cloud *= min(1.0, max(0.0, up * 3)) * sky[2, 0]
    mix = min(1.0, max(0.0, up * 1.5))
    for c in range(3):
        out[c] = (sky[0, c] * (1 - mix) + sky[1, c] * mix) * (1 - cloud) + cloud * 0.9


@jit
def _shade(geometry, looks, texture, light, o, d, hit, pixel, work, out):
    """Colour in linear light of one hit (number, face, distance)."""
    shapes, matrices, bounds, halves = geometry
    textures, tints, scales, shifts, gloss, _ = looks
    texels, offsets = texture
    which, face, t = hit
    lo, ld, n, p, w = work[0], work[1], work[2], work[3], work[4]
    _to_local(matrices[which], o, d, lo, ld)
    for c in range(3):
        p[c] = o[c] + t * d[c]
        lo[c] += t * ld[c]
    _local_normal(shapes[which], face, lo, ld)
    matrix = matrices[which]
    for c in range(3):
        n[c] = matrix[0, c] * ld[0] + matrix[1, c] * ld[1] + matrix[2, c] * ld[2]
    length = math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2) + 1e-20
    facing = -(n[0] * d[0] + n[1] * d[1] + n[2] * d[2]) / length
    sign = 1.0 if facing > 0 else -1.0  # rooms are seen from inside
    for c in range(3):
        n[c] *= sign / length
    distance = math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    cosine = abs(facing) / distance
    u, v = _surface_uv(shapes[which], face, lo, halves[which])
    scale = scales[which, face]
    footprint = t * pixel * scale / math.sqrt(max(cosine, 0.08))
    _albedo(
        texels[textures[which, face]],
        offsets,
        u * scale + shifts[which, 0],
        v * scale + shifts[which, 1],
        footprint,
        out,
    )
    sun, colours = light[0], light[1:]
    for c in range(3):
        w[c] = sun[c] - p[c] if sun[3] > 0 else sun[c] * 100.0
    reach = math.sqrt(w[0] ** 2 + w[1] ** 2 + w[2] ** 2)
    lambert = (n[0] * w[0] + n[1] * w[1] + n[2] * w[2]) / reach
    shine = 0.0
    if lambert > 0:
        for c in range(3):
            p[c] += n[c] * 1e-3 * max(t, 0.3)
            w[c] = sun[c] - p[c] if sun[3] > 0 else sun[c] * 100.0
        if _occluded(shapes, matrices, bounds, p, w, work[5], work[6]):
            lambert = 0.0
        else:
            along = 0.0
            for c in range(3):
                along += (2 * lambert * n[c] - w[c] / reach) * -d[c] / distance
            shine = gloss[which] * max(along, 0.0) ** 24
    lambert = max(lambert, 0.0) * (min(4.0, sun[3] / (reach * reach)) if sun[3] > 0 else 1.0)
    fill = 0.65 + 0.35 * n[2] if sun[3] <= 0 else 0.8 + 0.2 * n[2]
    fog = 1 - math.exp(-t * colours[2, 3])
    for c in range(3):
        lit = out[c] * tints[which, face, c] * (colours[0, c] * lambert + colours[1, c] * fill) + shine * colours[0, c]
        out[c] = lit * (1 - fog) + colours[2, c] * fog


@jit
def _reflect(geometry, looks, texture, light, sky, o, d, hit, pixel, work, out):
    """Mix into the colour of a shaded hit what it mirrors, once; the share grows at grazing angles (Schlick).

    Returns primitive * 8 + face of what is mirrored, -1 for the sky. The normal is the one that `_shade` left.
    """
    which, _, t = hit
    n, r, p, seen = work[2], work[8], work[9], work[10]
    along = d[0] * n[0] + d[1] * n[1] + d[2] * n[2]
    length = math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    share = looks[5][which]
    share += (1 - share) * max(0.0, 1 + along / length) ** 5
    for c in range(3):
        r[c] = d[c] - 2 * along * n[c]
        p[c] = o[c] + t * d[c] + n[c] * 1e-3 * max(t, 0.3)
    found, face, further = _nearest(geometry[0], geometry[1], geometry[2], p, r, 1e-4, work[0], work[1])
    if found < 0:
        _sky(sky, r, seen)
    else:
        wide = pixel * (t + further) / further
        _shade(geometry, looks, texture, light, p, r, (found, face, further), wide, work, seen)
    for c in range(3):
        out[c] += share * (seen[c] - out[c])
    return found * 8 + face if found >= 0 else -1


@jit
def _trace(geometry, looks, texture, light, sky, rotation, origin, x, y, pixel, work, out):
    """Follow the ray through normalised image coordinates (x, y): (what is seen, z-depth or 0).

    What is seen is -1 for the sky, else primitive * 8 + face, plus 8 P times (2 + the same of what is mirrored).
    """
    d = work[7]
    for c in range(3):
        d[c] = rotation[c, 0] * x + rotation[c, 1] * y + rotation[c, 2]
    which, face, t = _nearest(geometry[0], geometry[1], geometry[2], origin, d, 1e-4, work[0], work[1])
    if which < 0:
        _sky(sky, d, out)
        return -1, 0.0
    _shade(geometry, looks, texture, light, origin, d, (which, face, t), pixel, work, out)
    label = which * 8 + face
    if looks[5][which] > 0:
        mirrored = _reflect(geometry, looks, texture, light, sky, origin, d, (which, face, t), pixel, work, out)
        label += 8 * geometry[0].shape[0] * (2 + mirrored)
    return label, t


@jit
def _encode(colour, image, row, column):
    for c in range(3):
        image[row, column, c] = int(min(1.0, math.sqrt(max(colour[c], 0.0))) * 255 + 0.5)


@jit
def cast_view(geometry, looks, texture, light, sky, pose, focal, height, width, samples, everywhere):
    """Render one view: (H, W, 3) uint8 image, (H, W) float32 z-depth at pixel centres (0 = nothing), (H, W) labels.

    Pixels on an outline (or all, with `everywhere`) are averaged over samples x samples rays.
    """
    image = np.empty((height, width, 3), np.uint8)
    depth = np.empty((height, width), np.float32)
    label = np.empty((height, width), np.int32)
    work = np.empty((11, 3), np.float64)
    out, total = np.empty(3), np.empty(3)
    rotation, origin = pose[:3, :3].copy(), pose[:3, 3].copy()
    for r in range(height):
        for q in range(width):
            x, y = (q + 0.5 - width / 2) / focal, (r + 0.5 - height / 2) / focal
            label[r, q], depth[r, q] = _trace(
                geometry, looks, texture, light, sky, rotation, origin, x, y, 1 / focal, work, out
            )
            _encode(out, image, r, q)
    if samples < 2:
        return image, depth, label
    for r in range(height):
        for q in range(width):
            edge = everywhere
            for dr, dq in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                rr, qq = min(max(r + dr, 0), height - 1), min(max(q + dq, 0), width - 1)
                edge = edge or label[rr, qq] != label[r, q]
            if not edge:
                continue
            total[:] = 0
            for k in range(samples * samples):
                x = (q + (k % samples + 0.5) / samples - width / 2) / focal
                y = (r + (k // samples + 0.5) / samples - height / 2) / focal
                _trace(geometry, looks, texture, light, sky, rotation, origin, x, y, 1 / focal, work, out)
                for c in range(3):
                    total[c] += min(out[c], 1.0) / (samples * samples)
            _encode(total, image, r, q)
    return image, depth, label
