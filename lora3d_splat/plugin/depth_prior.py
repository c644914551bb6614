"""Holding the rendered depth near the calibrated one where that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from lora3d_splat.geometry.cameras import pixel_grid
from lora3d_splat.plugin.photographs import PreparedPhotograph
from lora3d_splat.records import View

STRIDE = 2
"""Every second calibrated pixel, in both directions, is enough to hold a smooth depth."""


@dataclass(frozen=True)
class DepthPrior:
    """Calibrated depth of one training view, in the normalised frame."""

    log_depth: Tensor
    """(h, w)"""
    weight: Tensor
    """(h, w) from 0 to 1, mean 1 over the view's best pixels; 0 where there is no depth"""
    places: Tensor
    """(h, w, 2) where these pixels lie in the training picture, from -1 to 1 between its edges"""


def depth_prior(
    view: View, photograph: PreparedPhotograph, depth: Tensor, confidence: Tensor, scale: float
) -> DepthPrior:
    """The prior of a view from its depth (H, W) and log-confidence (H, W) at network resolution."""
    height, width = depth.shape
    grid = pixel_grid(height, width)[::STRIDE, ::STRIDE].double()
    affine = view.affine
    u = (grid[..., 0] - affine.offset_x) / affine.scale_x / view.width
    v = (grid[..., 1] - affine.offset_y) / affine.scale_y / view.height
    depth = depth[::STRIDE, ::STRIDE].float().cpu()
    known = (depth > 0) & depth.isfinite()
    trust = confidence[::STRIDE, ::STRIDE].float().cpu().clamp(min=0)
    best = torch.quantile(trust[known].flatten(), 0.95) if bool(known.any()) else torch.tensor(1.0)
    weight = torch.where(known, (trust / best.clamp(min=1e-6)).clamp(max=1.0), torch.zeros_like(trust))
    log_depth = torch.where(known, depth * scale, torch.ones_like(depth)).log()
    return DepthPrior(log_depth, weight, (2 * torch.stack([u, v], -1) - 1).float())


def depth_loss(depth: Tensor, prior: DepthPrior) -> Tensor:
    """Weighted mean |log rendered - log calibrated| of a rendered depth (H, W, 1)."""
    places, weight, wanted = (t.to(depth.device) for t in (prior.places, prior.weight, prior.log_depth))
    seen = functional.grid_sample(
        depth[None, ..., 0][None], places[None], align_corners=False, padding_mode="border"
    )  # (1, 1, h, w)
    gap = (seen[0, 0].clamp(min=1e-6).log() - wanted).abs()
    return (weight * gap).sum() / weight.sum().clamp(min=1e-6)
