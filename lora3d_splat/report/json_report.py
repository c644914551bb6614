"""report.json: the three rows, the decision, the settings and the versions, for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import metadata
from pathlib import Path

from lora3d_splat.files import write_text
from lora3d_splat.records import Calibration

FORMAT = 1
PACKAGES = ("lora3d-splat", "torch", "numpy", "peft", "gsplat", "nerfstudio")


def report_content(calibration: Calibration, settings: object) -> dict[str, object]:
    """The report as plain values; numbers that do not exist are null, with the row's reason beside them."""
    scene = calibration.scene
    return {
        "format": FORMAT,
        "network": calibration.network,
        "licence": calibration.licence,
        "decision": calibration.decision,
        "adapter_kept": calibration.adapter is not None,
        "rows": [_plain(dataclasses.asdict(row)) for row in calibration.rows],
        "views": [
            {"file": view.file, "width": view.width, "height": view.height, "registered": registered, "reason": reason}
            for view, registered, reason in zip(calibration.views, scene.registered, scene.reasons, strict=True)
        ],
        "left_out": [{"file": file, "reason": reason} for file, reason in calibration.left_out],
        "seconds": _plain(calibration.seconds),
        "settings": _plain(dataclasses.asdict(settings)) if dataclasses.is_dataclass(settings) else None,  # type: ignore[call-overload]
        "versions": installed_versions(),
    }


def write_json_report(path: Path, calibration: Calibration, settings: object) -> None:
    """Write `report_content`; strict JSON, so no NaN."""
    write_text(path, json.dumps(report_content(calibration, settings), indent=2, allow_nan=False) + "\n")


def installed_versions() -> dict[str, str | None]:
    """Versions of the packages that a result depends on; null for those that are absent."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
