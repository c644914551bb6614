"""A corner of a room with known cameras: photographs on disk and the calibration that a perfect network would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora3d_splat.alignment.judge import world_points
from lora3d_splat.geometry.cameras import pixel_grid
from lora3d_splat.images.load import load_views
from lora3d_splat.passes import summarise
from lora3d_splat.records import (
    AlignedScene,
    CalibratedConfidence,
    Calibration,
    CalibrationPass,
    ImagePair,
    PairPrediction,
    RegisteredViews,
    View,
)

WIDTH, HEIGHT, FOCAL = 64, 48, 60.0


def camera_pose(index: int) -> Tensor:
    """(4, 4) float64 OpenCV: cameras on an arc, looking into the corner at the origin."""
    angle = math.radians(20 + 7 * index)
    centre = torch.tensor([2.2 * math.cos(angle), 2.2 * math.sin(angle), 1.0 + 0.08 * (index % 3)], dtype=torch.float64)
    forward = torch.nn.functional.normalize(torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64) - centre, dim=0)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(forward, torch.tensor([0.0, 0, 1], dtype=torch.float64)), dim=0
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    pose[:3, 3] = centre
    return pose


def look(pose: Tensor, width: int = WIDTH, height: int = HEIGHT, focal: float = FOCAL) -> tuple[Tensor, Tensor]:
    """Depth (H, W) and colours (H, W, 3) of the planes x = 0, y = 0, z = 0 seen from inside."""
    centre = torch.tensor([width / 2, height / 2])
    slopes = torch.cat([(pixel_grid(height, width) - centre) / focal, torch.ones(height, width, 1)], dim=-1).double()
    rays = slopes @ pose[:3, :3].T
    depth = torch.where(rays < -1e-6, -pose[:3, 3] / rays, torch.inf).amin(dim=-1)
    points = pose[:3, 3] + depth[..., None] * rays
    colours = 0.5 + 0.25 * torch.sin(6.0 * points) + 0.2 * torch.cos(9.0 * points.roll(1, dims=-1))
    return depth.float(), colours.clamp(0, 1).float()


def write_photographs(folder: Path, count: int = 8, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """PNG photographs 000.png, 001.png, ... of the corner."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        _, colours = look(camera_pose(index), width, height, FOCAL * width / WIDTH)
        Image.fromarray((colours * 255).round().byte().numpy()).save(folder / f"{index:03d}.png")
    return folder


def true_calibration(images: Sequence[Path], folder: Path) -> Calibration:
    """What a perfect network gives for photographs of `write_photographs`; artefacts lie in `folder`."""
    views = load_views(images, WIDTH, 8, minimum=1).views
    depths = tuple(look(camera_pose(_number(view)))[0] for view in views)
    confidence = tuple(torch.full(depth.shape, 2.0) for depth in depths)
    count = len(views)
    scene = AlignedScene(
        registered=(True,) * count,
        reasons=(None,) * count,
        T_world_camera=_poses(views),
        focal=torch.full((count,), FOCAL, dtype=torch.float64),
        principal_point=_centres(count),
        depth=depths,
        pairs=(),
        T_world_pair=torch.zeros(0, 4, 4, dtype=torch.float64),
        pair_scale=torch.zeros(0, dtype=torch.float64),
        mu=0.01,
        residual=0.0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scene.json").write_text("{}")
    return Calibration(
        network="true",
        licence="none",
        views=views,
        scene=scene,
        confidence=CalibratedConfidence((), confidence, confidence),
        rows=(),
        adapter=None,
        decision="no adapter: the network is perfect",
        left_out=(),
        seconds={"calibration": 0.0},
        folder=folder,
        passes=true_passes(views, scene),
    )


def true_passes(views: tuple[View, ...], scene: AlignedScene) -> tuple[CalibrationPass, ...]:
    """Two alignments to be looked at: one that stretches every depth, and the true one.

    The network's confidence falls downwards, the calibrated one to the right.
    """
    pairs = tuple(ImagePair(a, b) for a in range(len(views)) for b in range(len(views)) if abs(a - b) == 1)
    eye = torch.eye(4, dtype=torch.float64)
    scene = replace(
        scene,
        pairs=pairs,
        T_world_pair=eye.repeat(len(pairs), 1, 1),
        pair_scale=torch.ones(len(pairs), dtype=torch.float64),
    )
    maps = [world_points(scene, index) for index in range(len(views))]
    trust = torch.linspace(2.0, 0.1, WIDTH).repeat(HEIGHT, 1)
    believed = torch.linspace(2.0, 0.1, HEIGHT)[:, None].repeat(1, WIDTH)
    confidence = CalibratedConfidence((), (trust,) * len(views), (believed,) * len(views))
    predictions = [PairPrediction(p, maps[p.reference], believed, maps[p.other], believed) for p in pairs]
    stretched = replace(scene, depth=tuple(1.25 * depth for depth in scene.depth))
    named = (("plain alignment", stretched), ("robust alignment", scene))
    return tuple(summarise(name, views, each, confidence, predictions, None) for name, each in named)


def true_registration(images: Sequence[Path], perturbation: Tensor | None = None) -> RegisteredViews:
    """Held-out photographs at their true cameras, or at `T @ perturbation`."""
    views = load_views(images, WIDTH, 8, minimum=1).views
    poses = _poses(views) if perturbation is None else _poses(views) @ perturbation
    count = len(views)
    focal = torch.full((count,), FOCAL, dtype=torch.float64)
    return RegisteredViews(views, (True,) * count, (None,) * count, poses, focal, _centres(count), ())


def fake_self_calibration(monkeypatch: Any, folder: Path, perturbation: Tensor | None = None) -> list[tuple[Path, ...]]:
    """Replace both entrances of self-calibration by the truth; returns the list of calls."""
    from lora3d_splat import self_calibration

    calls: list[tuple[Path, ...]] = []

    def calibrate(images: Sequence[Path], config: Any, *_: Any, **__: Any) -> Calibration:
        calls.append(tuple(images))
        return true_calibration(images, folder)

    def register_heldout(images: Sequence[Path], *_: Any, **__: Any) -> RegisteredViews:
        return true_registration(images, perturbation)

    monkeypatch.setattr(self_calibration, "calibrate", calibrate)
    monkeypatch.setattr(self_calibration, "register_heldout", register_heldout)
    return calls


def _number(view: View) -> int:
    return int(Path(view.file).stem)


def _poses(views: tuple[View, ...]) -> Tensor:
    return torch.stack([camera_pose(_number(view)) for view in views])


def _centres(count: int) -> Tensor:
    return torch.tensor([[WIDTH / 2, HEIGHT / 2]], dtype=torch.float64).repeat(count, 1)


def error_between(rendered: Tensor, photo: Tensor) -> float:
    """Mean absolute difference."""
    return float(np.abs(rendered.numpy() - photo.numpy()).mean())
