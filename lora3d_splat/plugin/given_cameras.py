"""Training and scoring with cameras from a file, held fixed or optimised further, instead of the calibrated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.export.scene_json import read_scene_json
from lora3d_splat.records import Calibration, View


def read_cameras(path: Path, views: Sequence[View]) -> dict[str, PhotographCamera]:
    """The registered cameras of a cameras.json or scene.json by file; they must lie in the calibration's world."""
    cameras = {camera.file: camera for camera in read_scene_json(path)[1] if camera.registered}
    if not cameras.keys() & {view.file for view in views}:
        raise InputError(
            found=f"{path}, whose cameras are those of other photographs ({', '.join(sorted(cameras)[:3])}, ...)",
            accepted="cameras.json of a run, or scene.json of a calibration, of the same photographs",
            remedy="name the file of the run that was trained on this folder",
        )
    return cameras


def with_cameras(
    calibration: Calibration, cameras: dict[str, PhotographCamera], heldout: Sequence[Path]
) -> Calibration:
    """The calibration with the poses of these cameras; held-out views and those without a camera count as left out."""
    scene, poses = calibration.scene, calibration.scene.T_world_camera.clone()
    registered, reasons = list(scene.registered), list(scene.reasons)
    for index, view in enumerate(calibration.views):
        if view.path in heldout or view.file not in cameras:
            registered[index], reasons[index] = False, "held out" if view.path in heldout else "no camera was given"
        else:
            poses[index] = torch.from_numpy(cameras[view.file].T_world_camera)
    changed = replace(scene, registered=tuple(registered), reasons=tuple(reasons), T_world_camera=poses)
    return replace(calibration, scene=changed)
