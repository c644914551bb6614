"""The output folder of a calibration: every export and the report, finding a calibration again, later reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from lora3d_splat.calibration_files import SCENE_FILE, load_calibration, save_calibration
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera, photograph_cameras
from lora3d_splat.export.colmap import write_colmap
from lora3d_splat.export.ply import write_points_ply
from lora3d_splat.export.scene_json import write_scene_json
from lora3d_splat.export.transforms_json import write_transforms_json
from lora3d_splat.files import atomic_file, ensure_writable_folder, write_text
from lora3d_splat.gaussians.seeds import SeedConfig, seed_points
from lora3d_splat.images.load import HEIF_SUFFIXES, open_upright
from lora3d_splat.records import Calibration, View
from lora3d_splat.report.html import write_html_report
from lora3d_splat.report.json_report import stored_settings, write_json_report
from lora3d_splat.report.run_results import CALIBRATION_FOLDER, RunResults, read_run

SEED_FILE = "seed.ply"
NOTICE_FILE = "NOTICE.txt"
JSON_REPORT, HTML_REPORT = "report.json", "report.html"
IMAGES_FOLDER = "images"


@dataclass(frozen=True)
class ExportScene:
    """What the formats are made from."""

    calibration: Calibration
    cameras: tuple[PhotographCamera, ...]
    points_world: np.ndarray
    """(N, 3) float32"""
    rgb: np.ndarray
    """(N, 3) uint8"""


def export_scene(calibration: Calibration) -> ExportScene:
    """Cameras in photograph pixels, and the seed points."""
    seeds = seed_points(calibration, SeedConfig())
    cameras = photograph_cameras(calibration.views, calibration.scene)
    return ExportScene(calibration, cameras, seeds.points_world.numpy(), seeds.rgb.numpy())


def write_outputs(calibration: Calibration, folder: Path, settings: object) -> None:
    """Everything that `ns-lora3d calibrate` promises, into `folder`; `settings` is the dataclass to be reported."""
    ensure_writable_folder(folder, "output folder")
    if calibration.folder != folder:
        calibration = save_calibration(calibration, folder)
    write_formats(calibration, folder, tuple(FORMATS))
    _write_reports(folder, calibration, settings, None)


def write_report(source: Path) -> Path:
    """Build report.json and report.html of an output folder or a run from what lies in it; returns the latter.

    A run that crashed gets a report of what it had reached. Settings come from the report of the calibration.
    """
    home = find_calibration(source)
    run = None if home == source else read_run(source)
    _write_reports(source, load_calibration(home), stored_settings(home / JSON_REPORT), run)
    return source / HTML_REPORT


def _write_reports(folder: Path, calibration: Calibration, settings: object, run: RunResults | None) -> None:
    write_json_report(folder / JSON_REPORT, calibration, settings, run)
    write_html_report(folder / HTML_REPORT, calibration, settings, run)


def write_formats(calibration: Calibration, folder: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write the named formats (keys of FORMATS) into `folder`; returns what was written."""
    scene = export_scene(calibration)
    write_notice(calibration, folder)
    return tuple(FORMATS[name](scene, folder) for name in formats)


def weights_notice(calibration: Calibration) -> str:
    """One line for everything that was made with the network: its name and the licence of its weights."""
    return f"made with the network {calibration.network}, weights under {calibration.licence}"


def write_notice(calibration: Calibration, folder: Path) -> None:
    """The same beside formats that have no room for it."""
    write_text(folder / NOTICE_FILE, f"Everything in this folder was {weights_notice(calibration)}.\n")


def find_calibration(source: Path) -> Path:
    """The folder of the calibration: `source` itself, or `calibration/` in a run folder."""
    for folder in (source, source / CALIBRATION_FOLDER):
        if (folder / SCENE_FILE).is_file():
            return folder
    raise InputError(
        found=f"no {SCENE_FILE} in {source} or its calibration/",
        accepted="an output folder of `ns-lora3d calibrate` or a run folder of `ns-train lora3d-splat`",
        remedy="check the path, or calibrate first",
    )


def calibration_tree(folder: Path) -> str:
    """A line per thing that was written, for the user."""
    wanted = ("report.html", "scene.json", SCENE_FILE, "adapter", "transforms.json", SEED_FILE, "colmap/sparse/0")
    return "\n".join(str(folder / name) for name in wanted if (folder / name).exists())


def upright_photographs(views: Sequence[View], folder: Path) -> tuple[str, ...]:
    """Paths of the photographs as other programs should read them, relative to `folder` where they lie in it.

    Where a photograph is turned by its EXIF orientation, which most programs ignore, or is HEIF, which most
    cannot read, all are copied upright to images/.
    """
    if any(view.path.suffix.lower() in HEIF_SUFFIXES or _is_turned(view.path) for view in views):
        return tuple(_upright_copy(view, folder) for view in views)
    return tuple(_reference(view.path.absolute(), folder.absolute()) for view in views)


def _is_turned(path: Path) -> bool:
    with Image.open(path) as photo:
        return photo.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _upright_copy(view: View, folder: Path) -> str:
    name = f"{view.file}.jpg" if view.path.suffix.lower() in HEIF_SUFFIXES else view.file
    with atomic_file(folder / IMAGES_FOLDER / name) as temporary:
        open_upright(view.path).save(temporary, quality=95)
    return f"{IMAGES_FOLDER}/{name}"


def _reference(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)


def _scene_json(scene: ExportScene, folder: Path) -> Path:
    write_scene_json(folder / "scene.json", scene.calibration.network, scene.calibration.licence, scene.cameras)
    return folder / "scene.json"


def _ply(scene: ExportScene, folder: Path) -> Path:
    write_points_ply(folder / SEED_FILE, scene.points_world, scene.rgb, weights_notice(scene.calibration))
    return folder / SEED_FILE


def _transforms_json(scene: ExportScene, folder: Path) -> Path:
    _ply(scene, folder)
    images = upright_photographs(scene.calibration.views, folder)
    notice = weights_notice(scene.calibration)
    write_transforms_json(folder / "transforms.json", scene.cameras, images, SEED_FILE, notice)
    return folder / "transforms.json"


def _colmap(scene: ExportScene, folder: Path) -> Path:
    write_colmap(folder / "colmap" / "sparse" / "0", scene.cameras, scene.points_world, scene.rgb)
    return folder / "colmap" / "sparse" / "0"


FORMATS: dict[str, Callable[[ExportScene, Path], Path]] = {
    "scene-json": _scene_json,
    "transforms-json": _transforms_json,
    "colmap": _colmap,
    "ply": _ply,
}
"""What `ns-lora3d export --format` knows."""
