"""Photometric pose alignment of a held-out view: the camera moves, the scene is frozen.

Scores after this step say how good the scene is, whatever the error of the held-out pose. InstantSplat's published
scores are after such a step (500 Adam steps, rates 0.003 and 0.001, cosine decay, L1 where something was rendered).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from lora3d_splat.errors import InputError
from lora3d_splat.geometry.transforms import rotation_angle_deg, se3_exp
from lora3d_splat.photometric import photo_loss

Render = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(T_world_camera (4, 4) OpenCV axes, level) -> colours (h, w, 3) in [0, 1] and opacity (h, w, 1), where
h, w = H // level, W // level and the first pixel's corner stays at (0, 0); differentiable in the pose."""


@dataclass(frozen=True)
class PoseAlignmentConfig:
    """How a held-out camera is moved onto its photograph."""

    steps: int | None = None
    """Adam steps per view; None means 500 on CUDA (InstantSplat) and 100 elsewhere, 0 switches the alignment off."""
    levels: tuple[int, ...] | None = None
    """Image reductions, coarse to fine, that share the steps; None means (1,) on CUDA (InstantSplat) and (4, 2, 1)
    elsewhere."""
    translation_rate: float = 0.003
    """Learning rate of the translation, in units of the normalised scene."""
    rotation_rate: float = 0.001
    """Learning rate of the rotation, radians."""
    final_rate: float = 1e-4
    """Both rates fall to this along a cosine."""
    patience: int = 25
    """A level ends early when so many steps brought no gain of a thousandth."""
    weight_decay: float = 0.0
    """Pull towards the pose at the start."""
    ssim_weight: float = 0.2
    """Share of 1 - SSIM in the loss, the rest is L1 (InstantSplat: 0). Colours alone can pull a camera off a scene that
    lacks part of the photograph; structure holds it."""

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 0) or not all(level >= 1 for level in self.levels or (1,)):
            raise InputError(
                found=f"steps={self.steps}, levels={self.levels}",
                accepted="steps >= 0 and reductions >= 1",
                remedy="leave both out to let the device decide",
            )

    def resolved(self, device_type: str) -> PoseAlignmentConfig:
        """The same with the device's defaults filled in."""
        cuda = device_type == "cuda"
        steps = self.steps if self.steps is not None else (500 if cuda else 100)
        levels = self.levels or ((1,) if cuda else (4, 2, 1))
        return replace(self, steps=steps, levels=levels)


@dataclass(frozen=True)
class AlignedPose:
    """Where the camera ended, and what that gained."""

    T_world_camera: Tensor
    """(4, 4) OpenCV axes"""
    loss_before: float
    """loss at full size before"""
    loss_after: float
    """the same after; never larger"""
    steps: int
    """steps taken, all levels together"""
    rotation_deg: float
    """angle between the two poses"""
    translation: float
    """distance between the two camera centres, units of the pose given"""


def align_pose(render: Render, photo: Tensor, T_world_camera: Tensor, config: PoseAlignmentConfig) -> AlignedPose:
    """Move the camera (4, 4) so that its rendering fits the photograph (H, W, 3); keeps the best pose seen.

    `config` must be resolved. The parameters behind `render` must be frozen by the caller.
    """
    assert config.steps is not None, "call resolved() first"
    assert config.levels is not None, "call resolved() first"
    start = T_world_camera.detach()
    with torch.no_grad():
        loss_before = float(_loss(render, photo, start, 1, config.ssim_weight))
    pose, best, taken = start, loss_before, 0
    levels = [level for level in config.levels if min(photo.shape[:2]) // level >= 32] or [1]
    for index, level in enumerate(levels if config.steps else []):
        pose, best, steps = _descend(render, _reduced(photo, level), pose, level, index, len(levels), config)
        taken += steps
    with torch.no_grad():
        best = float(_loss(render, photo, pose, 1, config.ssim_weight)) if taken else best
    if best >= loss_before:
        pose, best = start, loss_before
    return AlignedPose(
        pose,
        loss_before,
        best,
        taken,
        float(rotation_angle_deg(start[:3, :3].double(), pose[:3, :3].double())),
        float((start[:3, 3] - pose[:3, 3]).norm()),
    )


def _descend(
    render: Render, photo: Tensor, start: Tensor, level: int, index: int, levels: int, config: PoseAlignmentConfig
) -> tuple[Tensor, float, int]:
    """Adam on one level; the rates go on falling from level to level."""
    assert config.steps is not None
    steps = max(1, config.steps // levels)
    translation = torch.zeros(3, device=start.device, requires_grad=True)
    rotation = torch.zeros(3, device=start.device, requires_grad=True)
    rates = (config.translation_rate, config.rotation_rate)
    optimizer = torch.optim.Adam([{"params": [translation]}, {"params": [rotation]}], weight_decay=config.weight_decay)
    best_pose, best_loss, since = start, math.inf, 0
    step = 0
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = _cosine(rate, config.final_rate, (index * steps + step) / (levels * steps))
        pose = start @ se3_exp(torch.cat([translation, rotation]))
        loss = _loss(render, photo, pose, level, config.ssim_weight)
        value = float(loss.detach())
        since = 0 if value < 0.999 * best_loss else since + 1
        if value < best_loss:
            best_pose, best_loss = pose.detach(), value
        if since > config.patience or not loss.requires_grad:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best_pose, best_loss, step + 1


def _loss(render: Render, photo: Tensor, T_world_camera: Tensor, level: int, ssim_weight: float) -> Tensor:
    """Mean absolute error over the pixels where something was rendered (InstantSplat), and 1 - SSIM of the picture."""
    colours, opacity = render(T_world_camera, level)
    shown = (opacity.detach() > 0).expand_as(colours)
    error = (colours - photo).abs()
    error = error[shown].mean() if bool(shown.any()) else error.mean()
    if ssim_weight == 0:
        return error
    return (1 - ssim_weight) * error + ssim_weight * photo_loss(colours, photo, 1.0)


def _reduced(photo: Tensor, level: int) -> Tensor:
    if level == 1:
        return photo
    return functional.avg_pool2d(photo.permute(2, 0, 1)[None], level)[0].permute(1, 2, 0)


def _cosine(first: float, last: float, done: float) -> float:
    return last + 0.5 * (max(first, last) - last) * (1.0 + math.cos(math.pi * min(done, 1.0)))
