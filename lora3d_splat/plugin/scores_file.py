"""metrics.json and the table at the end of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from lora3d_splat.console import CONSOLE
from lora3d_splat.files import write_text
from lora3d_splat.memory import peak_memory_bytes
from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig
from lora3d_splat.metrics.image import NAMES, Value
from lora3d_splat.plugin.dataparser import PlacedScene
from lora3d_splat.plugin.evaluation import ViewScore, mean_scores
from lora3d_splat.plugin.protocols import MEAN, MEAN_ALIGNED, MEAN_HALF, Protocol

DEFINITIONS = {
    "psnr": "dB, peak 1, mean over pixels and channels, whole frame",
    "ssim": "Gaussian window 11, sigma 1.5, data range 1",
    "lpips_alex": "AlexNet backbone, inputs scaled to [-1, 1]",
    "lpips_vgg": "VGG-16 backbone, inputs scaled to [-1, 1]",
}


def scores_document(
    scene: PlacedScene,
    scores: Sequence[ViewScore],
    alignment: PoseAlignmentConfig,
    protocol: Protocol,
    device_type: str,
    facts: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What metrics.json holds; a value that could not be computed is None with its reason beside it."""
    views = scene.heldout or scene.train
    return {
        "protocol": {
            "name": protocol.name,
            "definition": protocol.definition,
            "scored": "held-out views" if scene.heldout else "training views",
            "reason": scene.no_heldout,
            "train_views": [view.camera.file for view in scene.train],
            "network": scene.calibration.network,
            "licence": scene.calibration.licence,
            "adapter": scene.calibration.decision,
            "definitions": DEFINITIONS,
            "mean": MEAN,
            "mean_aligned": MEAN_ALIGNED,
            "mean_half_image": MEAN_HALF,
            "pose_alignment": asdict(alignment.resolved(device_type)),
            "picture_size": sorted({(view.photograph.width, view.photograph.height) for view in views}),
            "device": device_type,
            **facts,
        },
        "mean": _plain(mean_scores([score.raw for score in scores])),
        "mean_aligned": _plain(mean_scores([score.aligned for score in scores])),
        "mean_half_image": _plain(mean_scores([score.half for score in scores])),
        "views": [
            *(_view(view.camera.file, score) for view, score in zip(views, scores, strict=True)),
            *(_missing(file, reason) for file, reason in scene.left_out),
        ],
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    }


def write_scores(path: Path, document: dict[str, Any]) -> None:
    """Write metrics.json; strict JSON, no NaN."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_scores(document: dict[str, Any]) -> None:
    """The table that ends a training."""
    table = Table(
        title=f"{document['protocol']['scored']}: raw -> aligned -> aligned on the other half", title_style="bold"
    )
    table.add_column("view")
    for name in NAMES:
        table.add_column(name, justify="right")
    table.add_column("camera moved", justify="right")
    for view in document["views"]:
        if view["raw"] is None:
            table.add_row(view["file"], *["-"] * len(NAMES), view["reason"], style="yellow")
            continue
        moved = f"{view['pose_change']['rotation_deg']:.2f} deg"
        table.add_row(view["file"], *_cells(view["raw"], view["aligned"], view["half_image"]), moved)
    table.add_section()
    table.add_row(
        "mean", *_cells(document["mean"], document["mean_aligned"], document["mean_half_image"]), "", style="bold"
    )
    CONSOLE.print(table)
    for name in NAMES:
        if reason := document["mean"].get(f"{name}_reason"):
            CONSOLE.print(f"{name}: not computed, {reason}", highlight=False, markup=False)


def peak_memory() -> dict[str, Any]:
    """Largest resident size of this process, and of CUDA memory where there is a device."""
    peak = peak_memory_bytes()
    return {**peak} if "cuda" in peak else {**peak, "cuda": None, "cuda_reason": "no CUDA device"}


def _plain(values: dict[str, Value]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in values.items():
        plain[name] = value.number
        if value.number is None:
            plain[f"{name}_reason"] = value.reason
    return plain


def _view(file: str, score: ViewScore) -> dict[str, Any]:
    pose = score.pose
    return {
        "file": file,
        "raw": _plain(score.raw),
        "aligned": _plain(score.aligned),
        "half_image": _plain(score.half),
        "pose_change": {
            "rotation_deg": pose.rotation_deg,
            "translation_normalised": pose.translation,
            "l1_before": pose.loss_before,
            "l1_after": pose.loss_after,
            "steps": pose.steps,
        },
    }


def _missing(file: str, reason: str) -> dict[str, Any]:
    return {"file": file, "raw": None, "aligned": None, "half_image": None, "reason": reason}


def _cells(*scores: dict[str, Any]) -> list[str]:
    def one(name: str) -> str:
        digits = 2 if name == "psnr" else 3
        numbers = [values[name] for values in scores]
        return "-" if None in numbers else " -> ".join(f"{number:.{digits}f}" for number in numbers)

    return [one(name) for name in NAMES]
