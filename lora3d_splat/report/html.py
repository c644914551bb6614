"""report.html: one file with pictures and numbers that opens anywhere."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from lora3d_splat.files import write_text
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import transform_points
from lora3d_splat.records import Calibration, CalibrationRow
from lora3d_splat.report.json_report import report_content
from lora3d_splat.report.pictures import data_uri, false_colours
from lora3d_splat.report.plan import camera_plan
from lora3d_splat.report.table import HEADINGS, row_texts

PLAN_POINTS = 600


def write_html_report(path: Path, calibration: Calibration, settings: object) -> None:
    """Write the report with everything it shows inside the file."""
    template = Template(resources.files("lora3d_splat.report").joinpath("template.html").read_text(encoding="utf-8"))
    content = report_content(calibration, settings)
    write_text(
        path,
        template.substitute(
            title="Self-calibration report",
            subtitle=escape(_subtitle(calibration)),
            decision=escape(calibration.decision),
            headings="".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS),
            rows="".join(_row(row) for row in calibration.rows),
            left_out=_left_out(calibration),
            plan=_plan(calibration),
            views="".join(_view(calibration, index) for index in range(len(calibration.views))),
            seconds="".join(f"<tr><td>{escape(k)}</td><td>{v:.1f} s</td></tr>" for k, v in calibration.seconds.items()),
            settings=escape(json.dumps({key: content[key] for key in ("settings", "versions")}, indent=2)),
        ),
    )


def _subtitle(calibration: Calibration) -> str:
    registered, count = sum(calibration.scene.registered), len(calibration.views)
    return f"{registered} of {count} photographs registered; network {calibration.network} ({calibration.licence})"


def _row(row: CalibrationRow) -> str:
    cells = "".join(f"<td>{escape(text)}</td>" for text in row_texts(row))
    reason = f'<tr><td class="soft" colspan="{len(HEADINGS)}">{escape(row.reason)}</td></tr>' if row.reason else ""
    return f"<tr>{cells}</tr>{reason}"


def _left_out(calibration: Calibration) -> str:
    if not calibration.left_out:
        return ""
    items = "".join(f"<li>{escape(file)}: {escape(reason)}</li>" for file, reason in calibration.left_out)
    return f"<h2>Left out</h2><ul>{items}</ul>"


def _view(calibration: Calibration, index: int) -> str:
    """Photograph, depth, the network's confidence and the calibrated one, the latter two on one scale."""
    view, scene, confidence = calibration.views[index], calibration.scene, calibration.confidence
    depth = scene.depth[index].numpy()
    raw = confidence.view_raw_confidence[index].numpy()
    high = float(np.percentile(raw, 98)) if raw.size else 1.0
    pictures = (
        (view.file, view.image),
        ("depth", false_colours(np.where(depth > 0, 1 / np.maximum(depth, 1e-9), np.nan))),
        ("confidence", false_colours(raw, 0.0, high)),
        ("calibrated confidence", false_colours(confidence.view_confidence[index].numpy(), 0.0, high)),
    )
    return "".join(
        f'<figure><img alt="{escape(name)}" src="{data_uri(np.ascontiguousarray(rgb))}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, rgb in pictures
    )


def _plan(calibration: Calibration) -> str:
    scene = calibration.scene
    placed = [index for index, registered in enumerate(scene.registered) if registered]
    names = [calibration.views[index].file for index in placed]
    return camera_plan(scene.T_world_camera[placed].numpy(), names, _some_points(calibration, placed))


def _some_points(calibration: Calibration, placed: list[int]) -> np.ndarray:
    """(N, 3) world points on a coarse grid of the registered views."""
    scene, clouds = calibration.scene, []
    for index in placed:
        camera = unproject(scene.depth[index].double(), scene.focal[index], scene.principal_point[index])
        step = max(1, int((camera.shape[0] * camera.shape[1] * len(placed) / PLAN_POINTS) ** 0.5))
        coarse = camera[step // 2 :: step, step // 2 :: step].reshape(-1, 3)
        clouds.append(transform_points(scene.T_world_camera[index], coarse[coarse[:, 2] > 0]).numpy())
    return np.concatenate(clouds)
