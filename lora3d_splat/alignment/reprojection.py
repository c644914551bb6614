"""The reprojection residual: aligned points against predicted ones, both projected into the pair's reference view.

With the aligned point P = T_i^-1 T_v D r in the reference camera i and the predicted point X there,

    e = (P_x / P_z - X_x / X_z, P_y / P_z - X_y / X_z);

f_i e is the error in pixels of the reference view. As a tangent, e is to one what a pointmap's residual is to the
depth, so thresholds mean the same for both. The pair's scale and pose drop out: its frame is the reference camera's.
The reference side ties the focal alone, the other side the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .normal_equations import Blocks
from .observations import Observations
from .residuals import SMALLEST_DEPTH
from .variables import Variables

DEPTH_ROUNDS = 3
"""Gauss-Newton rounds for the depth of a pixel, which enters the projection nonlinearly."""


@dataclass(frozen=True)
class Projection:
    """What does not depend on the depths."""

    rays: Tensor
    """(V, S, 3) ray of depth one of each sample, world axes"""
    slopes: Tensor
    """(V, S, 3) derivative of `rays` by the log focal"""
    centre: Tensor
    """(V, 3) camera centres"""
    axes: Tensor
    """(B, 3, 3) rotation world -> reference camera of each block"""
    origin: Tensor
    """(B, 3) centre of the reference camera of each block"""
    wanted: Tensor
    """(B, S, 2) slopes of the predicted points in the reference camera"""


def world_geometry(variables: Variables, observations: Observations) -> Projection:
    """Evaluate rays and cameras at the current variables."""
    slopes = observations.pixels / variables.log_focal.exp()[:, None, None]
    rotation = variables.T_world_view[:, :3, :3]
    rays = torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1) @ rotation.transpose(1, 2)
    falling = torch.cat([-slopes, torch.zeros_like(slopes[..., :1])], dim=-1) @ rotation.transpose(1, 2)
    lead = observations.view[2 * observations.pair]
    centre = variables.T_world_view[:, :3, 3]
    z = observations.points[..., 2:].clamp_min(1e-9)
    return Projection(
        rays,
        falling,
        centre,
        rotation[lead].transpose(1, 2),
        centre[lead],
        observations.points[..., :2] / z,
    )


def best_depth(geometry: Projection, observations: Observations, weights: Tensor, depth: Tensor) -> Tensor:
    """(V, S) depth lowering sum weights |e|^2, from the one at hand; pixels that no other view sees keep theirs."""
    view = observations.view
    for _ in range(DEPTH_ROUNDS):
        error, derivative = _error_and_derivative(geometry, observations, depth)
        along = (derivative @ (geometry.axes @ geometry.rays[view].transpose(1, 2)).transpose(1, 2)[..., None])[..., 0]
        slope = depth.new_zeros(depth.shape).index_add_(0, view, weights * (along * error).sum(-1))
        curve = depth.new_zeros(depth.shape).index_add_(0, view, weights * (along * along).sum(-1))
        step = torch.where(curve > 1e-12 * curve.max(), slope / curve.clamp_min(1e-30), torch.zeros_like(slope))
        depth = torch.minimum(torch.maximum(depth - step, 0.5 * depth), 2.0 * depth).clamp_min(SMALLEST_DEPTH)
    return depth


def typical_size(observations: Observations, depth: Tensor) -> Tensor:
    """() what residuals are compared with: a tangent of one."""
    return torch.ones((), dtype=depth.dtype, device=depth.device)


def squared_errors(geometry: Projection, observations: Observations, depth: Tensor, depth_weight: float) -> Tensor:
    """(B, S) squared norms of e."""
    return _error_and_derivative(geometry, observations, depth)[0].square().sum(-1)


def linearised(
    geometry: Projection, observations: Observations, depth: Tensor, weights: Tensor, index: Tensor, depth_weight: float
) -> Blocks:
    """Normal equations of sum weights |e|^2 by block; the last seven parameters are the reference camera's.

    Nothing is measured along the rays, so `depth_weight` has no say.
    """
    view = observations.view
    error, derivative = _error_and_derivative(geometry, observations, depth)
    axes = derivative @ geometry.axes[:, None]
    arm = depth[view][..., None] * geometry.rays[view]
    reach = arm + (geometry.centre[view] - geometry.origin)[:, None]
    focal = (axes @ (depth[view][..., None] * geometry.slopes[view])[..., None])[..., 0]
    jacobian = torch.cat(
        [axes, _turned(axes, arm), focal[..., None], -axes, -_turned(axes, reach), torch.zeros_like(focal[..., None])],
        dim=-1,
    )
    flat = (jacobian * weights.sqrt()[..., None, None]).flatten(1, 2)
    hessian = flat.transpose(1, 2) @ flat
    gradient = (flat.transpose(1, 2) @ (error * weights.sqrt()[..., None]).flatten(1, 2)[..., None])[..., 0]
    along = (axes @ geometry.rays[view][..., None])[..., 0]
    stiffness = weights.new_zeros(depth.shape).index_add(0, view, weights * (along * along).sum(-1))
    rows = (along[..., None, :] @ jacobian)[..., 0, :]
    rows = rows * (weights / stiffness.clamp_min(1e-30).sqrt()[view])[..., None]
    return Blocks(hessian, gradient, rows, view, index)


def _turned(axes: Tensor, arm: Tensor) -> Tensor:
    """(..., 2, 3) derivative of axes @ (arm turned) by a rotation vector in world axes."""
    return torch.linalg.cross(arm[..., None, :].expand_as(axes), axes)


def _error_and_derivative(geometry: Projection, observations: Observations, depth: Tensor) -> tuple[Tensor, Tensor]:
    """e (B, S, 2) and its derivative (B, S, 2, 3) by the aligned point in the reference camera's axes."""
    view = observations.view
    reach = depth[view][..., None] * geometry.rays[view] + (geometry.centre[view] - geometry.origin)[:, None]
    point = reach @ geometry.axes.transpose(1, 2)
    z = point[..., 2:].clamp_min(SMALLEST_DEPTH)
    slope = point[..., :2] / z
    identity = torch.eye(2, dtype=z.dtype, device=z.device).expand(*slope.shape[:-1], 2, 2)
    derivative = torch.cat([identity, -slope[..., None]], dim=-1) / z[..., None]
    return slope - geometry.wanted, derivative
