"""One Gauss-Newton step over all cameras and pairs, the depths eliminated: conjugate gradients, linear in the pairs.

Every block (one side of one pair) touches fourteen parameters. Its normal equations with the depths held are a small
local matrix; a free depth couples the blocks of its view through one row per pixel, the derivative of the errors
against the pixel's ray. The system

    H = sum_b H_b - sum_pixels z z^T,   z = sum of the rows of the pixel's blocks,

is never formed. The preconditioner is the same sum with each row alone, sum_b (H_b - z_b z_b^T): positive, close, and
solved exactly, since without the coupling every pair is a seven-by-seven island between two views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Linearised residuals of B blocks with S samples each; local parameters are numbered 0 to 13."""

    hessian: Tensor
    """(B, 14, 14) with the depths held"""
    gradient: Tensor
    """(B, 14)"""
    rows: Tensor
    """(B, S, 14) derivative against the ray, over the root of the depth's stiffness"""
    view: Tensor
    """(B,) view of each block"""
    index: Tensor
    """(B, 14) place of each local parameter; the last place of the system collects what is fixed"""


@dataclass(frozen=True)
class System:
    """Blocks with what is added to the diagonal of the normal equations."""

    blocks: Blocks
    size: int
    """number of free parameters"""
    land: int
    """number of those that belong to views and focals, which come first"""
    own: int
    """number of each pair's own ones, the last of a block's local parameters: 7 or none"""
    gradient: Tensor
    """(size,) of the priors alone"""
    extra: Tensor
    """(size,) added to the diagonal: priors"""
    pin: Tensor
    """(size,) direction held by a stiff spring"""

    def gather(self, local: Tensor) -> Tensor:
        """(size,) sum of the blocks' local values (B, 14); what belongs to fixed parameters is dropped"""
        index = self.blocks.index.flatten()
        return local.new_zeros(self.size + 1).index_add_(0, index, local.flatten())[:-1]


def gauss_newton_step(system: System, damping: float, tolerance: float, rounds: int) -> Tensor:
    """(size,) step that minimises the quadratic model, damped relative to its diagonal (Levenberg-Marquardt)."""
    blocks = system.blocks
    near = blocks.hessian - blocks.rows.transpose(1, 2) @ blocks.rows
    gradient = system.gradient + system.gather(blocks.gradient)
    diagonal = system.gather(near.diagonal(dim1=1, dim2=2))
    extra = system.extra + damping * diagonal.clamp_min(1e-9 * diagonal.max())
    stiff = 10.0 * diagonal.max()
    precondition = _preconditioner(system, near, extra)

    def apply(step: Tensor) -> Tensor:
        return _times(system, step) + extra * step + stiff * system.pin * (system.pin @ step)

    return _conjugate_gradients(apply, precondition, -gradient, tolerance, rounds)


def _times(system: System, step: Tensor) -> Tensor:
    """H @ step without forming H."""
    blocks = system.blocks
    local = torch.cat([step, step.new_zeros(1)])[blocks.index]
    lifted = (blocks.rows @ local[..., None])[..., 0]
    pooled = lifted.new_zeros(int(blocks.view.max()) + 1, lifted.shape[1]).index_add_(0, blocks.view, lifted)
    back = (blocks.hessian @ local[..., None])[..., 0]
    return system.gather(back - (pooled[blocks.view][:, None] @ blocks.rows)[:, 0])


def _preconditioner(system: System, near: Tensor, extra: Tensor) -> Callable[[Tensor], Tensor]:
    """Solve the uncoupled system: pairs eliminated as islands, a small dense system of the views left."""
    land, own, cut = system.land, system.own, near.shape[1] - system.own
    # Fixed parameters have the last place of the whole system, beyond the pairs: all of it lands in one spare row.
    shore = system.blocks.index[:, :cut].clamp_max(land)
    dense = near.new_zeros(land + 1, land + 1)
    dense.index_put_((shore[:, :, None], shore[:, None, :]), near[:, :cut, :cut], accumulate=True)
    dense.diagonal()[:land] += extra[:land]
    if own == 0:
        factor = _factor(dense[:land, :land])
        return lambda right: torch.cholesky_solve(right[:, None], factor)[:, 0]
    links = near[:, :cut, cut:].unflatten(0, (-1, 2)).flatten(1, 2)
    shores = shore.unflatten(0, (-1, 2)).flatten(1, 2)
    island = near[:, cut:, cut:].unflatten(0, (-1, 2)).sum(1) + torch.diag_embed(extra[land:].view(-1, own))
    inner = _factor(island)
    carried = torch.cholesky_solve(links.transpose(1, 2), inner)
    dense.index_put_((shores[:, :, None], shores[:, None, :]), -(links @ carried), accumulate=True)
    factor = _factor(dense[:land, :land])

    def solve(right: Tensor) -> Tensor:
        sea = torch.cholesky_solve(right[land:].view(-1, own, 1), inner)
        coast = torch.cat([right[:land], right.new_zeros(1)])
        coast = coast.index_add(0, shores.flatten(), -(links @ sea).flatten())[:land]
        coast = torch.cholesky_solve(coast[:, None], factor)[:, 0]
        reach = torch.cat([coast, coast.new_zeros(1)])[shores]
        return torch.cat([coast, (sea - carried @ reach[..., None]).flatten()])

    return solve


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factor, with as much on the diagonal as it takes."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None].clamp_min(torch.finfo(matrix.dtype).tiny)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for jitter in (1e-13, 1e-10, 1e-7, 1e-4):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * scale * eye)
        if not bool(failed.any()):
            return factor
    return torch.linalg.cholesky(matrix + scale * eye)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right: Tensor,
    tolerance: float,
    rounds: int,
) -> Tensor:
    """Preconditioned conjugate gradients from zero, until the residual has fallen to `tolerance` of its start."""
    step, residual = torch.zeros_like(right), right
    direction = conditioned = precondition(residual)
    power = start = residual @ conditioned
    for _ in range(rounds):
        image = apply(direction)
        curvature = direction @ image
        if not float(curvature) > 0 or float(power) <= tolerance**2 * float(start):
            break
        length = power / curvature
        step, residual = step + length * direction, residual - length * image
        conditioned = precondition(residual)
        power, previous = residual @ conditioned, power
        direction = conditioned + power / previous * direction
    return step
