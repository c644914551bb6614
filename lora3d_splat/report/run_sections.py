"""The report's sections on a training: held-out views with their scores, and the curve of PSNR."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from lora3d_splat.report.charts import Axis, Series, line_chart, spanning
from lora3d_splat.report.pictures import data_uri
from lora3d_splat.report.run_results import RunResults, ScoredView, TrainingCurve

METRICS = (
    ("psnr", "PSNR, dB", 2),
    ("ssim", "SSIM", 3),
    ("lpips_alex", "LPIPS (Alex)", 3),
    ("lpips_vgg", "LPIPS (VGG)", 3),
)
PICTURE_SIDE, MANY = 640, 4
"""Long side of the pictures; three quarters of it where there are more than MANY views."""


def heldout_views(run: RunResults | None) -> str:
    """Each scored view: wipe between photograph and rendering, error, numbers."""
    if run is None or run.scores is None:
        return ""
    protocol = run.scores["protocol"]
    reason = f" ({escape(protocol['reason'])})" if protocol.get("reason") else ""
    pictured = [view for view in run.views if view.parts is not None]
    side = PICTURE_SIDE if len(pictured) <= MANY else PICTURE_SIDE * 3 // 4
    lead = (
        "These photographs took no part in calibration or training. "
        if protocol["scored"] == "held-out views"
        else "Every photograph took part in the training, so these scores flatter. "
    )
    return (
        f"<h2>{escape(protocol['scored'].capitalize())}{reason}</h2><p>{lead}Drag over the picture to wipe between the "
        "photograph (left) and its rendering (right). The second number of each pair is after the camera was aligned "
        "photometrically on that photograph, the Gaussians frozen.</p>"
        + "".join(_held(view, side, _metrics(run)) for view in pictured)
        + _scores_table(run)
    )


def _metrics(run: RunResults) -> tuple[tuple[str, str, int], ...]:
    """Those that any view has; what is missing altogether stands once, with its reason, under "Left out"."""
    entries = [view.entry.get("raw") or {} for view in run.views]
    return tuple(metric for metric in METRICS if any(entry.get(metric[0]) is not None for entry in entries))


def training(run: RunResults | None) -> str:
    """The curve of PSNR as far as there is one."""
    if run is None or run.curve is None:
        return ""
    curve = run.curve
    smooth = _smoothed(curve.psnr)
    series = [Series("training picture of each step", "train faint", curve.step, curve.psnr)]
    series.append(Series("the same, smoothed", "train", curve.step, smooth))
    if len(curve.heldout_step):
        series.append(
            Series("held-out views, as registered", "held", curve.heldout_step, curve.heldout_psnr, True, line=True)
        )
    x = Axis("step", 0, float(max(curve.step.max(), 1)))
    y = spanning("PSNR, dB", [smooth, curve.heldout_psnr, np.percentile(curve.psnr, [2, 98])])
    chart = line_chart("PSNR while training", series, x, y)
    return f'<h2>Training</h2><div class="columns">{chart}{_facts(run, curve)}</div>'


def _held(view: ScoredView, side: int, metrics: tuple[tuple[str, str, int], ...]) -> str:
    assert view.parts is not None
    photo, raw, aligned, error = (data_uri(part, side) for part in view.parts)
    name, size = (
        escape(view.file),
        f'width="{view.parts[0].shape[1]}" height="{view.parts[0].shape[0]}" style="height:auto"',
    )
    numbers = "".join(_score_line(view.entry, *metric) for metric in metrics)
    change = view.entry.get("pose_change") or {}
    moved = f"<tr><td>camera turned by</td><td>{change['rotation_deg']:.2f}°</td></tr>" if change else ""
    group = f"render-{abs(hash(view.file))}"
    return (
        f'<div class="scored"><h3>{name}</h3>'
        '<figure><div class="wipe" data-shown="aligned">'
        f'<img class="raw" {size} alt="rendering of {name}, as registered" src="{raw}">'
        f'<img class="aligned" {size} alt="rendering of {name}, pose aligned" src="{aligned}">'
        f'<img class="over" {size} alt="photograph {name}" src="{photo}"><span class="l">photograph</span>'
        f'<span class="r">rendering</span><input type="range" min="0" max="100" value="50" aria-label="wipe"></div>'
        f'<div class="renders"><label><input type="radio" name="{group}" value="raw"> pose as registered</label>'
        f'<label><input type="radio" name="{group}" value="aligned" checked> pose aligned</label></div></figure>'
        f'<figure><img {size} alt="error of {name}" src="{error}"><figcaption>error after pose alignment; white: a '
        "third of full scale or more</figcaption></figure>"
        f"<table><tbody>{numbers}{moved}</tbody></table></div>"
    )


def _score_line(entry: dict[str, Any], name: str, title: str, digits: int) -> str:
    return f"<tr><td>{title}</td><td>{_pair(entry.get('raw'), entry.get('aligned'), name, digits)}</td></tr>"


def _pair(raw: dict[str, Any] | None, aligned: dict[str, Any] | None, name: str, digits: int) -> str:
    numbers = [None if scores is None else scores.get(name) for scores in (raw, aligned)]
    return "–" if None in numbers else " → ".join(f"{number:.{digits}f}" for number in numbers)


def _scores_table(run: RunResults) -> str:
    assert run.scores is not None
    metrics = _metrics(run)
    heads = "".join(f"<th>{title}</th>" for _, title, _ in metrics)
    rows = "".join(
        f"<tr{' class=beside' if view.parts is not None else ''}><td>{escape(view.file)}</td>"
        + "".join(
            f'<td data-label="{title}">{_pair(view.entry.get("raw"), view.entry.get("aligned"), name, digits)}</td>'
            for name, title, digits in metrics
        )
        + "</tr>"
        for view in run.views
        if view.entry.get("raw") is not None
    )
    mean = "".join(
        f'<td data-label="{title}">{_pair(run.scores["mean"], run.scores["mean_aligned"], name, digits)}</td>'
        for name, title, digits in metrics
    )
    return (
        f'<table class="stack"><thead><tr><th>view</th>{heads}</tr></thead><tbody>{rows}'
        f'<tr class="kept"><td>mean</td>{mean}</tr></tbody></table>'
    )


def _facts(run: RunResults, curve: TrainingCurve) -> str:
    protocol = (run.scores or {}).get("protocol") or {}
    rows = [
        ("steps so far", f"{curve.step.max() + 1:,}"),
        ("PSNR of the last pictures", f"{_smoothed(curve.psnr)[-1]:.2f} dB"),
    ]
    if len(curve.heldout_step):
        rows.append(("held-out views at the last look", f"{curve.heldout_psnr[-1]:.2f} dB"))
    if "gaussians" in protocol:
        rows.append(("Gaussians", f"{protocol['gaussians']:,}"))
    if protocol.get("picture_size"):
        rows.append(("picture size", ", ".join(f"{w} × {h}" for w, h in protocol["picture_size"])))
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table><tbody>{cells}</tbody></table>"


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, at least a round of a dozen pictures."""
    width = min(max(len(values) // 20, 12), len(values))
    padded = np.concatenate([np.full(width - 1, values[:width].mean()), values])
    return np.convolve(padded, np.ones(width) / width, mode="valid")
