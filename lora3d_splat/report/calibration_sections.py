"""The report's sections on the calibration: rows, places, photographs with their maps, residuals."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lora3d_splat.alignment.judge import JUDGE_MU
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import transform_points
from lora3d_splat.passes import RESIDUAL_EDGES
from lora3d_splat.records import Calibration, CalibrationPass, CalibrationRow, Reliability
from lora3d_splat.report.charts import Axis, Series, bar_chart, line_chart, spanning, step_chart
from lora3d_splat.report.pictures import data_uri, false_colours
from lora3d_splat.report.plan import camera_plan
from lora3d_splat.report.table import HEADINGS, row_texts

PLAN_POINTS = 2_000
KINDS = ("plain", "robust", "adapted", "tracked")
"""Colours of the rows, in their order."""
MAP_SIDE = 300
"""Long side of the maps of a dozen views; smaller for more."""


class Scales(NamedTuple):
    """The numbers at which false colours are brightest."""

    confidence: float
    calibrated: float
    residual: float


def three_rows(calibration: Calibration) -> str:
    """The rows as a table and as a chart."""
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    kept = kept_row(calibration)
    rows = "".join(_row(row, row is kept) for row in calibration.rows)
    numbers = [number for row in calibration.rows for number in (row.residual, row.heldout_residual) if number]
    chart = ""
    if numbers:
        series = (
            ("all pairs", [row.residual for row in calibration.rows]),
            ("pairs left out of the fine-tuning", [row.heldout_residual for row in calibration.rows]),
        )
        names = [row.name for row in calibration.rows]
        axis = spanning("share of the depth", [np.array(numbers)], from_zero=True, percent=True)
        chart = bar_chart("Residual of each row (lower is better)", names, series, axis)
    return (
        "<h2>Ways to align</h2>"
        "<p>The residual says how far the network's pair predictions lie from the common scene, in percent of the "
        f"median depth; however far off, a pixel counts at most {100 * JUDGE_MU:.0f} %. Left-out pairs "
        "took part neither in the fine-tuning nor in the alignment that they are judged "
        "against; they decide. The row in bold was used. Cameras from tracks follow the features of the photographs, "
        "not the network, so their residual may be larger.</p>"
        f'<table class="stack"><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>'
        f'<div class="columns">{chart}{_losses(calibration)}</div>'
    )


def kept_row(calibration: Calibration) -> CalibrationRow | None:
    """The row whose scene is the result: tracks where there are any, else LoRA where it was kept, else robust."""
    rows = calibration.rows
    if len(rows) > 3 and rows[3].residual is not None:
        return rows[3]
    position = 2 if calibration.adapter is not None else 1
    return rows[position] if len(rows) > position else None


def kept_pass(calibration: Calibration) -> CalibrationPass | None:
    """The pass of that row."""
    row = kept_row(calibration)
    return next((each for each in calibration.passes if row is not None and each.name == row.name), None)


def kind_of(calibration: Calibration, name: str) -> str:
    """The colour of a row by its name."""
    return next((kind for kind, row in zip(KINDS, calibration.rows, strict=False) if row.name == name), "robust")


def places(calibration: Calibration) -> str:
    """Cameras and points: turned by hand, and two still plans."""
    scene = calibration.scene
    placed = [index for index, registered in enumerate(scene.registered) if registered]
    names = [calibration.views[index].file for index in placed]
    poses, points = scene.T_world_camera[placed].numpy(), _some_points(calibration, placed)
    before = _before(calibration, placed)
    plans = "".join(camera_plan(poses, names, points, side, before) for side in ("above", "the side"))
    moved = " Rings: where the plain alignment had put the cameras." if before is not None else ""
    return (
        "<h2>Cameras and points</h2>"
        f"{_canvas() if calibration.passes else ''}"
        f'<div class="columns">{plans}</div>'
        f'<p class="soft">Green: the cameras, opening in the direction they look.{moved}</p>'
    )


def photographs(calibration: Calibration) -> str:
    """Every photograph with its depth, the network's confidence, the calibrated one and the disagreement."""
    scales = _scales(calibration)
    side = round(MAP_SIDE * min(1.0, (12 / max(len(calibration.views), 1)) ** 0.5))
    views = "".join(_view(calibration, index, scales, side) for index in range(len(calibration.views)))
    keys = (
        '<span class="ramp">depth: far <i></i> near</span>'
        f'<span class="ramp">confidence: 0 <i></i> {scales.confidence:.2g} and more</span>'
        f'<span class="ramp">calibrated confidence: 0 <i></i> {scales.calibrated:.2g} and more</span>'
    )
    if calibration.passes:
        keys += (
            '<span class="ramp">disagreement of the pairs: 0 <i></i> '
            f"{100 * scales.residual:.3g} % of the depth and more</span>"
        )
    return (
        "<h2>Photographs</h2><p>What the network believed (confidence), and what alignment found to be true "
        "(calibrated confidence: low where pairs disagree). Depth in the scene's own unit, whose size is arbitrary.</p>"
        f'<div class="keys">{keys}</div>{views}'
    )


def residuals(calibration: Calibration) -> str:
    """Histograms of the residuals and reliability of both confidences."""
    if not calibration.passes:
        return (
            "<h2>Residuals and reliability</h2><p>Not recorded: this calibration was made by an earlier version. "
            "Calibrate again to see them; finished stages are reused.</p>"
        )
    edges = RESIDUAL_EDGES.numpy()
    series = [(each.name, kind_of(calibration, each.name), each.residual_share.numpy()) for each in calibration.passes]
    histogram = step_chart(
        "Residuals of all pair pixels",
        edges,
        series,
        Axis("distance from the scene, share of the depth", float(edges[0]), float(edges[-1]), log=True, percent=True),
        spanning("share of the pixels", [heights for *_, heights in series], from_zero=True, percent=True),
    )
    return (
        "<h2>Residuals and reliability</h2><p>Histogram: the farther to the left, the better the predictions agree "
        "with the scene; what is farther than the last bar, a whole depth, is counted in it. Curves: errors of "
        "predictions over rising confidence, in ten equal groups; where a confidence can be relied upon, "
        "the line falls from left to right, and the calibrated one should fall more steeply.</p>"
        f'<div class="columns">{histogram}{_reliability_chart(calibration)}</div>'
    )


def _row(row: CalibrationRow, kept: bool) -> str:
    first, *others = row_texts(row)
    cells = f"<td>{escape(first)}</td>" + "".join(
        f'<td data-label="{escape(heading)}">{escape(text)}</td>'
        for heading, text in zip(HEADINGS[1:], others, strict=True)
    )
    reason = f'<tr><td class="soft" colspan="{len(HEADINGS)}">{escape(row.reason)}</td></tr>' if row.reason else ""
    return f"<tr{' class=kept' if kept else ''}>{cells}</tr>{reason}"


def _losses(calibration: Calibration) -> str:
    losses = np.array(calibration.finetune_losses)
    if len(losses) < 2:
        return ""
    epochs = np.arange(1, len(losses) + 1)
    series = [Series("mean loss of the epoch", "adapted", epochs, losses, dots=True)]
    return line_chart("Fine-tuning", series, Axis("epoch", 1, len(losses)), spanning("loss", [losses]))


def _canvas() -> str:
    looks = "".join(
        f'<button type="button" data-look="{look}">{text}</button>'
        for look, text in (("above", "from above"), ("side", "from the side"), ("cameras", "as the cameras look"))
    )
    colours = "".join(
        f'<option value="{value}">{text}</option>'
        for value, text in (
            ("rgb", "photograph"),
            ("confidence", "confidence"),
            ("calibrated", "calibrated confidence"),
            ("residual", "residual"),
        )
    )
    return (
        "<p>Drag to turn, shift and drag to shift, click and then scroll to zoom; point at a camera for its "
        "photograph's name. Dashed: cameras of the plain alignment.</p>"
        '<div class="scene"><div class="controls">'
        '<label>pass <select id="scene-pass"></select></label>'
        f'<label>colour <select id="scene-colour">{colours}</select></label>'
        '<label>calibrated confidence at least <input id="scene-threshold" type="range" min="0" max="100" value="0">'
        '<output id="scene-least"></output></label>'
        '<label><input id="scene-cameras" type="checkbox" checked> cameras</label>'
        f'{looks}<button type="button" id="scene-in" aria-label="nearer">+</button>'
        '<button type="button" id="scene-out" aria-label="farther">−</button></div>'
        '<canvas id="scene" tabindex="0" aria-label="points and cameras"></canvas>'
        '<div class="under"><span id="scene-count"></span>'
        '<span class="ramp" id="scene-scale" hidden><span id="scene-low"></span><i></i><span id="scene-high"></span>'
        "</span></div></div>"
        "<noscript><p>Turning needs JavaScript; the plans below do not.</p></noscript>"
    )


def _view(calibration: Calibration, index: int, scales: Scales, side: int) -> str:
    """One photograph and its maps; each kind of map is on one scale for all views."""
    view, scene, confidence = calibration.views[index], calibration.scene, calibration.confidence
    if not scene.registered[index]:
        picture = _picture(view.file, np.ascontiguousarray(view.image), side)
        return (
            f'<h3>{escape(view.file)}</h3><div class="view">{picture}</div>'
            f"<p>Not placed: {escape(scene.reasons[index] or 'no reason given')}</p>"
        )
    depth = scene.depth[index].numpy()
    seen = depth[depth > 0]
    near, far = np.percentile(seen, [2, 98]) if seen.size else (0.0, 0.0)
    pictures = [
        ("photograph", view.image),
        (f"depth {near:.3g} to {far:.3g}", _nearness(depth)),
        ("confidence", false_colours(confidence.view_raw_confidence[index].numpy(), 0.0, scales.confidence)),
        ("calibrated confidence", false_colours(confidence.view_confidence[index].numpy(), 0.0, scales.calibrated)),
    ]
    kept = kept_pass(calibration)
    if kept is not None:
        residual = kept.residual[index].float().numpy()
        median = 100 * float(np.median(residual))
        pictures.append((f"disagreement, median {median:.3g}\u00a0%", false_colours(residual, 0.0, scales.residual)))
    maps = "".join(_picture(name, np.ascontiguousarray(rgb), side) for name, rgb in pictures)
    return f'<h3>{escape(view.file)}</h3><div class="view">{maps}</div>'


def _picture(name: str, rgb: np.ndarray, side: int) -> str:
    height, width = rgb.shape[:2]
    return (
        f'<figure><img alt="{escape(name)}" width="{width}" height="{height}" style="height:auto" '
        f'src="{data_uri(rgb, side)}"><figcaption>{escape(name)}</figcaption></figure>'
    )


def _nearness(depth: np.ndarray) -> np.ndarray:
    """Inverse depth in false colours: near is bright."""
    return false_colours(np.where(depth > 0, 1 / np.maximum(depth, 1e-9), np.nan))


def _scales(calibration: Calibration) -> Scales:
    scene, confidence, kept = calibration.scene, calibration.confidence, kept_pass(calibration)
    residual = () if kept is None else kept.residual
    return Scales(
        _percentile(confidence.view_raw_confidence, scene.registered, 98),
        _percentile(confidence.view_confidence, scene.registered, 98),
        _percentile(residual, scene.registered, 90),
    )


def _percentile(maps: tuple[Tensor, ...], registered: tuple[bool, ...], share: float) -> float:
    """Of all pixels of the registered views."""
    values = [each.flatten()[::7].float().numpy() for each, use in zip(maps, registered, strict=False) if use]
    return max(float(np.percentile(np.concatenate(values), share)), 1e-6) if values else 1.0


def _reliability_chart(calibration: Calibration) -> str:
    kept = kept_pass(calibration)
    judged = [each.reliability for each in (*calibration.passes, kept) if each is not None and each.reliability]
    found: Reliability | None = judged[-1] if judged else None
    if found is None:
        return "<p>Reliability: no pair of placed views is left to judge by.</p>"
    series = [
        Series(title, kind, (np.arange(len(errors)) + 0.5) / len(errors), errors.numpy(), dots=True)
        for title, kind, errors in (
            ("network's confidence (before)", "plain", found.confidence_error),
            ("calibrated confidence (after)", "robust", found.calibrated_error),
        )
    ]
    by = "pairs that took no part" if found.unseen else "the pairs themselves (no pair could be spared)"
    return line_chart(
        f"Reliability, judged by {by}",
        series,
        Axis("pixels, least to most confident", 0.0, 1.0, percent=True),
        spanning("error, share of the depth", [each.y for each in series], from_zero=True, percent=True),
    )


def _before(calibration: Calibration, placed: list[int]) -> np.ndarray | None:
    """(V, 4, 4) cameras of the plain alignment; NaN where it had not placed one, None without such a pass."""
    first = next(iter(calibration.passes), None)
    if first is None or kind_of(calibration, first.name) != "plain":
        return None
    poses = first.T_world_camera[placed].numpy().copy()
    poses[[not first.registered[index] for index in placed]] = np.nan
    return poses


def _some_points(calibration: Calibration, placed: list[int]) -> np.ndarray:
    """(N, 3) world points on a coarse grid of the registered views, those of the better half of the confidences."""
    scene, clouds = calibration.scene, []
    for index in placed:
        camera = unproject(scene.depth[index].double(), scene.focal[index], scene.principal_point[index])
        step = max(1, int((camera.shape[0] * camera.shape[1] * len(placed) / PLAN_POINTS) ** 0.5))
        trust = calibration.confidence.view_confidence[index]
        sure = (trust >= trust.median()) & (scene.depth[index] > 0)
        coarse = (slice(step // 2, None, step),) * 2
        clouds.append(transform_points(scene.T_world_camera[index], camera[coarse][sure[coarse]]).numpy())
    return np.concatenate(clouds)
