"""`ns-lora3d export`: a finished run, or a calibration, in another program's format.

Everything is in the frame and scale of the calibration's world and in pixels of the original, upright photographs. A
run's cameras are those after the joint optimisation, its points the trained Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lora3d_splat.calibration_files import load_calibration
from lora3d_splat.console import warn
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.colmap import write_colmap
from lora3d_splat.export.dot_splat import write_dot_splat
from lora3d_splat.export.glb import write_glb
from lora3d_splat.export.ply import write_points_ply
from lora3d_splat.export.scene_json import read_scene_json, write_scene_json
from lora3d_splat.export.splat import SH_C0, Splat, read_splat_ply, write_splat_ply
from lora3d_splat.export.spz import write_spz
from lora3d_splat.export.transforms_json import write_transforms_json
from lora3d_splat.export.video import VideoConfig, write_mp4
from lora3d_splat.outputs import (
    SEED_FILE,
    ExportScene,
    export_scene,
    find_calibration,
    upright_photographs,
    weights_notice,
    write_notice,
)
from lora3d_splat.records import Calibration

Format = Literal["ply", "splat", "spz", "colmap", "transforms", "glb", "mp4", "cameras"]
SPLAT_FILE, CAMERAS_FILE, SCENE_JSON = "splat.ply", "cameras.json", "scene.json"


@dataclass(frozen=True)
class Source:
    """What there is to export."""

    scene: ExportScene
    """cameras and points; of a run the optimised ones and the Gaussians' centres"""
    splat: Splat | None
    """None where nothing was trained"""
    all_cameras: tuple[PhotographCamera, ...]
    """with the held-out ones"""
    video: VideoConfig

    @property
    def calibration(self) -> Calibration:
        """Where the photographs and the licence are."""
        return self.scene.calibration


def export_source(
    source: Path, folder: Path, formats: Sequence[Format], video: VideoConfig | None = None
) -> tuple[Path, ...]:
    """Write the formats of a run or a calibration into `folder`; returns the files and folders that were written."""
    found = read_source(source, video or VideoConfig())
    write_notice(found.calibration, folder)
    return tuple(path for name in formats for path in WRITERS[name](found, folder))


def read_source(source: Path, video: VideoConfig) -> Source:
    """Read a run folder or an output folder of a calibration; of a run that did not reach its end, the calibration."""
    home = find_calibration(source)
    scene = export_scene(load_calibration(home))
    trained = (source / SPLAT_FILE).is_file() and (source / CAMERAS_FILE).is_file()
    if home != source and not trained:
        warn(
            f"{source} has not reached its end: its calibration is exported. "
            "The same ns-train command goes on from the last checkpoint"
        )
    if not trained:
        return Source(scene, None, scene.cameras, video)
    splat = read_splat_ply(source / SPLAT_FILE)
    cameras = read_scene_json(source / CAMERAS_FILE)[1]
    optimised = {camera.file: camera for camera in cameras}
    kept = tuple(optimised.get(camera.file, replace(camera, registered=False)) for camera in scene.cameras)
    rgb = np.clip(np.rint((0.5 + SH_C0 * splat.sh_dc) * 255), 0, 255).astype(np.uint8)
    return Source(ExportScene(scene.calibration, kept, splat.means, rgb), splat, cameras, video)


def _ply(source: Source, folder: Path) -> tuple[Path, ...]:
    notice = weights_notice(source.calibration)
    if source.splat is None:
        write_points_ply(folder / SEED_FILE, source.scene.points_world, source.scene.rgb, notice)
        return (folder / SEED_FILE,)
    write_splat_ply(folder / SPLAT_FILE, source.splat, notice)
    return (folder / SPLAT_FILE,)


def _splat(source: Source, folder: Path) -> tuple[Path, ...]:
    write_dot_splat(folder / "scene.splat", _trained(source, "splat"))
    return (folder / "scene.splat",)


def _spz(source: Source, folder: Path) -> tuple[Path, ...]:
    write_spz(folder / "scene.spz", _trained(source, "spz"))
    return (folder / "scene.spz",)


def _colmap(source: Source, folder: Path) -> tuple[Path, ...]:
    path = folder / "colmap" / "sparse" / "0"
    write_colmap(path, source.scene.cameras, source.scene.points_world, source.scene.rgb)
    return (path,)


def _transforms(source: Source, folder: Path) -> tuple[Path, ...]:
    scene, notice = source.scene, weights_notice(source.calibration)
    write_points_ply(folder / SEED_FILE, scene.points_world, scene.rgb, notice)
    images = upright_photographs(source.calibration.views, folder)
    write_transforms_json(folder / "transforms.json", scene.cameras, images, SEED_FILE, notice)
    return folder / "transforms.json", folder / SEED_FILE


def _glb(source: Source, folder: Path) -> tuple[Path, ...]:
    scene, notice = source.scene, weights_notice(source.calibration)
    write_glb(folder / "scene.glb", scene.points_world, scene.rgb, scene.cameras, notice)
    return (folder / "scene.glb",)


def _mp4(source: Source, folder: Path) -> tuple[Path, ...]:
    splat = _trained(source, "mp4")
    write_mp4(folder / "inputs.mp4", splat, source.scene.cameras, "inputs", source.video)
    write_mp4(folder / "orbit.mp4", splat, source.scene.cameras, "orbit", source.video)
    return folder / "inputs.mp4", folder / "orbit.mp4"


def _cameras(source: Source, folder: Path) -> tuple[Path, ...]:
    path = folder / (SCENE_JSON if source.splat is None else CAMERAS_FILE)
    write_scene_json(path, source.calibration.network, source.calibration.licence, source.all_cameras)
    return (path,)


def _trained(source: Source, name: str) -> Splat:
    if source.splat is None:
        raise InputError(
            found=f"the format {name} of a calibration, which has no Gaussians",
            accepted="ply, colmap, transforms, glb, cameras; all formats for a run",
            remedy="train first: ns-train lora3d-splat --data PHOTOS",
        )
    return source.splat


WRITERS: dict[Format, Callable[[Source, Path], tuple[Path, ...]]] = {
    "ply": _ply,
    "splat": _splat,
    "spz": _spz,
    "colmap": _colmap,
    "transforms": _transforms,
    "glb": _glb,
    "mp4": _mp4,
    "cameras": _cameras,
}
"""What `ns-lora3d export --format` knows."""
