"""One Gauss-Newton system over poses, focals and pair similarities, the depths eliminated by their Schur complement."""

from __future__ import annotations

import torch
from torch import Tensor

from .observations import Observations
from .residuals import DESIGN, Geometry, error_map, features
from .variables import FocalModes


def gauss_newton_step(
    geometry: Geometry, observations: Observations, depth: Tensor, weights: Tensor, modes: FocalModes, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Step (V, 6), (V,), (P, 7) that minimises sum weights |e + J step|^2 over poses, focals, similarities and depths.

    The mean log scale of the pairs does not move: without that pin the objective falls by shrinking the scene.
    """
    hessian, gradient = _assemble(geometry, observations, depth, weights, modes)
    step = _solve_damped(hessian, gradient, observations, damping)
    views, pairs = observations.view_count, observations.pair_count
    pair_step = step[6 * views : 6 * views + 7 * pairs].view(pairs, 7)
    modes_step = torch.cat([step[6 * views + 7 * pairs :], step.new_zeros(1)])
    return step[: 6 * views].view(views, 6), modes_step[modes.mode], pair_step


def _assemble(
    geometry: Geometry, observations: Observations, depth: Tensor, weights: Tensor, modes: FocalModes
) -> tuple[Tensor, Tensor]:
    """Dense (N, N) Hessian and (N,) gradient; the last row and column, of fixed focals, is dropped."""
    index = _parameter_index(observations, modes)
    size = 6 * observations.view_count + 7 * observations.pair_count + modes.count + 1
    values = features(geometry, observations, depth)
    moments = (values * weights[..., None]).transpose(1, 2) @ values
    hessian, gradient = weights.new_zeros(size, size), weights.new_zeros(size)
    blocks = torch.einsum("xik,bkl,xjl->bij", DESIGN, moments, DESIGN)
    hessian.index_put_((index[:, :, None], index[:, None, :]), blocks, accumulate=True)
    slopes = torch.einsum("xik,bkl,bxl->bi", DESIGN, moments, error_map(geometry))
    gradient.index_put_((index,), slopes, accumulate=True)
    _subtract_depths(hessian, geometry, observations, depth, weights, index)
    return hessian[:-1, :-1], gradient[:-1]


def _subtract_depths(
    hessian: Tensor, geometry: Geometry, observations: Observations, depth: Tensor, weights: Tensor, index: Tensor
) -> None:
    """Schur complement: each depth couples every block of its view (the depths are at their best: no gradient).

    A depth moves its point along the ray r. Against r, the derivative of e is r for the view's translation, nothing for
    its rotation (the arm is parallel to r), and -r, r x arm, -r . arm for the pair.
    """
    for view in range(observations.view_count):
        blocks = torch.nonzero(observations.view == view)[:, 0]
        rays, arms, votes = geometry.rays[view], geometry.pair_arms[blocks], weights[blocks, :, None]
        total = votes.sum(0)
        focal = depth[view, :, None] * (geometry.slopes[view] * rays).sum(-1, keepdim=True)
        own = torch.cat([rays, focal], dim=-1) * total
        ray = rays.expand_as(arms)
        pairs = torch.cat([-ray, torch.linalg.cross(ray, arms), -(ray * arms).sum(-1, keepdim=True)], dim=-1) * votes
        stiffness = (total * (rays * rays).sum(-1, keepdim=True)).clamp_min(1e-30).sqrt()
        joint = torch.cat([own, pairs.transpose(0, 1).flatten(1)], dim=1) / stiffness
        columns = torch.cat([index[blocks[0], [0, 1, 2, 6]], index[blocks, 7:].flatten()])
        hessian.index_put_((columns[:, None], columns[None, :]), -(joint.T @ joint), accumulate=True)


def _parameter_index(observations: Observations, modes: FocalModes) -> Tensor:
    """(B, 14) position of each block's local parameters in the system; fixed focals share the last position."""
    views, pairs = observations.view_count, observations.pair_count
    view_part = 6 * observations.view[:, None] + torch.arange(6)
    pair_part = 6 * views + 7 * observations.pair[:, None] + torch.arange(7)
    mode = modes.mode[observations.view]
    focal_part = 6 * views + 7 * pairs + torch.where(mode >= 0, mode, torch.full_like(mode, modes.count))
    return torch.cat([view_part, focal_part[:, None], pair_part], dim=1)


def _solve_damped(hessian: Tensor, gradient: Tensor, observations: Observations, damping: float) -> Tensor:
    """Levenberg-Marquardt step; damping also settles the free choice of the world frame."""
    diagonal = hessian.diagonal().clamp_min(1e-9 * hessian.diagonal().max())
    system = hessian + torch.diag(damping * diagonal)
    scales = 6 * observations.view_count + 7 * torch.arange(observations.pair_count) + 6
    system[scales[:, None], scales] += 10.0 * diagonal.max()
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return _solve_damped(hessian, gradient, observations, 10 * damping + 1e-9)
    return -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
