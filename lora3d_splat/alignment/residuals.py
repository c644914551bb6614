"""Residuals of LoRA3D Eq. 6 and their derivatives, with the depths eliminated.

e = T_v D r - sigma T_pair X  with the ray  r = (u / f, v / f, 1).  For given weights the best depth of a pixel is the
weighted mean of its pairs' points projected on its ray, so depths never enter the linear system.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .normal_equations import Blocks
from .observations import Observations
from .robust import weighted_median
from .variables import Variables

SMALLEST_DEPTH = 1e-6
"""Depths stay above this fraction of the scene's unit; a point behind its camera cannot be seen."""


@dataclass(frozen=True)
class Geometry:
    """Both sides of the residual in the world frame, relative to the origins of their own frames."""

    rays: Tensor
    """(V, S, 3) ray of depth one of each sample, rotated into the world"""
    slopes: Tensor
    """(V, S, 3) derivative of `rays` by the log focal"""
    pair_arms: Tensor
    """(B, S, 3) predicted points relative to their pair's origin, world axes and unit"""
    offsets: Tensor
    """(B, 3) pair origin minus view origin"""


def world_geometry(variables: Variables, observations: Observations) -> Geometry:
    """Evaluate rays and pair points at the current variables."""
    slopes = observations.pixels / variables.log_focal.exp()[:, None, None]
    rotation = variables.T_world_view[:, :3, :3].transpose(1, 2)
    rays = torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1) @ rotation
    falling = torch.cat([-slopes, torch.zeros_like(slopes[..., :1])], dim=-1) @ rotation
    pair, view = observations.pair, observations.view
    linear = variables.log_scale.exp()[:, None, None] * variables.T_world_pair[:, :3, :3]
    arms = observations.points @ linear[pair].transpose(1, 2)
    return Geometry(rays, falling, arms, variables.T_world_pair[pair, :3, 3] - variables.T_world_view[view, :3, 3])


def best_depth(geometry: Geometry, observations: Observations, weights: Tensor, depth: Tensor) -> Tensor:
    """(V, S) depth minimising sum weights |e|^2 over the blocks of each view; `weights` (B, S).

    Pixels without weight keep their `depth`.
    """
    view = observations.view
    reach = geometry.pair_arms + geometry.offsets[:, None]
    along = weights * (reach * geometry.rays[view]).sum(-1)
    shape = geometry.rays.shape[:2]
    total = weights.new_zeros(shape).index_add_(0, view, weights) * (geometry.rays**2).sum(-1)
    best = weights.new_zeros(shape).index_add_(0, view, along) / total.clamp_min(1e-30)
    return torch.where(total > 0, best, depth).clamp_min(SMALLEST_DEPTH)


def typical_size(observations: Observations, depth: Tensor) -> Tensor:
    """() the length that residuals are compared with: the median depth."""
    seen = torch.zeros_like(depth).index_add_(0, observations.view, observations.confidence)
    return weighted_median(depth, seen)


def squared_errors(geometry: Geometry, observations: Observations, depth: Tensor, depth_weight: float) -> Tensor:
    """(B, S) squared norms of e, its part along the pixel's ray counted by `depth_weight`."""
    error, ray = errors(geometry, observations, depth), geometry.rays[observations.view]
    along = (error * ray).sum(-1).square() / (ray * ray).sum(-1)
    return error.square().sum(-1) - (1 - depth_weight**2) * along


def errors(geometry: Geometry, observations: Observations, depth: Tensor) -> Tensor:
    """(B, S, 3) residual vectors e in the world frame."""
    view = observations.view
    return (depth[..., None] * geometry.rays)[view] - geometry.pair_arms - geometry.offsets[:, None]


def features(geometry: Geometry, observations: Observations, depth: Tensor) -> Tensor:
    """(B, S, 10): one, view arm D r, its derivative by the log focal, pair arm; `DESIGN` maps them to derivatives."""
    view_arms = torch.cat([depth[..., None] * geometry.rays, depth[..., None] * geometry.slopes], dim=-1)
    one = torch.ones_like(geometry.pair_arms[..., :1])
    return torch.cat([one, view_arms[observations.view], geometry.pair_arms], dim=-1)


def linearised(
    geometry: Geometry, observations: Observations, depth: Tensor, weights: Tensor, index: Tensor, depth_weight: float
) -> Blocks:
    """Normal equations of sum weights |e|^2 by block; `index` (B, 14) says where their parameters lie.

    A depth moves its point along the ray r. Against r, the derivative of e is r for the view's translation, nothing for
    its rotation (the arm is parallel to r), and -r, r x arm, -r . arm for the pair.
    """
    values = features(geometry, observations, depth)
    moments = (values * weights[..., None]).transpose(1, 2) @ values
    hessian = torch.einsum("xik,bkl,xjl->bij", DESIGN.to(moments), moments, DESIGN.to(moments))
    gradient = torch.einsum("xik,bkl,bxl->bi", DESIGN.to(moments), moments, error_map(geometry))
    view, arms = observations.view, geometry.pair_arms
    ray = geometry.rays[view]
    focal = (depth[..., None] * geometry.slopes * geometry.rays).sum(-1, keepdim=True)[view]
    derivative = torch.cat(
        [ray, torch.zeros_like(ray), focal, -ray, torch.linalg.cross(ray, arms), -(ray * arms).sum(-1, keepdim=True)],
        dim=-1,
    )
    length = (geometry.rays**2).sum(-1)
    excess = derivative * ((1 - depth_weight**2) * weights / length[view])[..., None]
    along = (errors(geometry, observations, depth) * ray).sum(-1)
    hessian = hessian - excess.transpose(1, 2) @ derivative
    gradient = gradient - (excess * along[..., None]).sum(1)
    stiffness = weights.new_zeros(depth.shape).index_add(0, view, weights) * length
    rows = derivative * (depth_weight * weights / stiffness.clamp_min(1e-30).sqrt()[view])[..., None]
    return Blocks(hessian, gradient, rows, view, index)


def error_map(geometry: Geometry) -> Tensor:
    """(B, 3, 10) with e = error_map @ features."""
    identity = torch.eye(3, dtype=geometry.offsets.dtype).expand(len(geometry.offsets), 3, 3)
    return torch.cat([-geometry.offsets[..., None], identity, torch.zeros_like(identity), -identity], dim=-1)


def _design() -> Tensor:
    """de/dp for p = view translation, rotation and log focal, pair translation, rotation and log scale."""
    identity, turn = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, 3, dtype=torch.float64)
    for x, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        turn[x, j, k], turn[x, k, j] = 1.0, -1.0
    design = torch.zeros(3, 14, 10, dtype=torch.float64)
    design[:, 0:3, 0] = identity
    design[:, 3:6, 1:4] = turn
    design[:, 6, 4:7] = identity
    design[:, 7:10, 0] = -identity
    design[:, 10:13, 7:10] = -turn
    design[:, 13, 7:10] = -identity
    return design


DESIGN = _design()
"""(3, 14, 10): the Jacobian of e is linear in ten features, so ten-by-ten moments hold every normal equation."""
