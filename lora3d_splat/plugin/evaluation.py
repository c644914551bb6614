"""Scores of held-out views: as registered, and after photometric alignment of each camera with frozen Gaussians.

Alignment on the scored photograph flatters: it may fit errors of the scene. So each half of the photograph is also
scored from a pose that was aligned on the other half.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from lora3d_splat.console import stage
from lora3d_splat.geometry.transforms import opencv_to_opengl, opengl_to_opencv
from lora3d_splat.metrics.heldout_pose import AlignedPose, PoseAlignmentConfig, Render, align_pose
from lora3d_splat.metrics.image import NAMES, Value, image_metrics
from lora3d_splat.plugin.counted import counted_pixels
from lora3d_splat.plugin.crops import Crop, crop_camera
from lora3d_splat.plugin.model import Lora3DSplatModel


@dataclass(frozen=True)
class ViewScore:
    """One view, scored three times."""

    raw: dict[str, Value]
    aligned: dict[str, Value]
    half: dict[str, Value]
    """each half from the pose aligned on the other one"""
    pose: AlignedPose
    """in the normalised frame"""
    photo: Tensor
    """(H, W, 3) in [0, 1], CPU"""
    rendered: Tensor
    """(H, W, 3) from the registered pose"""
    rendered_aligned: Tensor
    """(H, W, 3) from the aligned pose"""
    render_seconds: float
    """of the raw picture"""


def score_views(
    model: Lora3DSplatModel, views: Sequence[tuple[Cameras, dict[str, Any]]], config: PoseAlignmentConfig
) -> tuple[ViewScore, ...]:
    """Score (camera, batch) pairs; the model is left in the mode it had."""
    config = config.resolved(torch.device(model.device).type)
    with _frozen(model), stage("scoring views", len(views)) as advance:
        scores = []
        for camera, batch in views:
            scores.append(score_view(model, camera.to(model.device), batch, config))
            advance(1)
    return tuple(scores)


def score_view(
    model: Lora3DSplatModel, camera: Cameras, batch: dict[str, Any], config: PoseAlignmentConfig
) -> ViewScore:
    """Score one view; the model must be frozen and in evaluation mode."""
    pose = model.camera_optimizer.apply_to_camera(camera).detach()
    model.lpips_networks.device = model.device
    start = time.perf_counter()
    with torch.no_grad():
        outputs = model.render(camera, pose)
    photo = model.composite_with_background(model.get_gt_img(batch["image"]), outputs["background"])
    seconds = time.perf_counter() - start
    counted = counted_pixels(batch, model.device)
    found = align_pose(view_renderer(model, camera, counted), photo, _opencv(pose), config)
    aligned = outputs["rgb"]
    if found.steps:
        with torch.no_grad():
            aligned = model.render(camera, _opengl(found.T_world_camera))["rgb"]
    return ViewScore(
        image_metrics(outputs["rgb"], photo, model.lpips_networks, counted),
        image_metrics(aligned, photo, model.lpips_networks, counted),
        half_image_scores(model, camera, photo, counted, pose, config),
        found,
        photo.cpu(),
        outputs["rgb"].cpu(),
        aligned.cpu(),
        seconds,
    )


def half_image_scores(
    model: Lora3DSplatModel,
    camera: Cameras,
    photo: Tensor,
    counted: Tensor | None,
    pose: Tensor,
    config: PoseAlignmentConfig,
) -> dict[str, Value]:
    """Means over the left and the right half of a photograph (H, W, 3), each from the pose aligned on the other."""
    counts = (lambda crop: None) if counted is None else (lambda crop: crop.of(counted))
    height, width = photo.shape[:2]
    left, right = Crop(0, 0, width // 2, height), Crop(width // 2, 0, width - width // 2, height)
    scores = []
    for fitted, scored in ((left, right), (right, left)):
        render = view_renderer(model, crop_camera(camera, fitted), counts(fitted))
        found = align_pose(render, fitted.of(photo), _opencv(pose), config)
        with torch.no_grad():
            rendered = model.render(crop_camera(camera, scored), _opengl(found.T_world_camera))["rgb"]
        scores.append(image_metrics(rendered, scored.of(photo), model.lpips_networks, counts(scored)))
    return mean_scores(scores)


def view_renderer(model: Lora3DSplatModel, camera: Cameras, counted: Tensor | None = None) -> Render:
    """A function from pose and reduction to colours and opacity, differentiable in the pose.

    Where `counted` (H, W, 1) is false, nothing seems to be rendered: the alignment of the pose looks elsewhere.
    """

    def render(T_world_camera: Tensor, level: int) -> tuple[Tensor, Tensor]:
        outputs = model.render(reduced_camera(camera, level), _opengl(T_world_camera), with_depth=False)
        opacity = outputs["accumulation"]
        if counted is not None:
            height, width = opacity.shape[:2]
            whole = (
                counted[: height * level, : width * level].unflatten(0, (height, level)).unflatten(2, (width, level))
            )
            opacity = opacity * whole.all(3).all(1)
        return outputs["rgb"], opacity

    return render


def reduced_camera(camera: Cameras, level: int) -> Cameras:
    """The camera of the picture averaged over level x level pixels, what is left over at the far edges cut off."""
    if level == 1:
        return camera
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx / level,
        fy=camera.fy / level,
        cx=camera.cx / level,
        cy=camera.cy / level,
        width=camera.width // level,
        height=camera.height // level,
        camera_type=camera.camera_type,
        metadata=camera.metadata,
    )


def mean_scores(scores: Sequence[dict[str, Value]]) -> dict[str, Value]:
    """Mean of every metric over the views that have it; None with a reason where none has."""
    means = {}
    for name in NAMES:
        values = [score[name] for score in scores]
        numbers = [value.number for value in values if value.number is not None]
        reason = next((value.reason for value in values if value.reason), "no view to score")
        means[name] = Value(sum(numbers) / len(numbers)) if numbers else Value(None, reason)
    return means


def flat_means(scores: Sequence[ViewScore], spread: bool) -> dict[str, float]:
    """nerfstudio's shape of the result: numbers by name, `_aligned`, `_half_image` and, on demand, `_std` behind it."""
    table: dict[str, list[float]] = {}
    for score in scores:
        for suffix, values in (("", score.raw), ("_aligned", score.aligned), ("_half_image", score.half)):
            for name, value in values.items():
                if value.number is not None:
                    table.setdefault(name + suffix, []).append(value.number)
        table.setdefault("fps", []).append(1.0 / max(score.render_seconds, 1e-9))
        pixels = score.photo.shape[0] * score.photo.shape[1]
        table.setdefault("num_rays_per_sec", []).append(pixels / max(score.render_seconds, 1e-9))
    result = {}
    for name, numbers in table.items():
        values = torch.tensor(numbers, dtype=torch.float64)
        result[name] = float(values.mean())
        if spread:
            result[f"{name}_std"] = float(values.std(unbiased=False))
    return result


@contextmanager
def _frozen(model: Lora3DSplatModel) -> Iterator[None]:
    """Evaluation mode, gradients on for poses alone."""
    training = model.training
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


def _opencv(camera_to_worlds: Tensor) -> Tensor:
    """(4, 4) OpenCV from (1, 3, 4) OpenGL."""
    bottom = camera_to_worlds.new_tensor([[0.0, 0.0, 0.0, 1.0]])
    return opengl_to_opencv(torch.cat([camera_to_worlds[0], bottom]))


def _opengl(T_world_camera: Tensor) -> Tensor:
    """(1, 3, 4) OpenGL from (4, 4) OpenCV."""
    return opencv_to_opengl(T_world_camera)[None, :3]
