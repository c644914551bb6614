"""What the panel adds to the nerfstudio viewer's scene: points, cameras, the pair graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

from lora3d_splat.passes import PassPoints, pass_points
from lora3d_splat.plugin.camera_poses import optimised_camera_to_worlds
from lora3d_splat.plugin.dataparser import PlacedView, nerfstudio_cameras
from lora3d_splat.plugin.pipeline import Lora3DPipeline
from lora3d_splat.preview.drawing import (
    AFTER,
    BEFORE,
    HELD_OUT,
    NOW,
    Colour,
    Frame,
    Frustum,
    add_frustum,
    add_graph,
    add_points,
    colours,
)
from lora3d_splat.records import CalibrationPass
from lora3d_splat.report.calibration_sections import kept_pass

COLOURS = {"RGB": "rgb", "confidence": "confidence", "calibrated confidence": "calibrated", "residual": "residual"}
"""The panel's words for the fields of PassPoints."""
POINT_LIMIT = 150_000
"""Points that a browser turns with ease."""
ROOT = "/self_calibration"


@dataclass(frozen=True)
class Shown:
    """What is to be seen."""

    name: str
    """of the pass"""
    colour: str
    threshold: float
    """least calibrated confidence of a point"""
    points: bool
    cameras: bool
    before: bool
    now: bool
    heldout: bool
    graph: bool


class Layers:
    """The layers of one viewer; `draw` sends only what has changed."""

    def __init__(self, pipeline: Lora3DPipeline, server: Any) -> None:
        scene = pipeline.scene
        frame = scene.normalisation
        self._server, self._scene = server, scene
        self._frame = Frame(
            frame.rotation.numpy(), frame.translation.numpy(), frame.scale * VISER_NERFSTUDIO_SCALE_RATIO
        )
        poses = pipeline.model.camera_optimizer
        assert isinstance(poses, CameraOptimizer)
        self._poses = poses
        self._passes = {each.name: each for each in scene.calibration.passes}
        self._drawn: dict[str, tuple[Any, ...]] = {}
        self._handles: dict[str, list[Any]] = {}
        self.names = tuple(self._passes)
        self.pixels = sum(view.image.shape[0] * view.image.shape[1] for view in scene.calibration.views)
        self._cloud = lru_cache(maxsize=3)(self._make_cloud)

    @property
    def kept(self) -> str:
        """The pass that the seeds come from."""
        found = kept_pass(self._scene.calibration)
        return self.names[-1] if found is None else found.name

    def total(self, name: str) -> int:
        """Points of a pass before the threshold."""
        return len(self._cloud(name).points_world)

    def high(self, value: str) -> float:
        """The value at which false colours are brightest, the same for all passes."""
        tops = [float(np.percentile(getattr(self._cloud(name), value), 97)) for name in self.names]
        return max(*tops, 1e-6)

    def shown_points(self, shown: Shown) -> PassPoints | None:
        """The points of the pass above the threshold; None without passes."""
        if shown.name not in self._passes:
            return None
        cloud = self._cloud(shown.name)
        return cloud.chosen(cloud.calibrated >= shown.threshold)

    def draw(self, shown: Shown) -> int:
        """Bring the scene to what is wanted; returns how many points pass the threshold."""
        points = self.shown_points(shown)
        if points is not None:
            self._layer(
                "points",
                (shown.points, shown.name, shown.colour, shown.threshold),
                lambda: [self._draw_points(points, shown.colour)],
            )
            each = self._passes[shown.name]
            self._layer("cameras", (shown.cameras, shown.name), lambda: self._draw_pass(each, "cameras", AFTER))
            first = self._passes[self.names[0]]
            self._layer("before", (shown.before,), lambda: self._draw_pass(first, "before", BEFORE))
            self._layer("graph", (shown.graph, shown.name), lambda: [self._draw_graph(each)])
        else:
            self._layer("cameras", (shown.cameras,), lambda: self._draw_placed(self._scene.train, "cameras", AFTER))
        self._layer("now", (shown.now,), lambda: self._draw_placed(self._scene.train, "now", NOW))
        self._layer("heldout", (shown.heldout,), self._draw_heldout)
        return 0 if points is None else len(points.points_world)

    def follow_training(self) -> None:
        """Move the cameras "as optimised now" to where they are."""
        handles = self._handles.get("now")
        if not handles:
            return
        for handle, pose in zip(handles, self._poses_now(), strict=True):
            wxyz, position = self._frame.pose(pose)
            if np.abs(position - handle.position).max() > 1e-4 or np.abs(wxyz - handle.wxyz).max() > 1e-5:
                handle.position, handle.wxyz = position, wxyz

    def greet(self, client: Any) -> None:
        """Let a new visitor start behind the cameras, looking at the scene."""
        poses = np.stack([view.camera.T_world_camera for view in self._scene.train])
        seeds = self._scene.seeds
        sure = seeds.points_world[seeds.confidence >= seeds.confidence.median()].numpy()
        target, centre = np.median(sure, axis=0), poses[:, :3, 3].mean(axis=0)
        away, up = centre - target, -poses[:, :3, 1].mean(axis=0)
        start = centre + 0.5 * away + 0.25 * np.linalg.norm(away) * up / max(float(np.linalg.norm(up)), 1e-9)
        first, second = self._frame.points(np.stack([start, target])).astype(np.float64)
        with client.atomic():
            client.camera.up_direction = (0.0, 0.0, 1.0)
            client.camera.position = first
            client.camera.look_at = second

    def _layer(self, name: str, wanted: tuple[Any, ...], make: Any) -> None:
        """Redraw a layer whose key has changed; the key's first part says whether it is to be seen."""
        if self._drawn.get(name) == wanted:
            return
        self._drawn[name] = wanted
        with self._server.atomic():
            for handle in self._handles.pop(name, ()):
                handle.remove()
            if wanted[0]:
                self._handles[name] = [handle for handle in make() if handle is not None]

    def _make_cloud(self, name: str) -> PassPoints:
        return pass_points(self._passes[name], self._scene.calibration.views, POINT_LIMIT)

    def _draw_points(self, points: PassPoints, colour: str) -> Any:
        rgb = points.rgb if colour == "rgb" else colours(points, colour, self.high(colour))
        size = 0.006 * float(np.linalg.norm(np.ptp(self._centres(), axis=0)) + 1.0)
        return add_points(self._server.scene, f"{ROOT}/points", self._frame, points.points_world, rgb, size)

    def _draw_pass(self, each: CalibrationPass, layer: str, colour: Colour) -> list[Any]:
        calibration = self._scene.calibration
        frusta = [
            Frustum(
                view.file,
                each.T_world_camera[index].numpy(),
                view.size[1],
                view.size[0],
                float(each.focal[index]),
                view.image if colour == AFTER else None,
            )
            for index, view in enumerate(calibration.views)
            if each.registered[index]
        ]
        return self._draw_frusta(frusta, layer, colour)

    def _draw_placed(self, views: tuple[PlacedView, ...], layer: str, colour: Colour) -> list[Any]:
        poses = self._poses_now() if layer == "now" else [view.camera.T_world_camera for view in views]
        frusta = [
            Frustum(view.camera.file, pose, view.camera.width, view.camera.height, view.camera.fx)
            for view, pose in zip(views, poses, strict=True)
        ]
        return self._draw_frusta(frusta, layer, colour)

    def _draw_heldout(self) -> list[Any]:
        handles = self._draw_placed(self._scene.heldout, "heldout", HELD_OUT)
        for index, view in enumerate(self._scene.heldout):
            _, position = self._frame.pose(view.camera.T_world_camera)
            label = f"held out: {view.camera.file}"
            handles.append(self._server.scene.add_label(f"{ROOT}/heldout/label_{index}", label, position=position))
        return handles

    def _draw_frusta(self, frusta: list[Frustum], layer: str, colour: Colour) -> list[Any]:
        size = self._frustum_size()
        return [
            add_frustum(self._server.scene, f"{ROOT}/{layer}/{index}", self._frame, each, colour, size)
            for index, each in enumerate(frusta)
        ]

    def _draw_graph(self, each: CalibrationPass) -> Any:
        centres = each.T_world_camera[:, :3, 3].numpy()
        return add_graph(
            self._server.scene, f"{ROOT}/graph", self._frame, centres, each.pairs, each.pair_residual.numpy()
        )

    def _poses_now(self) -> np.ndarray:
        """(V, 4, 4) training cameras as optimised, world frame; read without the lock: two steps mixed at worst."""
        cameras = nerfstudio_cameras(self._scene.train, self._scene.normalisation, indexed=True)
        optimised = optimised_camera_to_worlds(self._poses, cameras)
        return self._scene.normalisation.T_world_camera(optimised).numpy()

    def _centres(self) -> np.ndarray:
        return self._frame.points(np.stack([view.camera.T_world_camera[:3, 3] for view in self._scene.train]))

    def _frustum_size(self) -> float:
        """From the usual distance between neighbouring cameras, within bounds."""
        centres = torch.from_numpy(self._centres())
        gaps = torch.cdist(centres, centres).fill_diagonal_(torch.inf).amin(dim=1)
        usual = float(gaps[gaps.isfinite()].median()) if len(gaps) > 1 else 1.0
        return min(max(0.28 * usual, 0.1), 1.2)
