"""What the user knows about the cameras, read from files: priors for the alignment, anchors for the finished scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lora3d_splat.alignment import CameraPriors, PoseSigma
from lora3d_splat.alignment.anchors import view_named, with_distance, with_positions
from lora3d_splat.alignment.priors import no_priors
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.colmap import read_colmap_cameras
from lora3d_splat.export.scene_json import read_scene_json
from lora3d_splat.export.transforms_json import read_transforms_json
from lora3d_splat.geometry.cameras import photograph_to_network_intrinsics
from lora3d_splat.records import AlignedScene, View


@dataclass(frozen=True)
class KnownCamerasConfig:
    """What is known of the cameras before they are calibrated, and what gives the scene its unit."""

    file: Path | None = None
    """transforms.json, scene.json, or the folder of a COLMAP model; it need not name every photograph."""
    use: Literal["intrinsics", "poses", "both"] = "both"
    """What to take from the file."""
    principal_point: bool = False
    """Take the principal point from the file too, instead of the middle of the photograph."""
    position_sigma: float | None = None
    """How far known positions may be off, in their own unit; None holds known poses fixed."""
    rotation_sigma_deg: float = 1.0
    """How far known orientations may be off, degrees; counts where position_sigma is given."""
    distance: tuple[str, str, float] | None = None
    """FILE FILE LENGTH: the cameras of these two photographs are that far apart, which sets the scene's unit."""
    positions: Path | None = None
    """Text file with lines FILE X Y Z: the scene is moved and scaled onto these camera positions (three or more)."""

    def __post_init__(self) -> None:
        if self.distance is not None and self.positions is not None:
            raise InputError("a distance and positions", "one of the two", "leave one out: either sets the unit")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the result depends on."""
        if self.file is None or not self.file.is_dir():
            model = () if self.file is None else (self.file,)
        else:
            model = tuple(sorted(path for path in self.file.rglob("*") if path.suffix in (".bin", ".txt")))
        return model + (() if self.positions is None else (self.positions,))


def camera_priors(views: Sequence[View], config: KnownCamerasConfig) -> CameraPriors:
    """Priors of the views that the file names; raises InputError where it names none of them."""
    priors = no_priors(views)
    if config.file is None:
        return priors
    cameras = read_cameras(config.file)
    by_file = {camera.file: camera for camera in cameras}
    by_name = {Path(camera.file).name: camera for camera in cameras}
    focal, poses, centre = priors.focal.clone(), priors.T_world_camera.clone(), priors.principal_point.clone()
    found = 0
    for index, view in enumerate(views):
        camera = by_file.get(view.file) or by_name.get(Path(view.file).name)
        if camera is None:
            continue
        found += 1
        fx, fy, cx, cy = _in_network_pixels(camera, view)
        if config.use != "poses":
            focal[index] = (fx * fy) ** 0.5
            if config.principal_point:
                centre[index] = torch.tensor([cx, cy])
        if config.use != "intrinsics" and camera.registered:
            poses[index] = torch.from_numpy(camera.T_world_camera)
    if found == 0:
        raise InputError(
            f"{config.file}, which names none of the photographs ({', '.join(sorted(by_name)[:3])}, ...)",
            "cameras of the same file names",
            "rename the photographs, or point to the cameras of this folder",
        )
    sigma = None if config.position_sigma is None else PoseSigma(config.position_sigma, config.rotation_sigma_deg)
    return CameraPriors(focal, poses, centre, sigma)


def anchored(scene: AlignedScene, views: Sequence[View], config: KnownCamerasConfig) -> AlignedScene:
    """The scene in the unit that the settings ask for."""
    files = [view.file for view in views]
    if config.distance is not None:
        first, second, length = config.distance
        return with_distance(scene, view_named(files, first), view_named(files, second), length)
    if config.positions is not None:
        known = torch.full((len(views), 3), torch.nan, dtype=torch.float64)
        for name, *position in _position_lines(config.positions):
            known[view_named(files, str(name))] = torch.tensor([float(value) for value in position])
        return with_positions(scene, known)
    return scene


def read_cameras(path: Path) -> tuple[PhotographCamera, ...]:
    """Cameras of a transforms.json, a scene.json or a COLMAP model, told apart by their names."""
    if path.is_dir():
        return read_colmap_cameras(path)
    reader = read_scene_json
    try:
        if '"views"' not in path.read_text(encoding="utf-8"):
            return read_transforms_json(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, which does not read as cameras ({type(error).__name__}: {error})",
            "transforms.json, scene.json, or the folder of a COLMAP model",
            "check the path",
        ) from error
    return reader(path)[1]


def _in_network_pixels(camera: PhotographCamera, view: View) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy; cameras of another resolution of the photograph are scaled to it first."""
    across, down = view.width / camera.width, view.height / camera.height
    scaled = replace(camera, fx=camera.fx * across, fy=camera.fy * down, cx=camera.cx * across, cy=camera.cy * down)
    return photograph_to_network_intrinsics(scaled.fx, scaled.fy, scaled.cx, scaled.cy, view.affine)


def _position_lines(path: Path) -> list[list[str]]:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path}, which cannot be read ({error})", "a text file", "check the path") from error
    lines = [line for line in lines if line and not line[0].startswith("#")]
    if any(len(line) != 4 for line in lines):
        raise InputError(f"{path} with a line that is not FILE X Y Z", "lines FILE X Y Z", "correct the line")
    return lines
