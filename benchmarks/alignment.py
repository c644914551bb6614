"""Accuracy, calibration and cost of the alignment on ray-cast scenes with disturbed predictions.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py                          # medians over ten seeds
    OMP_NUM_THREADS=1 python benchmarks/alignment.py --cases robust --views 4 8 12 24 48 --seeds 1      # cost
    OMP_NUM_THREADS=1 python benchmarks/alignment.py --cases robust --views 12 --seeds 1 --size 384 512
    OMP_NUM_THREADS=1 python benchmarks/alignment.py --hard --views 4 8 12                  # worse predictions
    OMP_NUM_THREADS=1 python benchmarks/alignment.py --cases robust --layouts orbit walk line room

Centre: RMSE after Sim(3) over the largest distance of two cameras; second: the same of every second view, the half
whose poses are not given where poses are known; rotation: mean over view pairs, degrees; focal:
largest relative error; raw, calibrated: Spearman correlation of confidence with minus the true error of the predicted
points; lost: scenes in which a view was left out or nothing was found. `Disturbance` in tests/disturbed_predictions.py
says how wrong the predictions are, tests/camera_layouts.py where the cameras stand.
"""

from __future__ import annotations

import argparse
import itertools
import math
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from camera_layouts import LAYOUTS
from disturbed_predictions import (
    EXACT,
    HARDER,
    Disturbance,
    TrueScene,
    camera_errors,
    predict_disturbed,
    true_errors,
    true_scene,
)
from rich.table import Table

from lora3d_splat.alignment import AlignmentConfig, CameraPriors, align
from lora3d_splat.alignment.priors import no_priors
from lora3d_splat.console import CONSOLE
from lora3d_splat.errors import AlignmentError
from lora3d_splat.metrics.geometry import spearman
from lora3d_splat.records import CalibratedConfidence, PairPrediction

USUAL = Disturbance()
ROBUST, PLAIN = AlignmentConfig(), AlignmentConfig(robust="none")


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    disturbance: Disturbance = USUAL
    config: AlignmentConfig = ROBUST
    known_focal: bool = False
    known_poses: bool = False
    """of every other view"""


CASES = {
    "exact": Case(EXACT),
    "robust": Case(),
    "no outliers": Case(replace(USUAL, outliers=0.0)),
    "30 % outliers": Case(replace(USUAL, outliers=0.3)),
    "a nonsense pair": Case(replace(USUAL, nonsense=1)),
    "known focal": Case(known_focal=True),
    "known poses": Case(known_poses=True),
    "huber": Case(config=replace(ROBUST, robust="huber")),
    "plain": Case(config=PLAIN),
    "reprojection": Case(config=replace(ROBUST, residual="reprojection")),
}
HARD = {
    "halves apart": Case(HARDER),
    "flying 3 px": Case(replace(USUAL, flying=3, flying_share=1.0)),
    "blocks": Case(replace(USUAL, outlier_kind="blocks")),
    "blocks 30 %": Case(replace(USUAL, outlier_kind="blocks", outliers=0.3)),
    "agreeing": Case(replace(USUAL, outlier_kind="agreeing")),
    "agreeing 30 %": Case(replace(USUAL, outlier_kind="agreeing", outliers=0.3)),
    "units x 3": Case(replace(USUAL, unit_spread=3.0)),
    "focal 2 %": Case(replace(USUAL, focal=0.02)),
    "distortion 5 %": Case(replace(USUAL, distortion=0.05)),
    "all of it": Case(replace(HARDER, flying=3, outlier_kind="blocks", unit_spread=3.0, focal=0.02, distortion=0.05)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=[*CASES, *HARD])
    parser.add_argument("--hard", action="store_true", help="the cases of worse predictions")
    parser.add_argument("--layouts", nargs="+", default=["arc"], choices=list(LAYOUTS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=[120, 160], help="height and width")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = CASES | HARD
    chosen = list(HARD) if options.hard else options.cases
    measures = ("lost", "centre", "worst", "second", "rotation deg", "focal", "raw", "calibrated")
    table = Table("layout", "views", "case", *measures, "CPU s", "seconds")
    for layout, count in itertools.product(options.layouts, options.views):
        found: dict[str, list[list[float]]] = {name: [] for name in chosen}
        for seed in range(options.seeds):
            scene = true_scene(seed, count, (options.size[0], options.size[1]), layout)
            for name in chosen:
                found[name].append(measure(scene, seed, cases[name]))
        for name, rows in found.items():
            table.add_row(layout, str(count), name, *summary(rows))
            CONSOLE.print(layout, count, name, *summary(rows))
    CONSOLE.print(table)
    CONSOLE.print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, predictions included"
    )


def measure(scene: TrueScene, seed: int, case: Case) -> list[float]:
    """Lost, both centres, rotation, focal, raw and calibrated correlation, processor and wall seconds."""
    predictions = predict_disturbed(scene, seed, case.disturbance)
    began, worked = time.perf_counter(), time.process_time()
    try:
        aligned, confidence = align(predictions, case.config, views=scene.views, priors=priors_of(scene, case))
    except AlignmentError as error:
        CONSOLE.print(f"seed {seed}: {error}")
        return [1.0, *[math.inf] * 4, 0.0, 0.0, 0.0, 0.0]
    cost = [time.process_time() - worked, time.perf_counter() - began]
    if not all(aligned.registered):
        CONSOLE.print(f"seed {seed}: {aligned.reasons}")
        return [1.0, *[math.inf] * 4, 0.0, 0.0, *cost]
    return [0.0, *camera_errors(scene, aligned).values(), *correlations(scene, predictions, confidence), *cost]


def priors_of(scene: TrueScene, case: Case) -> CameraPriors | None:
    if not case.known_focal and not case.known_poses:
        return None
    priors = no_priors(scene.views)
    if case.known_focal:
        priors = replace(priors, focal=torch.from_numpy(scene.focal))
    if case.known_poses:
        poses = torch.from_numpy(scene.T_world_camera).clone()
        poses[1::2] = torch.nan
        priors = replace(priors, T_world_camera=poses)
    return priors


def correlations(
    scene: TrueScene, predictions: tuple[PairPrediction, ...], confidence: CalibratedConfidence, stride: int = 17
) -> tuple[float, float]:
    error = torch.cat([side.flatten()[::stride] for item in predictions for side in true_errors(scene, item)])
    raw = [side for item in predictions for side in (item.confidence_reference, item.confidence_other)]
    calibrated = [side for sides in confidence.pair_weights for side in sides]
    return tuple(  # type: ignore[return-value]
        spearman(torch.cat([side.flatten()[::stride] for side in sides]), -error) for sides in (raw, calibrated)
    )


def summary(rows: list[list[float]]) -> list[str]:
    lost, *middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    lost, worst = sum(row[0] for row in rows), max(row[1] for row in rows)
    centre, worst = (f"{value:.4f}" if value > 5e-5 else f"{value:.0e}" for value in (middle[0], worst))
    shown = [f"{lost:.0f}", centre, worst, f"{middle[1]:.4f}", f"{middle[2]:.3f}", f"{middle[3]:.4f}"]
    return [*shown, *(f"{value:.2f}" for value in middle[4:])]


if __name__ == "__main__":
    main()
