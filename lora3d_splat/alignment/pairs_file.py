"""Pair predictions of any network in one .npz file, and the aligned scene in another.

In: `edges` (E, 2) views i, j of each ordered pair; `pts_i`, `pts_j` (E, H, W, 3) points of either view, both in the
frame of camera i; `conf_i`, `conf_j` (E, H, W) raw confidences, at least 1; where all are 1 they say nothing, and all
pixels count alike. Optional, for N views: `size_wh` (N, 2) or (2,) width and height of each view's picture, `masks`
(N, H, W) nonzero where pixels count, `focals` (N,) and `cam2world` (N, 4, 4) where known, NaN elsewhere. A picture
smaller than the maps fills their upper left corner, the rest is padding; of a larger one the maps are a resize, and its
focal, in and out, is in the picture's pixels.

Out: `cam2world` (N, 4, 4) OpenCV, `focals` (N,) pixels, `pts3d` (N, H, W, 3) world, `depth` (N, H, W), `calibrated_i`,
`calibrated_j` (E, H, W), zero for pairs that took no part; `registered` (N,), `reasons` (N,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.cameras import network_to_photograph_focal, photograph_to_network_focal
from ..records import ImagePair, PairPrediction, PixelAffine, View
from .align import Alignment, blank_view
from .judge import world_points
from .priors import CameraPriors, no_priors

REQUIRED = ("edges", "pts_i", "pts_j", "conf_i", "conf_j")
ACCEPTED = "an .npz with edges (E, 2), pts_i, pts_j (E, H, W, 3), conf_i, conf_j (E, H, W)"


@dataclass(frozen=True)
class PairsFile:
    """What a file of pair predictions holds, as `align` takes it."""

    views: tuple[View, ...]
    predictions: tuple[PairPrediction, ...]
    priors: CameraPriors
    grid: tuple[int, int]
    """(H, W) of the arrays, padding included"""


def read_pairs(path: Path) -> PairsFile:
    """Read and check a file of pair predictions; raises InputError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise _unusable(f"{path}, which does not read as .npz ({error})") from error
    return pairs_from_arrays(arrays)


def pairs_from_arrays(arrays: Mapping[str, np.ndarray]) -> PairsFile:
    """The same from arrays at hand, which are not copied where they are float32."""
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise _unusable(f"no array {', '.join(missing)}")
    edges = np.asarray(arrays["edges"])
    if edges.ndim != 2 or edges.shape[1] != 2 or len(edges) == 0 or not np.issubdtype(edges.dtype, np.integer):
        raise _unusable(f"edges of shape {edges.shape} and type {edges.dtype}")
    if bool((edges[:, 0] == edges[:, 1]).any()):
        raise _unusable(f"a pair of view {int(edges[edges[:, 0] == edges[:, 1]][0, 0])} with itself")
    grid = tuple(arrays["pts_i"].shape[1:3])
    count = _view_count(arrays, edges)
    for name in REQUIRED[1:]:
        wanted = (len(edges), *grid, 3) if name.startswith("pts") else (len(edges), *grid)
        if arrays[name].shape != wanted:
            raise _unusable(f"{name} of shape {arrays[name].shape}, where {wanted} was expected")
    views = tuple(_view(index, grid, arrays, count) for index in range(count))
    clouds = {name: torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in REQUIRED[1:]}
    clouds |= _confidences(clouds)

    def side(name: str, edge: int, view: int) -> Tensor:
        height, width = views[view].size
        return clouds[name][edge, :height, :width]

    predictions = tuple(
        PairPrediction(
            ImagePair(int(i), int(j)),
            side("pts_i", k, i),
            side("conf_i", k, i),
            side("pts_j", k, j),
            side("conf_j", k, j),
        )
        for k, (i, j) in enumerate(edges.tolist())
    )
    return PairsFile(views, predictions, _priors(views, arrays), (grid[0], grid[1]))


def write_aligned(path: Path, source: PairsFile, found: Alignment) -> None:
    """Write the scene with the views and edges of `source`, under exactly the name given."""
    scene, views = found.scene, source.views
    taken = dict(zip(scene.pairs, found.confidence.pair_weights, strict=True))
    nothing = (torch.zeros(0, 0), torch.zeros(0, 0))
    sides = [taken.get(item.pair, nothing) for item in source.predictions]
    depth = np.stack([_padded(item, source.grid) for item in scene.depth])
    with path.open("wb") as stream:
        np.savez(
            stream,
            cam2world=scene.T_world_camera.numpy(),
            focals=np.array(
                [network_to_photograph_focal(float(f), v.affine) for f, v in zip(scene.focal, views, strict=True)]
            ),
            pts3d=np.stack([_padded(world_points(scene, k), source.grid) for k in range(len(views))]),
            depth=depth,
            calibrated_i=np.stack([_padded(first, source.grid) for first, _ in sides]),
            calibrated_j=np.stack([_padded(second, source.grid) for _, second in sides]),
            registered=np.array(scene.registered),
            reasons=np.array([reason or "" for reason in scene.reasons]),
        )


def _view_count(arrays: Mapping[str, np.ndarray], edges: np.ndarray) -> int:
    count = int(edges.max()) + 1
    for name, axes in (("size_wh", 2), ("masks", 3), ("focals", 1), ("cam2world", 3)):
        if name in arrays and arrays[name].ndim == axes:
            count = max(count, len(arrays[name]))
    if int(edges.min()) < 0:
        raise _unusable(f"edges that name view {int(edges.min())}")
    for name, shape in (("masks", (count,)), ("focals", (count,)), ("cam2world", (count, 4, 4))):
        if name in arrays and arrays[name].shape[: len(shape)] != shape:
            raise _unusable(f"{name} of shape {arrays[name].shape} for {count} views")
    return count


def _confidences(clouds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both arrays of confidences; those of a network that gives none, all 1, become e, of logarithm 1."""
    found = {name: clouds[name] for name in ("conf_i", "conf_j")}
    highest = max(float(values.nan_to_num(0.0).max()) for values in found.values())
    if highest < 1:
        raise InputError(
            f"confidences of at most {highest:.3g}",
            "raw confidences c of 1 and more, whose logarithm is a pixel's weight",
            "store 1 + exp(x) of the network's x, or 1 everywhere where it gives none",
        )
    silent = all(bool((values == 1).all()) for values in found.values())
    return {name: torch.full_like(values, torch.e) for name, values in found.items()} if silent else found


def _view(index: int, grid: tuple[int, ...], arrays: Mapping[str, np.ndarray], count: int) -> View:
    width, height = grid[1], grid[0]
    if "size_wh" in arrays:
        width, height = (int(side) for side in np.broadcast_to(arrays["size_wh"], (count, 2))[index])
    rows, columns = min(height, grid[0]), min(width, grid[1])
    mask = np.asarray(arrays["masks"][index] != 0)[:rows, :columns] if "masks" in arrays else None
    view = blank_view(f"view {index}", rows, columns, mask)
    return replace(view, width=width, height=height, affine=PixelAffine(columns / width, rows / height, 0.0, 0.0))


def _priors(views: tuple[View, ...], arrays: Mapping[str, np.ndarray]) -> CameraPriors:
    priors = no_priors(views)
    if "focals" in arrays:
        given = zip(np.asarray(arrays["focals"], np.float64).tolist(), views, strict=True)
        focal = [photograph_to_network_focal(value, view.affine) if value > 0 else np.nan for value, view in given]
        priors = replace(priors, focal=torch.tensor(focal, dtype=torch.float64))
    if "cam2world" in arrays:
        poses = torch.from_numpy(np.array(arrays["cam2world"], np.float64))
        poses[~poses.isfinite().all(-1).all(-1)] = torch.nan
        priors = replace(priors, T_world_camera=poses)
    return priors


def _padded(values: Tensor, grid: tuple[int, int]) -> np.ndarray:
    array = np.zeros((*grid, *values.shape[2:]), np.float32)
    array[: values.shape[0], : values.shape[1]] = values.numpy()
    return array


def _unusable(found: str) -> InputError:
    return InputError(found, ACCEPTED, "see `lora3d_splat/alignment/pairs_file.py` for every array and its frame")
