"""The `.splat` format of web viewers: 32 bytes a Gaussian, colours without direction.

Little-endian, without a header: position and standard deviations as three float32 each, then red, green, blue, opacity
and the quaternion (real part first) as bytes; a quaternion's component q is stored as 128 q + 128.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora3d_splat.errors import InputError
from lora3d_splat.export.splat import SH_C0, Splat
from lora3d_splat.files import atomic_file

_RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def write_dot_splat(path: Path, splat: Splat) -> None:
    """Write Gaussians, the largest and most opaque first, because viewers show what has arrived."""
    opacity = sigmoid(splat.opacity_logit)
    order = np.argsort(-opacity * np.exp(splat.log_scale.sum(1) / 3), kind="stable")
    records = np.empty(len(order), _RECORD)
    records["position"] = splat.means[order]
    records["scale"] = np.exp(splat.log_scale[order])
    records["rgba"][:, :3] = as_bytes(0.5 + SH_C0 * splat.sh_dc[order])
    records["rgba"][:, 3] = as_bytes(opacity[order])
    norm = np.linalg.norm(splat.quaternion_wxyz[order], axis=1, keepdims=True)
    unit = splat.quaternion_wxyz[order] / np.maximum(norm, 1e-12)
    records["rotation"] = np.clip(np.rint(unit * 128 + 128), 0, 255).astype(np.uint8)
    with atomic_file(path) as temporary:
        temporary.write_bytes(records.tobytes())


def read_dot_splat(path: Path) -> Splat:
    """Read Gaussians back, in the order of the file; colours have no directional part."""
    content = path.read_bytes()
    if len(content) % _RECORD.itemsize:
        raise InputError(
            f"{path} of {len(content)} bytes", f"a multiple of {_RECORD.itemsize} bytes", "export the file again"
        )
    records = np.frombuffer(content, _RECORD)
    opacity = np.clip(records["rgba"][:, 3] / 255.0, 1 / 512, 1 - 1 / 512)
    rotation = (records["rotation"].astype(np.float32) - 128) / 128
    return Splat(
        means=records["position"].copy(),
        sh_dc=((records["rgba"][:, :3] / 255.0 - 0.5) / SH_C0).astype(np.float32),
        sh_rest=np.zeros((len(records), 0, 3), np.float32),
        opacity_logit=np.log(opacity / (1 - opacity)).astype(np.float32),
        log_scale=np.log(np.maximum(records["scale"], 1e-30)),
        quaternion_wxyz=rotation / np.maximum(np.linalg.norm(rotation, axis=1, keepdims=True), 1e-12),
    )


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit.astype(np.float64)))


def as_bytes(values: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8, rounded."""
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
