"""report.json: everything that report.html shows, for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from lora3d_splat.files import write_text
from lora3d_splat.passes import RESIDUAL_EDGES
from lora3d_splat.records import Calibration, CalibrationPass
from lora3d_splat.report.licences import packages
from lora3d_splat.report.run_results import RunResults, TrainingCurve

FORMAT = 2


def report_content(calibration: Calibration, settings: object, run: RunResults | None = None) -> dict[str, Any]:
    """The report as plain values; numbers that do not exist are null, with a reason beside them.

    `settings` is a dataclass, or what an earlier report held of it.
    """
    scene, scores = calibration.scene, None if run is None else run.scores
    return {
        "format": FORMAT,
        "network": calibration.network,
        "licence": calibration.licence,
        "decision": calibration.decision,
        "adapter_kept": calibration.adapter is not None,
        "rows": [_plain(dataclasses.asdict(row)) for row in calibration.rows],
        "passes": [_pass(calibration, each) for each in calibration.passes],
        "finetune_losses": _plain(calibration.finetune_losses),
        "views": [
            {"file": view.file, "width": view.width, "height": view.height, "registered": registered, "reason": reason}
            for view, registered, reason in zip(calibration.views, scene.registered, scene.reasons, strict=True)
        ],
        "left_out": [{"file": file, "reason": reason} for file, reason in calibration.left_out],
        "training": None if run is None or run.curve is None else _curve(run.curve),
        "scores": scores,
        "missing": [] if run is None else list(run.missing),
        "seconds": _plain(calibration.seconds if scores is None else scores["seconds"]),
        "peak_memory_bytes": _memory(calibration, scores),
        "settings": settings_content(settings),
        "packages": {each.name: {"version": each.version, "licence": each.licence} for each in packages()},
    }


def write_json_report(path: Path, calibration: Calibration, settings: object, run: RunResults | None = None) -> None:
    """Write `report_content`; strict JSON, so no NaN."""
    write_text(path, json.dumps(report_content(calibration, settings, run), indent=2, allow_nan=False) + "\n")


def settings_content(settings: object) -> Any:
    """A settings dataclass as plain values; plain values stay what they are."""
    return _plain(dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings)  # type: ignore[arg-type]


def stored_settings(path: Path) -> Any:
    """The settings that a report.json holds, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")).get("settings") if path.is_file() else None


def _pass(calibration: Calibration, each: CalibrationPass) -> dict[str, Any]:
    names, found = [view.file for view in calibration.views], each.reliability
    return {
        "name": each.name,
        "pairs": [
            {"reference": names[pair.reference], "other": names[pair.other], "residual": _plain(float(residual))}
            for pair, residual in zip(each.pairs, each.pair_residual, strict=True)
        ],
        "residual_edges": RESIDUAL_EDGES.tolist(),
        "residual_share": _plain(each.residual_share.tolist()),
        "reliability": None
        if found is None
        else {
            "judged_by_unseen_pairs": found.unseen,
            "confidence": _plain(found.confidence.tolist()),
            "confidence_error": _plain(found.confidence_error.tolist()),
            "calibrated": _plain(found.calibrated.tolist()),
            "calibrated_error": _plain(found.calibrated_error.tolist()),
        },
    }


def _curve(curve: TrainingCurve) -> dict[str, Any]:
    return {field.name: _plain(getattr(curve, field.name).tolist()) for field in dataclasses.fields(curve)}


def _memory(calibration: Calibration, scores: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Peaks by what was done and kind of device."""
    found = {"calibration": dict(calibration.peak_memory_bytes)}
    if scores is not None:
        found["training and scoring"] = {
            kind: value for kind, value in scores["peak_memory_bytes"].items() if not kind.endswith("_reason")
        }
    return found


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
