"""What a finished run leaves beside nerfstudio's own files: splat, cameras, comparison pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.scene_json import write_scene_json
from lora3d_splat.export.splat import Splat, moved_splat, write_splat_ply
from lora3d_splat.files import atomic_file
from lora3d_splat.geometry.transforms import opencv_to_opengl
from lora3d_splat.outputs import weights_notice, write_notice
from lora3d_splat.plugin.camera_poses import optimised_camera_to_worlds, optimised_focal_factor
from lora3d_splat.plugin.dataparser import PlacedScene, nerfstudio_cameras
from lora3d_splat.plugin.evaluation import ViewScore
from lora3d_splat.plugin.model import Lora3DSplatModel
from lora3d_splat.plugin.normalise import Normalisation
from lora3d_splat.report.run_results import CALIBRATION_FOLDER, CONFIG_FILE, comparison_path

ERROR_GAIN = 3.0
"""A third of full scale shows as white in the error picture."""


@torch.no_grad()
def world_splat(model: Lora3DSplatModel, frame: Normalisation) -> Splat:
    """The Gaussians in the calibration's world frame, where cameras.json and the calibration's own files live.

    Only finite ones; nerfstudio's `ns-export gaussian-splat` writes the normalised frame instead.
    """
    values = {name: value.detach().cpu() for name, value in model.gauss_params.items()}
    finite = torch.stack([value.flatten(1).isfinite().all(dim=1) for value in values.values()]).all(dim=0)
    values = {name: value[finite] for name, value in values.items()}
    normalised = Splat(
        means=values["means"].numpy(),
        sh_dc=model.shs_0.detach().cpu()[finite].numpy(),
        sh_rest=values["features_rest"].numpy(),
        opacity_logit=values["opacities"][:, 0].numpy(),
        log_scale=values["scales"].numpy(),
        quaternion_wxyz=values["quats"].numpy(),
    )
    back = frame.rotation.T
    return moved_splat(normalised, 1.0 / frame.scale, back.numpy(), (-back @ frame.translation).numpy())


def optimised_cameras(model: Lora3DSplatModel, scene: PlacedScene) -> tuple[PhotographCamera, ...]:
    """Training cameras as optimised, in the world frame and the photographs' pixels."""
    cameras = nerfstudio_cameras(scene.train, scene.normalisation, indexed=True)
    poses = scene.normalisation.T_world_camera(optimised_camera_to_worlds(model.camera_optimizer, cameras))
    factor = optimised_focal_factor(model.camera_optimizer)
    return tuple(moved_camera(v.camera, pose.numpy(), factor) for v, pose in zip(scene.train, poses, strict=True))


def moved_camera(camera: PhotographCamera, T_world_camera: np.ndarray, focal_factor: float) -> PhotographCamera:
    """The camera with another pose and its focal length multiplied."""
    fx, fy = camera.fx * focal_factor, camera.fy * focal_factor
    return replace(camera, T_world_camera=T_world_camera, fx=fx, fy=fy)


def run_cameras(
    model: Lora3DSplatModel, scene: PlacedScene, scores: Sequence[ViewScore]
) -> tuple[PhotographCamera, ...]:
    """Training cameras as optimised and held-out ones as aligned, in the world frame and the photographs' pixels."""
    placed = list(optimised_cameras(model, scene))
    for view, score in zip(scene.heldout, scores if scene.heldout else (), strict=True):
        pose = opencv_to_opengl(score.pose.T_world_camera)[None, :3]
        T_world_camera = scene.normalisation.T_world_camera(pose)[0].numpy()
        placed.append(moved_camera(view.camera, T_world_camera, optimised_focal_factor(model.camera_optimizer)))
    return tuple(placed)


def write_run_files(folder: Path, model: Lora3DSplatModel, scene: PlacedScene, scores: Sequence[ViewScore]) -> None:
    """Write splat.ply, cameras.json and comparisons/ into the run's folder."""
    calibration = scene.calibration
    write_notice(calibration, folder)
    write_splat_ply(folder / "splat.ply", world_splat(model, scene.normalisation), weights_notice(calibration))
    cameras = run_cameras(model, scene, scores)
    write_scene_json(folder / "cameras.json", calibration.network, calibration.licence, cameras)
    for view, score in zip(scene.heldout or scene.train, scores, strict=True):
        write_comparison(folder / comparison_path(view.camera.file), score)


def name_calibration(folder: Path) -> None:
    """Let config.yml of a finished run name the run's own calibration, which later tools then load."""
    path = folder / CONFIG_FILE
    if not path.is_file():  # a trainer that was made by hand
        return
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)
    config.pipeline.datamanager.dataparser.calibrated = (folder / CALIBRATION_FOLDER).absolute()
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.dump(config), encoding="utf-8")


def write_comparison(path: Path, score: ViewScore) -> None:
    """One row: photograph, rendering, rendering after pose alignment, its absolute error (white: a third or more)."""
    error = (score.rendered_aligned - score.photo).abs().mean(dim=-1, keepdim=True) * ERROR_GAIN
    parts = (score.photo, score.rendered, score.rendered_aligned, error.expand_as(score.photo))
    row = torch.cat(parts, dim=1)
    pixels = (row.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
