"""Camera errors of plain, robust and robust + LoRA alignment, and with tracks, on photographs with known cameras.

    OMP_NUM_THREADS=1 python benchmarks/real_scenes.py SCENE ... [--epochs 2]

SCENE is a folder with scene.json and images/; its frames of split `train` are calibrated with `compact` from the
pictures alone. ATE: RMSE of camera centres after Sim(3) over the largest distance of two true cameras; rotation: mean
relative rotation error over view pairs, degrees; focal: relative error of the first view's. No masks. With
`--tracks off` the network `compact` is not fine-tuned (docs/adaptation.md).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from lora3d_splat.console import CONSOLE
from lora3d_splat.metrics.pose import ate_rmse, relative_rotation_error_deg
from lora3d_splat.records import Calibration, CalibrationRow
from lora3d_splat.self_calibration import CalibrationConfig, calibrate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--network", default="compact")
    parser.add_argument("--epochs", type=int, default=None, help="of the fine-tuning")
    parser.add_argument("--tracks", choices=["auto", "off"], default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = CalibrationConfig(network=options.network, device="cpu", masks=False, tracks=options.tracks)
    if options.epochs is not None:
        config = replace(config, finetune=replace(config.finetune, epochs=options.epochs))
    table = Table("scene", "alignment", "views", "ATE", "rotation deg", "focal", "seconds", "remark")
    for scene in options.scenes:
        for row in scene_rows(scene, config):
            CONSOLE.print(*row)
            table.add_row(*row)
    CONSOLE.print(table)


def scene_rows(scene: Path, config: CalibrationConfig) -> list[tuple[str, ...]]:
    frames = [frame for frame in json.loads((scene / "scene.json").read_text())["frames"] if frame["split"] == "train"]
    began = time.perf_counter()
    calibration = calibrate([scene / frame["file"] for frame in frames], config)
    names = [view.path.name for view in calibration.views]
    known = {Path(frame["file"]).name: frame for frame in frames}
    true = torch.tensor([known[name]["c2w"] for name in names], dtype=torch.float64)
    focal = float(known[names[0]]["fx"] * known[names[0]]["fy"]) ** 0.5
    seconds = f"{time.perf_counter() - began:.0f}"
    return [row_errors(scene.name, calibration, row, true, focal, seconds) for row in calibration.rows]


def row_errors(
    scene: str, calibration: Calibration, row: CalibrationRow, true: torch.Tensor, focal: float, seconds: str
) -> tuple[str, ...]:
    remark = row.reason or ""
    if not row.T_world_camera:
        return (scene, row.name, "-", "-", "-", "-", seconds, remark)
    found = torch.tensor(row.T_world_camera, dtype=torch.float64).view(-1, 4, 4)
    # A view that was left out has the identity for a pose.
    placed = (found - torch.eye(4)).abs().amax(dim=(1, 2)) > 0
    placed = placed if int(placed.sum()) == row.registered else torch.ones_like(placed)
    centres = true[:, :3, 3]
    ate = ate_rmse(found[placed, :3, 3], centres[placed]) / float(torch.cdist(centres, centres).max())
    rotation = float(relative_rotation_error_deg(found[placed], true[placed]).mean())
    error = abs((row.focal or float("nan")) / focal - 1)
    views = f"{row.registered}/{len(calibration.views)}"
    return (scene, row.name, views, f"{ate:.1%}", f"{rotation:.1f}", f"{error:.1%}", seconds, remark)


if __name__ == "__main__":
    main()
