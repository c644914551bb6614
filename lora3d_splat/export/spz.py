"""SPZ, version 3: compressed Gaussians, about a tenth of the PLY (layout: README of nianticlabs/spz).

A gzip stream of a 16-byte header and one block per attribute: positions as 24-bit fixed point, opacities, colours and
scales as bytes, rotations as their three smallest components in 10 bits each, spherical harmonics as bytes with 5
significant bits for degree 1 and 4 above. SPZ's axes are right, up, back; those of a PLY are taken for right, down,
front by its readers: y and z change their signs.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from lora3d_splat.errors import InputError
from lora3d_splat.export.dot_splat import as_bytes, sigmoid
from lora3d_splat.export.splat import Splat, moved_splat
from lora3d_splat.files import atomic_file

MAGIC, VERSION = 0x5053474E, 3
_HEADER = struct.Struct("<IIIBBBB")
FLIP = np.diag([1.0, -1.0, -1.0])
COLOUR_SCALE = 0.15
MOST_FRACTION_BITS = 20
HIGHEST = (1 << 23) - 1
MAGNITUDES = (1 << 9) - 1
HARMONICS = {0: 0, 3: 1, 8: 2, 15: 3}
"""Degree by number of coefficients above degree 0."""


def write_spz(path: Path, splat: Splat) -> None:
    """Write Gaussians; positions keep as many fractional bits as the scene's extent leaves."""
    turned = moved_splat(splat, 1.0, FLIP, np.zeros(3))
    count, coefficients = turned.sh_rest.shape[:2]
    extent = float(np.abs(turned.means).max(initial=1e-6))
    bits = int(np.clip(np.floor(np.log2(HIGHEST / extent)), 0, MOST_FRACTION_BITS))
    if extent * 2**bits > HIGHEST:
        raise InputError(f"coordinates up to {extent:.3g}", "below 8,388,607 for SPZ", "export the format ply")
    fixed = np.rint(turned.means.astype(np.float64) * 2**bits).astype("<i4")
    blocks = (
        _HEADER.pack(MAGIC, VERSION, count, HARMONICS[coefficients], bits, 0, 0),
        np.ascontiguousarray(fixed).view(np.uint8).reshape(count, 3, 4)[..., :3].tobytes(),
        as_bytes(sigmoid(turned.opacity_logit)).tobytes(),
        as_bytes(turned.sh_dc * COLOUR_SCALE + 0.5).tobytes(),
        np.clip(np.rint((turned.log_scale + 10.0) * 16.0), 0, 255).astype(np.uint8).tobytes(),
        pack_rotations(turned.quaternion_wxyz).tobytes(),
        _harmonics_bytes(turned.sh_rest).tobytes(),
    )
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(b"".join(blocks), mtime=0))


def read_spz(path: Path) -> Splat:
    """Read Gaussians of version 3 back."""
    content = gzip.decompress(path.read_bytes())
    magic, version, count, degree, bits, _, _ = _HEADER.unpack_from(content)
    if magic != MAGIC or version != VERSION:
        raise InputError(f"{path}, version {version} of something", "SPZ, version 3", "export the file again")
    coefficients = next(number for number, known in HARMONICS.items() if known == degree)
    sizes = (9, 1, 3, 3, 4, 3 * coefficients)
    blocks, offset = [], _HEADER.size
    for size in sizes:
        blocks.append(np.frombuffer(content, np.uint8, count * size, offset).reshape(count, size))
        offset += count * size
    positions, opacity, colour, scale, rotation, harmonics = blocks
    padded = np.zeros((count, 3, 4), np.uint8)
    padded[..., :3] = positions.reshape(count, 3, 3)
    padded[..., 3] = np.where(padded[..., 2] & 0x80, 0xFF, 0)
    alpha = np.clip(opacity[:, 0] / 255.0, 1 / 512, 1 - 1 / 512)
    stored = Splat(
        means=(padded.view("<i4")[..., 0] / 2.0**bits).astype(np.float32),
        sh_dc=((colour / 255.0 - 0.5) / COLOUR_SCALE).astype(np.float32),
        sh_rest=((harmonics.reshape(count, coefficients, 3) - 128.0) / 128.0).astype(np.float32),
        opacity_logit=np.log(alpha / (1 - alpha)).astype(np.float32),
        log_scale=(scale / 16.0 - 10.0).astype(np.float32),
        quaternion_wxyz=unpack_rotations(np.ascontiguousarray(rotation).view("<u4")[:, 0]),
    )
    return moved_splat(stored, 1.0, FLIP, np.zeros(3))


def pack_rotations(quaternion_wxyz: np.ndarray) -> np.ndarray:
    """(N,) uint32: two bits name the largest of x, y, z, w; ten bits (sign, magnitude) hold each of the others."""
    xyzw = quaternion_wxyz[:, [1, 2, 3, 0]].astype(np.float64)
    xyzw /= np.maximum(np.linalg.norm(xyzw, axis=1, keepdims=True), 1e-12)
    largest = np.abs(xyzw).argmax(1)
    xyzw *= np.where(xyzw[np.arange(len(xyzw)), largest] < 0, -1.0, 1.0)[:, None]
    magnitude = np.rint(np.abs(xyzw) * np.sqrt(2) * MAGNITUDES).clip(0, MAGNITUDES).astype(np.uint32)
    fields = magnitude | (xyzw < 0).astype(np.uint32) << np.uint32(9)
    packed = largest.astype(np.uint32)
    for axis in range(4):
        shifted = packed << np.uint32(10) | fields[:, axis]
        packed = np.where(largest == axis, packed, shifted)
    return packed.astype("<u4")


def unpack_rotations(packed: np.ndarray) -> np.ndarray:
    """(N, 4) float32 unit quaternions, real part first, of (N,) uint32."""
    largest, rest = packed >> np.uint32(30), packed.copy()
    xyzw = np.zeros((len(packed), 4))
    for axis in (3, 2, 1, 0):
        stored = largest != axis
        value = (rest & np.uint32(MAGNITUDES)) / (MAGNITUDES * np.sqrt(2))
        xyzw[:, axis] = np.where(stored, np.where(rest >> np.uint32(9) & np.uint32(1), -value, value), 0.0)
        rest = np.where(stored, rest >> np.uint32(10), rest)
    missing = np.sqrt(np.maximum(1.0 - np.square(xyzw).sum(1), 0.0))
    xyzw[np.arange(len(packed)), largest] = missing
    return xyzw[:, [3, 0, 1, 2]].astype(np.float32)


def _harmonics_bytes(rest: np.ndarray) -> np.ndarray:
    """(N, K, 3) coefficients around 128, rounded to buckets of 8 (degree 1) and 16, which compress well."""
    bucket = np.where(np.arange(rest.shape[1]) < 3, 8, 16)[:, None]
    values = np.rint(rest * 128.0) + 128.0
    return np.clip(np.floor((values + bucket / 2) / bucket) * bucket, 0, 255).astype(np.uint8)
