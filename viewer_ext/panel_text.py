"""The panel's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora3d_splat.plugin.training_log import TrainingLog
from lora3d_splat.records import Calibration, CalibrationRow


def calibration_text(calibration: Calibration) -> str:
    """Markdown: network, decision, the three rows, what was left out."""
    lines = [
        f"network `{calibration.network}` ({calibration.licence})",
        "",
        f"{sum(calibration.scene.registered)} of {len(calibration.views)} views registered; {calibration.decision}",
        "",
        *(_row(row) for row in calibration.rows),
        *(f"- left out: {file}: {reason}" for file, reason in calibration.left_out),
        "",
        f"{sum(calibration.seconds.values()):.0f} s in all",
    ]
    return "\n".join(lines)


def count_text(shown: int, total: int, pixels: int) -> str:
    """How many points are shown of how many, and that they were thinned."""
    thinned = f", thinned from {pixels:,} pixels to what a browser carries" if total < pixels else ""
    return f"{shown:,} of {total:,} points{thinned}"


def psnr_text(log: TrainingLog, finished_scores: Callable[[], dict[str, Any] | None]) -> str:
    """The PSNR of the training picture and of the last look at the held-out views; of a finished run its scores."""
    if log.step < 0 and log.heldout_step < 0:
        scores = finished_scores()
        if scores is None or scores["mean"]["psnr"] is None:
            return "PSNR: no step trained yet"
        raw, aligned = scores["mean"]["psnr"], scores["mean_aligned"]["psnr"]
        return f"PSNR of the {scores['protocol']['scored']}: {raw:.2f} dB, {aligned:.2f} dB after pose alignment"
    parts = []
    if log.step >= 0:
        parts.append(f"training picture **{log.psnr:.2f} dB** (step {log.step})")
    if log.heldout_step >= 0:
        parts.append(f"held-out views **{log.heldout_psnr:.2f} dB** (step {log.heldout_step})")
    return "PSNR: " + ", ".join(parts)


def _row(row: CalibrationRow) -> str:
    if row.reason is not None and row.residual is None:
        return f"- **{row.name}**: not computed, {row.reason}"
    focal = "unknown" if row.focal is None else f"{row.focal:.0f} px"
    residual = "unknown" if row.residual is None else f"{100 * row.residual:.2f} % of the depth"
    return f"- **{row.name}**: residual {residual}, focal {focal}, {row.registered} views, {row.seconds:.0f} s"
