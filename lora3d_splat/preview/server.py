"""A calibration watched in the browser while it runs: pointmaps appear, cameras move, losses fall."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.errors import MissingPartError
from lora3d_splat.passes import pass_points
from lora3d_splat.preview.drawing import AFTER, Frame, Frustum, add_frustum, add_points
from lora3d_splat.records import CalibrationPass, PairPrediction, View
from lora3d_splat.watch import Watcher, watching

DEFAULT_PORT = 7007
"""nerfstudio's."""
NERFSTUDIO_YELLOW = (255, 211, 105)
POINTS_PER_VIEW = 4_000
POINT_LIMIT = 80_000
ALIGNED = "/aligned"
"""The cloud of the last alignment, which stays while the cameras of the next one move."""
USUAL_REACH = 3.0
"""Median depth over the spread of the cameras, before an alignment has told."""
DEPTH = 3.0
"""Median depth of what is shown, browser units."""
SECONDS_BETWEEN = 0.2
"""Least time between two messages of one kind; more would only keep the network busy."""
PATIENCE = 5.0
"""Seconds that the port may take to come free."""


class Preview(Watcher):
    """A page of its own; every method costs the calibration a few milliseconds at most."""

    def __init__(self, port: int, afterwards: str, host: str) -> None:
        import viser

        self._server = viser.ViserServer(host=host, port=port, label="Self-calibration", verbose=False)
        self.port = self._server.get_port()
        self._server.scene.set_up_direction("-y")
        self._server.on_client_connect(_greet)
        gui = self._server.gui
        gui.configure_theme(dark_mode=True, control_layout="collapsible", brand_color=NERFSTUDIO_YELLOW)
        self._status = gui.add_markdown("Reading photographs ...")
        self._bar = gui.add_progress_bar(0.0)
        self._loss = gui.add_markdown("")
        gui.add_markdown(afterwards)
        self._views: tuple[View, ...] = ()
        self._best: dict[int, float] = {}
        self._clouds: dict[str, Any] = {}
        self._cameras: dict[str, Any] = {}
        self._frame: Frame | None = None
        self._reach = USUAL_REACH
        self._losses: list[float] = []
        self._last: dict[str, float] = {}

    def stop(self) -> None:
        """Close the page and wait until its port is free."""
        with _silence("websockets.server"):  # viser 0.2 stops its workers before its connections, which then complain
            self._server.stop()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and _answers(self.port):
                time.sleep(0.05)

    def photographs(self, views: Sequence[View]) -> None:
        self._views = tuple(views)
        self._best.clear()
        self._clear()

    def progress(self, title: str, done: int, total: int, seconds: float) -> None:
        if done not in (0, total) and not self._due("progress"):
            return
        left = f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
        self._status.content = f"**{title}**: {done} of {total}, {seconds:.0f} s{left}"
        self._bar.value = 100.0 * done / max(total, 1)

    def predicted(self, prediction: PairPrediction) -> None:
        """The surest pointmap so far of every view, side by side as the cameras see them."""
        index = prediction.pair.reference
        sure = float(prediction.confidence_reference.clamp_min(1).log().mean())
        if index >= len(self._views) or sure <= self._best.get(index, -1.0):
            return
        if not self._best:
            self._clear()
        self._best[index] = sure
        image, points = self._views[index].image, prediction.points_reference.numpy()
        step = max(1, math.ceil((image.shape[0] * image.shape[1] / POINTS_PER_VIEW) ** 0.5))
        coarse = (slice(step // 2, None, step),) * 2
        scale = 1.0 / max(float(np.median(points[..., 2])), 1e-9)
        columns = math.ceil(len(self._views) ** 0.5)
        row, column = divmod(index, columns)
        shift = np.array([(column - (columns - 1) / 2) * 1.5, (row - (columns - 1) / 2) * 1.3, 1.0]) / scale
        frame = Frame(np.eye(3), shift, scale)
        cloud = points[coarse].reshape(-1, 3)
        near = cloud[:, 2] * scale < 3
        rgb = image[coarse].reshape(-1, 3)
        self._show_cloud(f"/pointmaps/{index}", frame, cloud[near], rgb[near], 0.008 * step)

    def moved(self, name: str, T_world_camera: Tensor, focal: Tensor, loss: float) -> None:
        if not self._due("moved") or len(T_world_camera) != len(self._views):
            return
        self._loss.content = f"{name}: loss **{loss:.4g}**"
        poses = T_world_camera.numpy()
        self._frame = _frame(poses, self._reach * _spread(poses))
        with self._server.atomic():
            if ALIGNED not in self._clouds:
                self._remove(self._clouds)
            self._show_cameras(poses, focal.numpy(), range(len(poses)))

    def aligned(self, each: CalibrationPass) -> None:
        poses = each.T_world_camera.numpy()
        placed = [index for index, registered in enumerate(each.registered) if registered]
        points = pass_points(each, self._views, POINT_LIMIT)
        sure = points.chosen(points.calibrated >= np.quantile(points.calibrated, 0.3))
        depths = np.concatenate([each.depth[index].numpy().ravel() for index in placed])
        depth = float(np.median(depths[depths > 0]))
        self._frame, self._reach = _frame(poses[placed], depth), depth / _spread(poses[placed])
        with self._server.atomic():
            self._clear()
            self._show_cloud(ALIGNED, self._frame, sure.points_world, sure.rgb, 0.012)
            self._show_cameras(poses, each.focal.numpy(), placed)

    def loss(self, epoch: int, value: float) -> None:
        self._losses = [*self._losses, value] if epoch else [value]
        first = f", from {self._losses[0]:.4f} at first" if len(self._losses) > 1 else ""
        self._loss.content = f"Fine-tuning: loss **{value:.4f}** after epoch {epoch + 1}{first}"

    def _show_cameras(self, poses: np.ndarray, focal: np.ndarray, placed: Sequence[int]) -> None:
        """Draw the cameras, or move those that are drawn."""
        assert self._frame is not None
        for index in placed:
            name, view = f"/cameras/{index}", self._views[index]
            if name in self._cameras:
                self._cameras[name].wxyz, self._cameras[name].position = self._frame.pose(poses[index])
                continue
            height, width = view.size
            each = Frustum(view.file, poses[index], width, height, float(focal[index]), view.image)
            self._cameras[name] = add_frustum(self._server.scene, name, self._frame, each, AFTER, 0.15)

    def _clear(self) -> None:
        self._remove(self._clouds)
        self._remove(self._cameras)

    def _remove(self, handles: dict[str, Any]) -> None:
        """By name, since a cloud that is drawn again takes its node over from the older handle."""
        for handle in handles.values():
            handle.remove()
        handles.clear()

    def _show_cloud(self, name: str, frame: Frame, points: np.ndarray, rgb: np.ndarray, size: float) -> None:
        self._clouds[name] = add_points(self._server.scene, name, frame, points, rgb, size)

    def _due(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(kind, 0.0) < SECONDS_BETWEEN:
            return False
        self._last[kind] = now
        return True


@contextmanager
def previewing(
    port: int = DEFAULT_PORT,
    afterwards: str = "This page closes when the calibration has ended.",
    host: str = "127.0.0.1",
) -> Iterator[Preview]:
    """Show what happens inside the block at http://localhost:PORT, or at the next free port.

    `afterwards` tells the visitor what comes next; `host` 0.0.0.0 lets other machines in. Raises
    MissingPartError where viser is not installed.
    """
    if find_spec("viser") is None:
        raise MissingPartError("no viser", "viser 0.2.7 or newer, which nerfstudio brings", "pip install viser")
    preview = Preview(port, afterwards, host)
    note(f"Watch the self-calibration at http://localhost:{preview.port}")
    try:
        with watching(preview):
            yield preview
    finally:
        preview.stop()


def _spread(poses: np.ndarray) -> float:
    """The farthest camera's distance from the mean, scene units."""
    centres = poses[:, :3, 3]
    return max(float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()), 1e-6)


def _frame(poses: np.ndarray, depth: float) -> Frame:
    """The mean camera upright at the origin, looking along z, with DEPTH for the depth."""
    left, _, right = np.linalg.svd(poses[:, :3, :3].mean(axis=0))
    rotation = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    centre = poses[:, :3, 3].mean(axis=0)
    return Frame(rotation.T, -rotation.T @ centre, DEPTH / max(depth, 1e-9))


def _greet(client: Any) -> None:
    with client.atomic():
        client.camera.up_direction = (0.0, -1.0, 0.0)
        client.camera.position = (0.5, -0.9, -3.0)
        client.camera.look_at = (0.0, 0.1, 1.5)


@contextmanager
def _silence(logger: str) -> Iterator[None]:
    found = logging.getLogger(logger)
    before, found.disabled = found.disabled, True
    try:
        yield
    finally:
        found.disabled = before


def _answers(port: int) -> bool:
    """Whether something listens there; asking also wakes a server that is to close."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return True
    except OSError:
        return False
