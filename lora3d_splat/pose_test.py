"""Does joint optimisation improve the cameras? The test nerfstudio's maintainers ask for.

Train on all photographs with the cameras optimised, export the cameras, and train again from scratch with these cameras
held fixed. Held-out photographs rendered from the exported cameras must look better than from the cameras before the
optimisation, held fixed likewise: nothing is aligned when it is scored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lora3d_splat.console import CONSOLE, note
from lora3d_splat.demo import DATAPARSER, train
from lora3d_splat.files import ensure_writable_folder, write_text

FIXED = ("--pipeline.model.camera-optimizer.mode", "off")
RESULT_FILE = "pose_test.json"


@dataclass(frozen=True)
class FixedCameraScore:
    """A training with fixed cameras."""

    name: str
    cameras: Path
    psnr: float
    """mean over the held-out views, dB"""
    ssim: float


def run_pose_test(photos: Path, output: Path, iterations: int | None, long_side: int | None) -> None:
    """Three trainings; leaves pose_test.json and the runs in `output`."""
    ensure_writable_folder(output, "output folder")
    steps = [] if iterations is None else ["--max-num-iterations", str(iterations)]
    data = [DATAPARSER, *([] if long_side is None else ["--long-side", str(long_side)])]
    joint = train(photos, output / "joint", [*steps, *data, "--eval-mode", "all"])
    cameras = {"before": joint / "calibration" / "scene.json", "optimised": joint / "cameras.json"}
    scores = []
    for name, path in cameras.items():
        run = train(photos, output / f"fixed-{name}", [*steps, *FIXED, *data, "--cameras", str(path)])
        mean = json.loads((run / "metrics.json").read_text())["mean"]
        scores.append(FixedCameraScore(name, path, mean["psnr"], mean["ssim"]))
    write_text(output / RESULT_FILE, json.dumps(_document(scores), indent=2) + "\n")
    _print(scores)
    note(str(output / RESULT_FILE))


def _document(scores: list[FixedCameraScore]) -> dict[str, object]:
    before, optimised = scores
    return {
        "protocol": "cameras optimised on all photographs, then held fixed for a training from scratch; held-out views "
        "scored raw",
        "psnr_gain": optimised.psnr - before.psnr,
        "ssim_gain": optimised.ssim - before.ssim,
        "runs": [{**vars(score), "cameras": str(score.cameras)} for score in scores],
    }


def _print(scores: list[FixedCameraScore]) -> None:
    table = Table(title="trained with fixed cameras, held-out views raw")
    for heading in ("cameras", "psnr", "ssim"):
        table.add_column(heading, justify="left" if heading == "cameras" else "right")
    for score in scores:
        table.add_row(score.name, f"{score.psnr:.2f}", f"{score.ssim:.4f}")
    CONSOLE.print(table)
