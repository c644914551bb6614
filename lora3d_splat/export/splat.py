"""The PLY layout of Gaussian splats that viewers read.

Columns f_dc_* and f_rest_* (spherical harmonics), opacity (logit), scale_* (logarithm), rot_* (quaternion, real part
first).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora3d_splat.export.ply import columns, read_vertices, write_vertices
from lora3d_splat.gaussians.harmonics import rotate_harmonics
from lora3d_splat.geometry.transforms import rotation_to_wxyz, wxyz_to_rotation

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic: colour = 1/2 + SH_C0 * sh_dc."""

_POSITION, _NORMAL, _ROTATION = ("x", "y", "z"), ("nx", "ny", "nz"), ("rot_0", "rot_1", "rot_2", "rot_3")
_BASE, _SCALE = ("f_dc_0", "f_dc_1", "f_dc_2"), ("scale_0", "scale_1", "scale_2")


@dataclass(frozen=True)
class Splat:
    """Gaussians as plain arrays, all float32."""

    means: np.ndarray
    """(N, 3) world"""
    sh_dc: np.ndarray
    """(N, 3) degree-0 spherical harmonic of each channel"""
    sh_rest: np.ndarray
    """(N, K, 3) higher degrees, K = 0, 3, 8 or 15"""
    opacity_logit: np.ndarray
    """(N,)"""
    log_scale: np.ndarray
    """(N, 3)"""
    quaternion_wxyz: np.ndarray
    """(N, 4) normalised"""


def write_splat_ply(path: Path, splat: Splat, comment: str = "") -> None:
    """Write Gaussians; f_rest holds all coefficients of red, then green, then blue. Quaternions are normalised."""
    count, rest = splat.sh_rest.shape[:2]
    norm = np.linalg.norm(splat.quaternion_wxyz, axis=1, keepdims=True)
    blocks = (
        (_POSITION, splat.means),
        (_NORMAL, np.zeros((count, 3), np.float32)),
        (_BASE, splat.sh_dc),
        (_rest_names(rest), splat.sh_rest.transpose(0, 2, 1).reshape(count, 3 * rest)),
        (("opacity",), splat.opacity_logit.reshape(count, 1)),
        (_SCALE, splat.log_scale),
        (_ROTATION, splat.quaternion_wxyz / np.maximum(norm, 1e-12)),
    )
    names = [name for block, _ in blocks for name in block]
    values = np.concatenate([values for _, values in blocks], axis=1).astype("<f4")
    table = np.ascontiguousarray(values).view(np.dtype([(name, "<f4") for name in names])).reshape(count)
    write_vertices(path, table, comment)


def read_splat_ply(path: Path) -> Splat:
    """Read Gaussians back; raises InputError or ValueError where columns are missing."""
    table = read_vertices(path)
    assert table.dtype.names is not None
    rest = sum(name.startswith("f_rest_") for name in table.dtype.names) // 3
    return Splat(
        columns(table, _POSITION),
        columns(table, _BASE),
        columns(table, _rest_names(rest)).reshape(len(table), 3, rest).transpose(0, 2, 1),
        columns(table, ("opacity",))[:, 0],
        columns(table, _SCALE),
        columns(table, _ROTATION),
    )


def moved_splat(splat: Splat, scale: float, rotation: np.ndarray, translation: np.ndarray) -> Splat:
    """The same Gaussians in another frame: p -> scale * rotation @ p + translation, harmonics turned along."""
    turn = torch.from_numpy(np.asarray(rotation, np.float64))
    turned = turn @ wxyz_to_rotation(torch.from_numpy(splat.quaternion_wxyz).double())
    return Splat(
        means=(scale * (splat.means.astype(np.float64) @ turn.numpy().T) + translation).astype(np.float32),
        sh_dc=splat.sh_dc,
        sh_rest=rotate_harmonics(torch.from_numpy(splat.sh_rest), turn).numpy(),
        opacity_logit=splat.opacity_logit,
        log_scale=splat.log_scale + np.float32(np.log(scale)),
        quaternion_wxyz=rotation_to_wxyz(turned).float().numpy(),
    )


def _rest_names(coefficients: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(3 * coefficients))
