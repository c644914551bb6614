"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora3d_splat.files import write_text
from lora3d_splat.report.charts import Panel, Series, spanning, svg_file

CURVES = (
    ("Losses of the training pairs", "loss", (("point_loss", "points"), ("match_loss", "matches"))),
    ("Point error on held-out scenes", "share of the distance", (("e1", "reference view"), ("e2", "other view"))),
    ("Pose error on held-out scenes", "degrees", (("rotation", "rotation"), ("direction", "direction of translation"))),
    ("On held-out scenes", "", (("confidence_rank", "rank correlation of confidence"), ("matches", "matches found"))),
)
"""title, label of the vertical axis, and the columns of the history with their names"""


def write_curves(history: Sequence[Mapping[str, float]], path: Path) -> Path:
    """An SVG of losses and held-out accuracy over the pairs seen; columns that the history lacks are left out."""
    pairs = np.array([row["pairs_seen"] for row in history], float) / 1000
    panels = []
    for title, unit, columns in CURVES:
        series = [
            Series(name, f"b{k}", pairs, np.array([row.get(column, np.nan) for row in history], float), dots=True)
            for k, (column, name) in enumerate(columns)
            if any(np.isfinite(row.get(column, np.nan)) for row in history)
        ]
        shown = [_finite(each) for each in series]
        if shown:
            across = spanning("thousand pairs seen", [each.x for each in shown], from_zero=True)
            panels.append(Panel(title, shown, across, spanning(unit, [each.y for each in shown])))
    write_text(path, svg_file(panels))
    return path


def _finite(each: Series) -> Series:
    """Without the rows that lack the column."""
    there = np.isfinite(each.y)
    return Series(each.name, each.kind, each.x[there], each.y[there], each.dots, each.line)
