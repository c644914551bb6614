"""What the panel's buttons write: the run as it stands at this moment, into its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora3d_splat.errors import InputError
from lora3d_splat.export.ply import write_points_ply
from lora3d_splat.export.splat import write_splat_ply
from lora3d_splat.outputs import FORMATS, export_scene, weights_notice, write_report
from lora3d_splat.passes import PassPoints
from lora3d_splat.plugin.model import Lora3DSplatModel
from lora3d_splat.plugin.pipeline import Lora3DPipeline
from lora3d_splat.plugin.run_files import optimised_cameras, world_splat

FOLDER = "export"

Written = tuple[Path, ...]


def _gaussians(pipeline: Lora3DPipeline, run: Path, _: PassPoints | None) -> Written:
    path = run / FOLDER / "splat.ply"
    write_splat_ply(path, world_splat(_model(pipeline), pipeline.scene.normalisation), _notice(pipeline))
    return (path,)


def _points(pipeline: Lora3DPipeline, run: Path, points: PassPoints | None) -> Written:
    if points is None or not len(points.points_world):
        raise InputError("no point above the threshold", "at least one", "lower the threshold")
    path = run / FOLDER / "points.ply"
    write_points_ply(path, points.points_world, points.rgb, _notice(pipeline))
    return (path,)


def _cameras(form: str) -> Callable[[Lora3DPipeline, Path, PassPoints | None], Written]:
    """The training cameras as optimised, in one of the formats of `ns-lora3d export`."""

    def write(pipeline: Lora3DPipeline, run: Path, _: PassPoints | None) -> Written:
        scene = export_scene(pipeline.scene.calibration)
        optimised = {camera.file: camera for camera in optimised_cameras(_model(pipeline), pipeline.scene)}
        cameras = tuple(optimised.get(camera.file, camera) for camera in scene.cameras)
        return (FORMATS[form](replace(scene, cameras=cameras), run / FOLDER),)

    return write


def _report(_: Lora3DPipeline, run: Path, __: PassPoints | None) -> Written:
    return (write_report(run),)


EXPORTS: dict[str, Callable[[Lora3DPipeline, Path, PassPoints | None], Written]] = {
    "PLY of the Gaussians": _gaussians,
    "PLY of the shown points": _points,
    "COLMAP": _cameras("colmap"),
    "transforms.json": _cameras("transforms-json"),
    "Report": _report,
}
"""Button by button; each returns what it wrote."""


def _notice(pipeline: Lora3DPipeline) -> str:
    return weights_notice(pipeline.scene.calibration)


def _model(pipeline: Lora3DPipeline) -> Lora3DSplatModel:
    assert isinstance(pipeline.model, Lora3DSplatModel)
    return pipeline.model
