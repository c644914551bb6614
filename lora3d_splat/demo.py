"""The demo: the example scene through the real commands, scored against its known cameras."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from lora3d_splat.console import CONSOLE, note
from lora3d_splat.errors import InputError, Lora3DError
from lora3d_splat.export.scene_json import read_scene_json
from lora3d_splat.files import atomic_file, atomic_folder, ensure_writable_folder, write_text
from lora3d_splat.metrics.pose import ate_rmse, focal_error

EXAMPLE = Path(__file__).parents[1] / "examples" / "tabletop"
METHOD = "lora3d-splat"
DATAPARSER = "lora3d-data"
SCORES = ("psnr", "ssim", "lpips_alex", "lpips_vgg")


@dataclass(frozen=True)
class CameraScore:
    """Cameras against known ones, after a Sim(3) fit of the centres."""

    cameras: int
    ate_rmse: float
    """in the units of the known cameras"""
    extent: float
    """diameter of the known camera centres, same units"""
    focal_error: float
    """mean of |fx - true| / true"""


def run_demo(
    output: Path, scene: Path | None = None, iterations: int | None = None, long_side: int | None = None
) -> None:
    """Train, evaluate and export; leaves metrics.json, splat.ply, comparisons/ and cameras.json in `output`.

    Raises InputError where the example is not there, Lora3DError where training fails.
    """
    scene = scene or EXAMPLE
    if not (scene / "images").is_dir() or not (scene / "scene.json").is_file():
        raise InputError(
            found=f"no images/ and scene.json in {scene}",
            accepted="a scene with known cameras, such as examples/tabletop of the project's repository",
            remedy="run the demo in a clone of the repository, or name a scene with --scene",
        )
    ensure_writable_folder(output, "output folder")
    start = time.perf_counter()
    run = train(scene / "images", output / "run", training_options(iterations, long_side))
    collect(run, output)
    score = score_cameras(output / "cameras.json", scene / "scene.json")
    write_text(output / "cameras_score.json", json.dumps(vars(score), indent=2) + "\n")
    print_table(output, score)
    note(f"{output} written in {time.perf_counter() - start:.0f} s")


def training_options(iterations: int | None, long_side: int | None) -> list[str]:
    """Command-line options of `ns-train`; those of the dataparser come last, after its name."""
    steps = [] if iterations is None else ["--max-num-iterations", str(iterations)]
    return steps if long_side is None else [*steps, DATAPARSER, "--long-side", str(long_side)]


def train(images: Path, runs: Path, options: Sequence[str] = ()) -> Path:
    """Run `ns-train lora3d-splat` as a user would, with further options, and return its run folder."""
    places = ["--data", str(images), "--output-dir", str(runs), "--vis", "tensorboard"]
    command = [*_ns_train(), METHOD, *places, *options]
    note(" ".join(command))
    before = set(_run_folders(runs))
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise Lora3DError(
            f"a training that ended with status {status}", "0", "see its last lines above, and `ns-lora3d doctor`"
        )
    return max(set(_run_folders(runs)) - before, key=lambda path: path.stat().st_mtime)


def collect(run: Path, output: Path) -> None:
    """Copy what a run wrote that a user wants to look at."""
    for name in ("metrics.json", "splat.ply", "cameras.json"):
        if not (run / name).is_file():
            raise Lora3DError(f"a run without {name} ({run})", "a run that was evaluated", "run the demo again")
        with atomic_file(output / name) as temporary:
            shutil.copyfile(run / name, temporary)
    with atomic_folder(output / "comparisons") as temporary:
        shutil.copytree(run / "comparisons", temporary, dirs_exist_ok=True)


def score_cameras(estimated: Path, known: Path) -> CameraScore:
    """Compare the registered cameras of a scene.json with the frames of a scene with known cameras, by file name."""
    truth = {Path(frame["file"]).name: frame for frame in json.loads(known.read_text())["frames"]}
    _, cameras = read_scene_json(estimated)
    found = [camera for camera in cameras if camera.registered and Path(camera.file).name in truth]
    frames = [truth[Path(camera.file).name] for camera in found]
    centres = torch.tensor([camera.T_world_camera[:3, 3].tolist() for camera in found], dtype=torch.float64)
    true_centres = torch.tensor([[row[3] for row in frame["c2w"][:3]] for frame in frames], dtype=torch.float64)
    error = ate_rmse(centres, true_centres)
    focals = torch.tensor([[camera.fx, frame["fx"]] for camera, frame in zip(found, frames, strict=True)])
    extent = float(torch.cdist(true_centres, true_centres).max())
    return CameraScore(len(found), error, extent, focal_error(focals[:, 0], focals[:, 1])[0])


def print_table(output: Path, score: CameraScore) -> None:
    """The held-out scores raw and after pose alignment, and the cameras' error."""
    metrics = json.loads((output / "metrics.json").read_text())
    table = Table(title=f"held-out views of {output}")
    for heading in ("", *SCORES):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, key in (("as registered", "mean"), ("poses aligned", "mean_aligned")):
        values = metrics.get(key) or {}
        table.add_row(name, *(_text(values.get(score_name)) for score_name in SCORES))
    CONSOLE.print(table)
    note(
        f"cameras: ATE {score.ate_rmse:.4f} (RMSE after Sim(3), {score.ate_rmse / score.extent:.2%} of the path's "
        f"extent), focal error {score.focal_error:.2%}, {score.cameras} cameras"
    )


def _ns_train() -> list[str]:
    """nerfstudio's command of this very environment."""
    script = Path(sys.executable).parent / "ns-train"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "nerfstudio.scripts.train"]


def _run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in runs.rglob("config.yml")]


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"
