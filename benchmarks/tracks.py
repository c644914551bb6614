"""Cameras of posed scenes: pointmap alignment alone, with feature tracks, and COLMAP's incremental mapper.

    OMP_NUM_THREADS=1 python benchmarks/tracks.py ../shared/data --cache outputs/tracks

For each scene all training views, then 6 and 3 evenly spaced ones, with the network compact and without fine-tuning.
ATE is the RMSE of registered camera centres after Sim(3), over the extent of the true centres of all views; rotation
the mean error of relative rotations; depth the median relative error after one common scale, before and after
sharpening, and where sharpening claims confidence. Finished rows lie in the cache and are not computed again. Two rooms
are rendered into the cache as well: plain walls and repeated texture, on which tracks must not be worse than none.

    OMP_NUM_THREADS=1 python benchmarks/tracks.py ../shared/data --scenes redkitchen_a --frames all --views 12

takes held-out photographs as well, twelve of 640x480: their CPU seconds are what tracks and sharpening cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mapper_baseline import map_photographs
from PIL import Image
from rich.table import Table
from wall_scenes import WALLS, write_walls

from lora3d_splat.alignment import AlignmentConfig, align
from lora3d_splat.alignment.tracks import find_tracks, settle, unaligned
from lora3d_splat.console import CONSOLE
from lora3d_splat.errors import AlignmentError
from lora3d_splat.geometry.cameras import network_to_photograph_focal
from lora3d_splat.images.load import load_views
from lora3d_splat.metrics.pose import ate_rmse, relative_rotation_error_deg
from lora3d_splat.networks import image_shape, load_network
from lora3d_splat.pairs import select_pairs
from lora3d_splat.prediction import predict_pairs
from lora3d_splat.records import AlignedScene, View

SCENES = ("redkitchen_a", "fountain_p11", "hololens_table", "fox", "dtu_scan24", "lego", *WALLS)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of scenes, each with scene.json")
    parser.add_argument("--scenes", nargs="+", default=list(SCENES))
    parser.add_argument("--views", type=int, nargs="+", default=[0, 6, 3], help="0 is all training views")
    parser.add_argument("--frames", choices=("train", "all"), default="train", help="which photographs of a scene")
    parser.add_argument("--cache", type=Path, default=Path("outputs/tracks"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.scenes:
        folder = options.data / name
        if name in WALLS:
            folder = options.cache / "rendered" / name
            write_walls(folder.parent, name)
        for count in options.views if name not in WALLS else (0,):
            frames = spaced(scene_frames(folder, options.frames), count)
            for method, work in (("mapper", mapper_rows), ("ours", our_rows)):
                every = "_of_all" if options.frames == "all" else ""
                path = options.cache / f"{name}_{len(frames)}{every}_{method}.json"
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(work(folder, frames)))
                rows += [{"scene": f"{name} {len(frames)}", **row} for row in json.loads(path.read_text())]
    show(rows)


def scene_frames(folder: Path, which: str) -> list[dict[str, Any]]:
    """The frames of a scene that a method may see: those for training, or all."""
    frames = json.loads((folder / "scene.json").read_text())["frames"]
    return [frame for frame in frames if which == "all" or frame["split"] == "train"]


def spaced(frames: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` evenly spaced ones, 0 for all."""
    return [frames[round(place)] for place in np.linspace(0, len(frames) - 1, count or len(frames))]


def mapper_rows(folder: Path, frames: Sequence[dict[str, Any]]) -> list[Row]:
    """The mapper's one row."""
    found = map_photographs([folder / frame["file"] for frame in frames])
    names = [Path(frame["file"]).name for frame in frames]
    poses = [found.T_world_camera.get(name, np.eye(4)) for name in names]
    registered = [name in found.T_world_camera for name in names]
    row = scored(torch.from_numpy(np.array(poses)), registered, [found.focal] * len(frames), frames)
    return [{"method": "mapper", **row, "seconds": found.seconds}]


def our_rows(folder: Path, frames: Sequence[dict[str, Any]]) -> list[Row]:
    """Alignment alone, with tracks, and with tracks and sharpened depth."""
    network = load_network("compact", "cpu")
    paths = [folder / frame["file"] for frame in frames]
    views = load_views(paths, network.long_side, network.patch_size, None, 2, image_shape(network)).views
    predictions = predict_pairs(network, views, select_pairs(len(views)))
    config, floor = AlignmentConfig(), network.confidence_floor
    began, worked = time.perf_counter(), time.process_time()
    note = ""
    try:
        scene, _ = align(predictions, config, views=views, confidence_floor=floor)
    except AlignmentError as error:
        scene, note = unaligned(views, predictions), error.found
    rows = [{**_row("alignment", views, scene, frames, folder, began, worked), "note": note}]
    began, worked = time.perf_counter(), time.process_time()
    sparse = find_tracks(views, scene, predictions, config)
    if sparse is None:
        return [*rows, {**rows[0], "method": "tracks", "note": "no tracks"}]
    settled, _ = settle(views, scene, predictions, sparse, config, floor)
    rows.append(_row("tracks", views, settled, frames, folder, began, worked))
    rows[-1]["placed"] = sum(sparse.placed)
    began, worked = time.perf_counter(), time.process_time()
    sharp, confidence = settle(views, scene, predictions, sparse, config, floor, sharp=True)
    rows.append(_row("tracks + sharp", views, sharp, frames, folder, began, worked))
    top = max(float(values.max()) for values in confidence.view_raw_confidence)
    claimed = [values > top for values in confidence.view_confidence]
    rows[-1]["claimed"] = depth_error(views, sharp, frames, folder, claimed)
    rows[-1]["claimed_share"] = float(torch.cat([mask.flatten() for mask in claimed]).float().mean())
    return rows


def _row(
    method: str, views: Sequence[View], scene: AlignedScene, frames: Sequence[dict[str, Any]], folder: Path,
    began: float, worked: float,
) -> Row:  # fmt: skip
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    focal = [network_to_photograph_focal(float(f), v.affine) for f, v in zip(scene.focal, views, strict=True)]
    row = scored(scene.T_world_camera, scene.registered, focal, frames)
    return {
        "method": method, **row, "depth": depth_error(views, scene, frames, folder), "seconds": seconds, "cpu": cpu
    }  # fmt: skip


def scored(poses: torch.Tensor, registered: Sequence[bool], focal: Sequence[float], frames: Sequence[dict]) -> Row:
    """Errors of the registered cameras; ATE needs three of them."""
    true = torch.tensor([frame["c2w"] for frame in frames], dtype=torch.float64)
    extent = float(torch.cdist(true[:, :3, 3], true[:, :3, 3]).max())
    kept = torch.tensor(list(registered))
    row: Row = {"registered": int(kept.sum()), "of": len(frames), "ate": None, "rotation": None, "focal": None}
    if kept.sum() >= 3:
        row["ate"] = ate_rmse(poses[kept][:, :3, 3], true[kept][:, :3, 3]) / extent
    if kept.sum() >= 2:
        row["rotation"] = float(relative_rotation_error_deg(poses[kept], true[kept]).mean())
        gaps = [abs(f / frame["fx"] - 1) for f, frame, use in zip(focal, frames, registered, strict=True) if use]
        row["focal"] = float(np.mean(gaps))
    return row


def depth_error(
    views: Sequence[View], scene: AlignedScene, frames: Sequence[dict], folder: Path, masks: Sequence | None = None
) -> float | None:
    """Median relative error of depth after one scale for the scene; None where there is no true depth."""
    logs = []
    for index, (view, frame) in enumerate(zip(views, frames, strict=True)):
        if frame.get("depth") is None or not scene.registered[index]:
            continue
        unit = json.loads((folder / "scene.json").read_text())["depth"]["scale_to_metres"]
        true = np.asarray(Image.open(folder / frame["depth"])).astype(np.float64) * unit
        rows, columns = (
            ((np.arange(side) + 0.5 - offset) / scale).astype(int).clip(0, limit - 1)
            for side, offset, scale, limit in (
                (view.size[0], view.affine.offset_y, view.affine.scale_y, true.shape[0]),
                (view.size[1], view.affine.offset_x, view.affine.scale_x, true.shape[1]),
            )
        )
        seen = torch.from_numpy(true[rows][:, columns])
        usable = (seen > 0) & (scene.depth[index] > 0)
        usable = usable if masks is None else usable & masks[index]
        logs.append((scene.depth[index].double()[usable] / seen[usable]).log())
    if not logs or sum(map(len, logs)) == 0:
        return None
    every = torch.cat(logs)
    return float(((every - every.median()).exp() - 1).abs().median())


def show(rows: Sequence[Row]) -> None:
    """The table, and the ratio to the mapper where it registers all views."""
    table = Table("scene", "method", "views", "ATE/extent", "rotation deg", "focal", "depth", "claimed", "s", "CPU s")
    for row in rows:
        table.add_row(
            row["scene"], row["method"], f"{row['registered']}/{row['of']}", _percent(row["ate"]),
            "-" if row["rotation"] is None else f"{row['rotation']:.2f}", _percent(row["focal"]),
            _percent(row.get("depth")), _percent(row.get("claimed")), f"{row['seconds']:.1f}",
            f"{row['cpu']:.1f}" if "cpu" in row else "-",
        )  # fmt: skip
    CONSOLE.print(table)
    by = {(row["scene"], row["method"]): row for row in rows}
    ratios = {
        scene: by[scene, "tracks"]["ate"] / row["ate"]
        for (scene, method), row in by.items()
        if method == "mapper" and row["registered"] == row["of"] and row["ate"] and by[scene, "tracks"]["ate"]
    }
    for scene, ratio in ratios.items():
        CONSOLE.print(f"{scene}: ATE {ratio:.2f} times the mapper's")
    if ratios:
        CONSOLE.print(f"median {np.median(list(ratios.values())):.2f}, worst {max(ratios.values()):.2f}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


if __name__ == "__main__":
    main()
