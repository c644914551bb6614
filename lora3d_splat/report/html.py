"""report.html: one file with pictures and numbers that opens anywhere, without the network."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from lora3d_splat.files import write_text
from lora3d_splat.records import Calibration
from lora3d_splat.report.calibration_sections import (
    photographs,
    places,
    residuals,
    three_rows,
)
from lora3d_splat.report.json_report import report_content
from lora3d_splat.report.pictures import PALETTE
from lora3d_splat.report.run_results import RunResults
from lora3d_splat.report.run_sections import heldout_views, training
from lora3d_splat.report.scene3d import packed_scene
from lora3d_splat.report.text_sections import costs, left_out, origin, tiles


def write_html_report(path: Path, calibration: Calibration, settings: object, run: RunResults | None = None) -> None:
    """Write the report with everything it shows inside the file."""
    content = report_content(calibration, settings, run)
    sections = (
        heldout_views(run),
        training(run),
        three_rows(calibration),
        places(calibration),
        photographs(calibration),
        residuals(calibration),
        left_out(calibration, run),
        costs(content),
        origin(content),
    )
    ramp = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in PALETTE)
    style = Template(_part("style.css")).substitute(ramp=ramp, maps=5 if calibration.passes else 4)
    scripts = ("scene3d.js", "page.js") if calibration.passes else ("page.js",)
    write_text(
        path,
        Template(_part("template.html")).substitute(
            title=escape(f"{'Training' if run else 'Self-calibration'} report: {_photographs(calibration)}"),
            subtitle=escape(_subtitle(calibration, path.absolute().parent)),
            tiles=tiles(calibration, content),
            decision=escape(calibration.decision),
            sections="\n".join(sections),
            style=style,
            scene=_inside_script(packed_scene(calibration) if calibration.passes else {}),
            script="\n".join(_part(name) for name in scripts),
        ),
    )


def _photographs(calibration: Calibration) -> str:
    """The name of the folder with photographs, with its parent's, since many are called images."""
    return "/".join(calibration.views[0].path.absolute().parent.parts[-2:])


def _subtitle(calibration: Calibration, folder: Path) -> str:
    registered, count = sum(calibration.scene.registered), len(calibration.views)
    placed = f"{registered} of {count} photographs placed"
    return f"{placed}; network {calibration.network} ({calibration.licence}); folder {folder.name}"


def _part(name: str) -> str:
    return resources.files("lora3d_splat.report").joinpath(name).read_text(encoding="utf-8")


def _inside_script(content: object) -> str:
    """JSON that cannot end the element it stands in, whatever a photograph is called."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
