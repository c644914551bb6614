"""Metric anchors: what brings a finished scene to a known unit and place, without bending it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.procrustes import Similarity
from ..geometry.transforms import rigid
from ..records import AlignedScene
from .priors import frame_of_centres


def moved_scene(scene: AlignedScene, frame: Similarity) -> AlignedScene:
    """The scene in another frame and unit; views that are not registered keep the identity."""

    def carried(T_world_frame: Tensor) -> Tensor:
        return rigid(frame.rotation @ T_world_frame[:, :3, :3], frame.apply(T_world_frame[:, :3, 3]))

    factor = float(frame.scale)
    placed = torch.tensor(scene.registered)[:, None, None]
    return replace(
        scene,
        T_world_camera=torch.where(placed, carried(scene.T_world_camera), scene.T_world_camera),
        depth=tuple(depth * factor for depth in scene.depth),
        T_world_pair=carried(scene.T_world_pair),
        pair_scale=scene.pair_scale * factor,
        mu=scene.mu * factor,
    )


def with_distance(scene: AlignedScene, first: int, second: int, length: float) -> AlignedScene:
    """The scene in the unit in which the cameras of two views are `length` apart."""
    for view in (first, second):
        if not scene.registered[view]:
            raise InputError(
                f"a known distance to view {view}, which was left out: {scene.reasons[view]}",
                "the distance between two registered views",
                "give the distance between two other views",
            )
    found = float((scene.T_world_camera[first, :3, 3] - scene.T_world_camera[second, :3, 3]).norm())
    if not (length > 0 and found > 0):
        raise InputError(
            f"a known distance of {length} between cameras that lie {found:g} apart",
            "a positive distance between two cameras in different places",
            "measure between two photographs taken well apart",
        )
    eye = torch.eye(3, dtype=torch.float64)
    return moved_scene(scene, Similarity(torch.tensor(length / found).double(), eye, torch.zeros(3).double()))


def with_positions(scene: AlignedScene, positions: Tensor) -> AlignedScene:
    """The scene moved so that its camera centres lie best on known positions (V, 3); NaN where unknown."""
    known = torch.where(torch.tensor(scene.registered)[:, None], positions.double(), torch.nan)
    return moved_scene(scene, frame_of_centres(scene.T_world_camera[:, :3, 3], known))


def view_named(files: Sequence[str], name: str) -> int:
    """Index of the view of that file; the bare name is enough where it is unique."""
    matches = [k for k, file in enumerate(files) if file == name] or [
        k for k, file in enumerate(files) if file.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]
    ]
    if len(matches) != 1:
        raise InputError(
            f"{name}, which names {len(matches)} of the photographs",
            f"one of {', '.join(files[:4])}{', ...' if len(files) > 4 else ''}",
            "spell the file as it is in the folder",
        )
    return matches[0]
