"""The report's sections in words and numbers: the first glance, what was left out, what it cost, where it is from."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from lora3d_splat.records import Calibration, CalibrationRow
from lora3d_splat.report.calibration_sections import kept_row
from lora3d_splat.report.run_results import RunResults


def tiles(calibration: Calibration, content: dict[str, Any]) -> str:
    """The handful of numbers that one looks for first."""
    found = [(f"{sum(calibration.scene.registered)} of {len(calibration.views)}", "photographs placed")]
    scores = content["scores"]
    if scores is not None and scores["mean"]["psnr"] is not None:
        pair = f"{scores['mean']['psnr']:.1f} → {scores['mean_aligned']['psnr']:.1f} dB"
        found.append((pair, f"PSNR of {scores['protocol']['scored']}, raw → pose aligned"))
    last = 2 if calibration.adapter is None else 3
    numbers = [row for row in calibration.rows[:last] if row.residual is not None]
    if len(numbers) > 1:
        found.append((f"{numbers[0].residual:.2%} → {numbers[-1].residual:.2%}", _names("residual", numbers)))
    kept = kept_row(calibration)
    if calibration.sparse is not None and kept is calibration.rows[-1]:
        found.append((f"{len(calibration.sparse.points_world):,}", "feature tracks, on which the cameras used stand"))
    if kept is not None and kept.focal is not None:
        found.append((f"{kept.focal:.0f} px", f"focal length at {calibration.views[0].width} px width"))
    found.append((_duration(sum(content["seconds"].values())), "of computing, all stages together"))
    memory = [value for peak in content["peak_memory_bytes"].values() for value in peak.values() if value]
    if memory:
        found.append((f"{max(memory) / 1e9:.1f} GB", "peak memory"))
    return "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in found)


def left_out(calibration: Calibration, run: RunResults | None) -> str:
    """Everything that is missing, and why."""
    lines = [f"{file}: {reason}" for file, reason in calibration.left_out]
    lines += [f"{row.name}: {row.reason}" for row in calibration.rows if row.reason]
    if run is not None:
        lines += run.missing
        lines += [f"{view.file}: {view.entry['reason']}" for view in run.views if view.entry.get("raw") is None]
        means = (run.scores or {}).get("mean") or {}
        lines += [f"{name}: not computed, {means[f'{name}_reason']}" for name in means if f"{name}_reason" in means]
    if not lines:
        return "<h2>Left out</h2><p>Nothing.</p>"
    return "<h2>Left out</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def costs(content: dict[str, Any]) -> str:
    """Seconds of each stage and the peaks of memory."""
    seconds: dict[str, float] = content["seconds"]
    longest = max([*seconds.values(), 1e-9])
    times = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:.1f} s</td><td class="wide"><span class="bar" '
        f'style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for name, value in seconds.items()
    )
    memory = "".join(
        f"<tr><td>{escape(what)}, {escape(kind)}</td><td>{value / 1e9:.2f} GB</td></tr>"
        for what, peak in content["peak_memory_bytes"].items()
        for kind, value in peak.items()
        if value
    )
    peaks = (
        f"<table><tbody>{memory}</tbody></table>"
        if memory
        else "<p>Peak memory was not recorded: this calibration was made by an earlier version.</p>"
    )
    return (
        "<h2>Time and memory</h2><p>What each stage cost when it was computed; later runs take finished stages from "
        "the cache. Memory is the largest size of the whole process.</p>"
        f'<div class="columns"><table><tbody>{times}</tbody></table><div>{peaks}</div></div>'
    )


def origin(content: dict[str, Any]) -> str:
    """Licences, versions and settings."""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(str(facts["version"] or "absent"))}</td>'
        f'<td class="text">{escape(str(facts["licence"] or "–"))}</td></tr>'
        for name, facts in content["packages"].items()
    )
    weights = (
        f'<tr><td>weights of {escape(content["network"])}</td><td class="text">–</td>'
        f'<td class="text">{escape(content["licence"])}</td></tr>'
    )
    settings = content["settings"]
    shown = (
        "<details><summary>Settings of the calibration</summary>"
        f"<pre>{escape(json.dumps(settings, indent=2))}</pre></details>"
        if settings is not None
        else "<p>The settings were not recorded.</p>"
    )
    return (
        "<h2>Versions, licences, settings</h2><table><thead><tr><th>part</th><th class=text>version</th>"
        f"<th class=text>licence</th></tr></thead><tbody>{weights}{rows}</tbody></table>{shown}"
    )


def _names(what: str, rows: list[CalibrationRow]) -> str:
    return f"{what}, {rows[0].name} → {rows[-1].name}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
