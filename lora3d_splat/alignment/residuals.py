"""Residuals of LoRA3D Eq. 6 and their derivatives, with the depths eliminated.

e = T_v D r - sigma T_pair X  with the ray  r = (u / f, v / f, 1).  For given weights the best depth of a pixel is the
weighted mean of its pairs' points projected on its ray, so depths never enter the linear system.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.transforms import skew
from .observations import Observations
from .variables import Variables

SMALLEST_DEPTH = 1e-3
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


def best_depth(geometry: Geometry, observations: Observations, weights: Tensor) -> Tensor:
    """(V, S) depth minimising sum weights |e|^2 over the blocks of each view; `weights` (B, S)."""
    view = observations.view
    reach = geometry.pair_arms + geometry.offsets[:, None]
    along = weights * (reach * geometry.rays[view]).sum(-1)
    shape = geometry.rays.shape[:2]
    total = weights.new_zeros(shape).index_add_(0, view, weights) * (geometry.rays**2).sum(-1)
    depth = weights.new_zeros(shape).index_add_(0, view, along) / total.clamp_min(1e-30)
    return depth.clamp_min(SMALLEST_DEPTH)


def errors(geometry: Geometry, observations: Observations, depth: Tensor) -> Tensor:
    """(B, S, 3) residual vectors e in the world frame."""
    view = observations.view
    return (depth[..., None] * geometry.rays)[view] - geometry.pair_arms - geometry.offsets[:, None]


def jacobian(geometry: Geometry, observations: Observations, depth: Tensor) -> Tensor:
    """(B, S, 3, 14): de by view translation, rotation and log focal, then pair translation, rotation and log scale."""
    view = observations.view
    blocks, samples = geometry.pair_arms.shape[:2]
    identity = torch.eye(3, dtype=depth.dtype).expand(blocks, samples, 3, 3)
    view_arms = (depth[..., None] * geometry.rays)[view]
    focal = (depth[..., None] * geometry.slopes)[view][..., None]
    pair_arms = geometry.pair_arms
    return torch.cat([identity, -skew(view_arms), focal, -identity, skew(pair_arms), -pair_arms[..., None]], dim=-1)
