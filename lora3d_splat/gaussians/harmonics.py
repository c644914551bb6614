"""Turning spherical-harmonics colours with the scene, for export into another frame."""

from __future__ import annotations

import torch
from torch import Tensor


def harmonics_basis(directions: Tensor) -> Tensor:
    """(M, 16) real spherical harmonics up to degree 3 at unit directions (M, 3), 3D Gaussian Splatting's signs."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.2820947917738781),
            -0.48860251190292 * y,
            0.48860251190292 * z,
            -0.48860251190292 * x,
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.3153915652525201 * (3 * zz - 1),
            -1.092548430592079 * x * z,
            0.5462742152960395 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=-1,
    )


def rotate_harmonics(rest: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients (N, K, 3) of degrees 1 and up, K = 0, 3, 8 or 15, of the scene turned by `rotation` (3, 3).

    The turned scene shows along R d what the given one shows along d. Each degree maps onto itself by a matrix, found
    here from the basis at scattered directions.
    """
    if not bool(rest.any()):
        return rest
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1)
    before, after = harmonics_basis(directions), harmonics_basis(directions @ rotation.double().cpu().T)
    turned = torch.empty_like(rest)
    for degree in range(1, 4):
        first, last = degree**2, (degree + 1) ** 2
        if rest.shape[1] < last - 1:
            break
        # before @ c == after @ (matrix @ c) for every c
        matrix = torch.linalg.lstsq(after[:, first:last], before[:, first:last]).solution.to(rest)
        turned[:, first - 1 : last - 1] = torch.einsum("ij,njc->nic", matrix, rest[:, first - 1 : last - 1])
    return turned
