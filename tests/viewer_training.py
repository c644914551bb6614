"""A training with the viewer open, as a program of its own: `python viewer_training.py FOLDER PORT`.

The calibration is the truth of `plugin_scene`, told to whoever watches as slowly as a real one. Where the
visitor is stands in FOLDER/visitor.json, with the cameras of the pass: where their pictures are on the page, and from
where they look, and the layers that are drawn.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugin_scene import FOCAL, HEIGHT, WIDTH, fake_self_calibration, true_passes, write_photographs
from viser.transforms import SO3

from lora3d_splat import self_calibration
from lora3d_splat.console import stage
from lora3d_splat.files import write_text
from lora3d_splat.records import PairPrediction
from lora3d_splat.self_calibration import CalibrationConfig
from lora3d_splat.watch import watcher

VIEWS = 8
SECONDS = 3.0
"""What the calibration pretends to take."""


def main(folder: Path, port: int) -> None:
    write_photographs(folder / "photos", VIEWS)
    write_text(folder / "viser.txt", metadata.version("viser"))
    with pytest.MonkeyPatch.context() as patch:
        fake_self_calibration(patch, folder / "calibration")
        patch.setattr(self_calibration, "calibrate", slowly(self_calibration.calibrate))
        config = run_config(folder, port)
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        threading.Thread(target=observe, args=(folder, trainer.viewer_state), daemon=True).start()
        trainer.train()


def slowly(calibrate: Any) -> Any:
    """The same calibration, with a pair every now and then for those who watch."""

    def told(*arguments: Any, **options: Any) -> Any:
        calibration = calibrate(*arguments, **options)
        wait_for_visitor()
        watcher().photographs(calibration.views)
        passes = true_passes(calibration.views, calibration.scene)
        with stage("prediction", len(passes[1].pairs)) as advance:
            for pair in passes[1].pairs:
                depth, trust = calibration.scene.depth[pair.reference], torch.full((HEIGHT, WIDTH), 2.0)
                points = torch.cat([torch.zeros(HEIGHT, WIDTH, 2), depth[..., None]], dim=-1)
                watcher().predicted(PairPrediction(pair, points, trust, points, trust))
                advance(1)
                time.sleep(SECONDS / len(passes[1].pairs))
        watcher().aligned(passes[1])
        watcher().loss(0, 0.5)
        return calibration

    return told


def wait_for_visitor() -> None:
    """A busy machine's browser may take longer to load than the calibration pretends to."""
    deadline = time.monotonic() + 60
    while not watcher()._server.get_clients() and time.monotonic() < deadline:
        time.sleep(0.1)


def run_config(folder: Path, port: int) -> Any:
    from method_configs.lora3d_splat import _specification

    config = _specification().config
    config.pipeline.datamanager.dataparser.calibration = CalibrationConfig(cache=folder / "cache")
    config.pipeline.datamanager.data = folder / "photos"
    config.pipeline.model.lpips = "off"
    config.pipeline.model.early_stop.enabled = False
    config.output_dir, config.timestamp, config.experiment_name = folder / "outputs", "run", "viewer"
    config.max_num_iterations, config.machine.device_type = 100_000, "cpu"
    config.viewer.websocket_port = port
    config.logging.local_writer.enable = False
    return config


def observe(folder: Path, viewer: Any) -> None:
    """Writes down again and again where a visitor is and where the pass's cameras are on the page."""
    layers = viewer.pipeline.panel_0._layers
    reach = picture_distance(layers._frustum_size())
    while True:
        for client in viewer.viser_server.get_clients().values():
            cameras = [look(client.camera, handle, reach) for handle in layers._handles.get("cameras", ())]
            drawn = sorted(name for name, handles in layers._handles.items() if handles)
            content = {"position": np.asarray(client.camera.position).tolist(), "cameras": cameras, "drawn": drawn}
            write_text(folder / "visitor.json", json.dumps(content))
        time.sleep(0.2)


def picture_distance(size: float) -> float:
    """How far before the camera viser draws the picture of a frustum: it keeps the frustum's volume."""
    tall = HEIGHT / 2 / FOCAL
    return size / float(np.cbrt(tall * tall * WIDTH / HEIGHT / 3))


def look(camera: Any, handle: Any, reach: float) -> dict[str, Any]:
    """Where a frustum's picture is in the visitor's window, as shares of its width and height; None if behind."""
    ahead = SO3(np.asarray(handle.wxyz)).as_matrix()[:, 2]
    middle = np.asarray(handle.position) + reach * ahead
    x, y, z = SO3(np.asarray(camera.wxyz)).as_matrix().T @ (middle - np.asarray(camera.position))
    half = np.tan(camera.fov / 2)
    place = None if z <= 0 else [0.5 + x / z / half / camera.aspect / 2, 0.5 + y / z / half / 2]
    return {"place": place, "distance": float(z), "position": np.asarray(handle.position).tolist()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
