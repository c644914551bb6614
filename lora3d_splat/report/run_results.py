"""What a training left in its run folder, as far as it got: scores, the curve of PSNR, comparison pictures."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SCORES_FILE = "metrics.json"
CONFIG_FILE = "config.yml"
CALIBRATION_FOLDER = "calibration"
CURVE_FILE = "training.csv"
CURVE_COLUMNS = ("step", "seconds", "psnr", "heldout_psnr")
COMPARISONS_FOLDER = "comparisons"
COMPARISON_PARTS = ("photograph", "render", "render after pose alignment", "error")
"""What a comparison picture shows, side by side in equal widths."""


@dataclass(frozen=True)
class TrainingCurve:
    """PSNR in dB over the steps of a training."""

    step: np.ndarray
    """(N,) of every training step"""
    psnr: np.ndarray
    """(N,) of the picture of that step"""
    heldout_step: np.ndarray
    """(M,) the steps after which held-out views were looked at"""
    heldout_psnr: np.ndarray
    """(M,) their mean, from the poses as registered"""


@dataclass(frozen=True)
class ScoredView:
    """One scored view: its entry of the scores file and its comparison picture."""

    file: str
    entry: dict[str, Any]
    parts: tuple[np.ndarray, ...] | None
    """(H, W, 3) uint8 each, as COMPARISON_PARTS names them; None where there is no picture"""


@dataclass(frozen=True)
class RunResults:
    """A run folder, read; what is not there is None with a sentence in `missing`."""

    folder: Path
    scores: dict[str, Any] | None
    curve: TrainingCurve | None
    views: tuple[ScoredView, ...]
    missing: tuple[str, ...]


def read_run(folder: Path) -> RunResults:
    """Read what is there; a run that crashed has less."""
    scores, curve = _scores(folder / SCORES_FILE), read_curve(folder / CURVE_FILE)
    missing = []
    if scores is None:
        missing.append("The held-out views were not scored: the run has not reached its end.")
    if curve is None:
        missing.append("There is no curve of the training: no step was finished.")
    views = tuple(
        ScoredView(entry["file"], entry, _parts(folder / comparison_path(entry["file"])))
        for entry in (scores or {}).get("views", ())
    )
    return RunResults(folder, scores, curve, views, tuple(missing))


def comparison_path(file: str) -> Path:
    """Where the comparison picture of a view lies in a run folder."""
    return Path(COMPARISONS_FOLDER) / f"{Path(file).with_suffix('').as_posix().replace('/', '_')}.png"


def read_curve(path: Path) -> TrainingCurve | None:
    """The curve as far as it was written; a last line that was cut short does not count."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("step") and None not in row.values()]
    trained = [(int(row["step"]), float(row["psnr"])) for row in rows if row["psnr"]]
    heldout = [(int(row["step"]), float(row["heldout_psnr"])) for row in rows if row["heldout_psnr"]]
    if not trained:
        return None
    first, second = (np.array(pairs, dtype=np.float64).reshape(-1, 2) for pairs in (trained, heldout))
    return TrainingCurve(first[:, 0].astype(int), first[:, 1], second[:, 0].astype(int), second[:, 1])


def _scores(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _parts(path: Path) -> tuple[np.ndarray, ...] | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        whole = np.asarray(picture.convert("RGB"))
    return tuple(np.ascontiguousarray(part) for part in np.split(whole, len(COMPARISON_PARTS), axis=1))
