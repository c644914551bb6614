"""The report: strict JSON, three rows always, and an HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from calibration_example import make_calibration, write_finished_run

from lora3d_splat.calibration_files import save_calibration
from lora3d_splat.errors import InputError
from lora3d_splat.outputs import write_outputs, write_report
from lora3d_splat.passes import pass_points
from lora3d_splat.report.charts import Axis
from lora3d_splat.report.html import write_html_report
from lora3d_splat.report.json_report import write_json_report
from lora3d_splat.report.pictures import PALETTE, false_colours
from lora3d_splat.report.plan import SIZE, camera_plan, display_axes
from lora3d_splat.report.scene3d import RANGE, packed_scene
from lora3d_splat.report.table import row_texts


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    cache: Path | None = Path("somewhere")
    odd: float = float("inf")


def test_json_holds_rows_decision_settings_and_what_was_left_out(tmp_path: Path) -> None:
    """A row that was not computed is there with nulls and its reason; infinite settings become null."""
    write_json_report(tmp_path / "report.json", make_calibration(tmp_path, lost=2), Settings())
    text = (tmp_path / "report.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [row["name"] for row in content["rows"]] == [
        "plain alignment",
        "robust alignment",
        "robust alignment + LoRA",
    ]
    assert content["rows"][2]["residual"] is None
    assert "switched off" in content["rows"][2]["reason"]
    assert content["settings"] == {"steps": 3, "cache": "somewhere", "odd": None}
    assert content["left_out"][0]["file"] == "notes.jpg"
    assert content["views"][2]["reason"] == "it fits no other view"
    assert content["packages"]["torch"]["version"] is not None
    assert content["packages"]["lora3d-splat"]["licence"] == "Apache-2.0"
    assert [each["name"] for each in content["passes"]] == ["plain alignment", "robust alignment"]
    pairs = content["passes"][1]["pairs"]
    assert {"reference": "0.png", "other": "1.png"}.items() <= pairs[0].items()
    assert len(content["passes"][1]["residual_share"]) + 1 == len(content["passes"][1]["residual_edges"])
    assert sum(content["passes"][1]["residual_share"]) == pytest.approx(1.0)


VOID = ("meta", "link", "img", "br", "input", "circle", "polygon", "polyline", "line", "rect")
"""Elements without an end tag, in HTML or in how we write SVG."""


class Tags(HTMLParser):
    """Collects opened tags that are not closed, and every src and href."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.pictures = 0
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.pictures += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.titles.append(data)


def test_html_is_whole_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    """Tags close, every picture is inside, nothing is fetched, user text is escaped, both colour schemes are there."""
    write_html_report(tmp_path / "report.html", make_calibration(tmp_path, lost=1), Settings())
    text = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.pictures == 5 + 1 + 5  # the unregistered view has no maps
    assert all(link.startswith(("data:image/jpeg;base64,", "data:,")) for link in tags.links)
    assert tags.titles == [
        "Ways to align",
        "Cameras and points",
        "Photographs",
        "Residuals and reliability",
        "Left out",
        "Time and memory",
        "Versions, licences, settings",
    ]
    assert "<by>" not in text
    assert "&lt;by&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"[^`]\$[a-z]", text)


def test_a_run_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    """A crash before the first step, one in the middle of a line, a finished run; settings survive every rebuild."""
    run = tmp_path / "run"
    calibration = save_calibration(make_calibration(tmp_path), run / "calibration")
    write_outputs(calibration, run / "calibration", Settings())
    content = json.loads((write_report(run).parent / "report.json").read_text())
    assert content["training"] is None
    assert len(content["missing"]) == 2
    assert content["settings"]["steps"] == 3
    (run / "training.csv").write_text("step,seconds,psnr,heldout_psnr\n0,0.1,11.5,\n0,0.2,,10.25\n1,0.3,12.5,\n2,0.4")
    content = json.loads((write_report(run).parent / "report.json").read_text())
    assert content["training"] == {"step": [0, 1], "psnr": [11.5, 12.5], "heldout_step": [0], "heldout_psnr": [10.25]}
    assert content["scores"] is None
    write_finished_run(run, ("a/0.png", "1.png"))
    report = write_report(run)
    content = json.loads((run / "report.json").read_text())
    assert content["scores"]["mean"]["psnr"] == 20.0
    assert content["missing"] == []
    tags = Tags()
    tags.feed(report.read_text())
    assert tags.open == []
    assert tags.titles[:2] == ["Held-out views", "Training"]
    assert tags.pictures == 3 * 5 + 2 * 4


def test_a_folder_without_a_calibration_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibrate"):
        write_report(tmp_path)


def test_a_calibration_of_an_earlier_version_is_reported_without_its_passes(tmp_path: Path) -> None:
    old = replace(make_calibration(tmp_path), passes=(), peak_memory_bytes={})
    write_html_report(tmp_path / "report.html", old, None)
    text = (tmp_path / "report.html").read_text()
    assert "Not recorded: this calibration was made by an earlier version" in text
    assert 'id="scene"' not in text


def test_packed_scene_holds_the_points_where_they_are(tmp_path: Path) -> None:
    """Places, decoded, are the points of the pass in the display's axes; every camera has its frustum."""
    calibration = make_calibration(tmp_path)
    packed = packed_scene(calibration)["passes"][1]
    places = np.frombuffer(base64.b64decode(packed["places"]), "<i2").reshape(-1, 3) * 4 / RANGE
    points = pass_points(calibration.passes[1], calibration.views).points_world
    axes = display_axes(calibration.scene.T_world_camera.numpy())
    assert packed["count"] == len(points) == len(places)
    gaps_found, gaps_true = (np.linalg.norm(each - each[0], axis=1) for each in (places, points @ axes.T))
    unit = np.median(gaps_true[1:] / gaps_found[1:])
    np.testing.assert_allclose(gaps_found * unit, gaps_true, atol=1e-3 * unit)
    assert [camera["file"] for camera in packed["cameras"]] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0.0, 1.0), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis("", 15.2, 19.9), [16, 17, 18, 19]),
        (Axis("", 0.001, 1.0, log=True), [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    rows = make_calibration(tmp_path).rows
    assert row_texts(rows[2])[1:5] == ("-", "-", "-", "-")
    assert row_texts(replace(rows[0], residual=0.0123))[1] == "1.230%"


def test_false_colours_span_the_palette() -> None:
    """The lowest number has the first stop, the highest the last, and what is no number is black."""
    values = np.array([[0.0, 0.5, 1.0, np.nan]])
    found = false_colours(values, 0.0, 1.0)
    np.testing.assert_array_equal(found[0, [0, 2]], PALETTE[[0, -1]])
    np.testing.assert_array_equal(found[0, 1], PALETTE[4])
    np.testing.assert_array_equal(found[0, 3], 0)


@pytest.mark.parametrize("values", [np.full((2, 2), 3.0), np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_false_colours_of_flat_or_empty_maps_are_finite(values: np.ndarray) -> None:
    assert false_colours(values).shape == (2, 2, 3)


def poses(centres: np.ndarray) -> np.ndarray:
    found = np.tile(np.eye(4), (len(centres), 1, 1))
    found[:, :3, 3] = centres
    return found


def test_the_plan_is_seen_from_above() -> None:
    """Of two cameras looking along z the right one is drawn to the right, and both look up the page."""
    svg = camera_plan(poses(np.array([[-1.0, 0, 0], [1.0, 0, 0]])), ["left", "right"], np.array([[0.0, 0, 4.0]]))
    wedges = re.findall(r'points="([^"]*)"', svg)
    corners = [np.array([[float(x) for x in pair.split(",")] for pair in wedge.split()]) for wedge in wedges]
    assert corners[0][0, 0] < corners[1][0, 0]
    assert all((wedge[1:, 1] < wedge[0, 1]).all() for wedge in corners)
    assert all(((wedge >= 0) & (wedge <= SIZE)).all() for wedge in corners)


def test_from_the_side_up_is_up_and_ahead_is_to_the_right() -> None:
    """Of two cameras along the y axis (down) the first is drawn above, and both look to the right."""
    svg = camera_plan(poses(np.array([[0, -1.0, 0], [0, 1.0, 0]])), ["a", "b"], np.array([[0.0, 0, 4.0]]), "the side")
    wedges = re.findall(r'points="([^"]*)"', svg)
    corners = [np.array([[float(x) for x in pair.split(",")] for pair in wedge.split()]) for wedge in wedges]
    assert corners[0][0, 1] < corners[1][0, 1]
    assert all((wedge[1:, 0] > wedge[0, 0]).all() for wedge in corners)


def test_the_plan_shows_where_cameras_were() -> None:
    """One ring per camera that had a place before; NaN means it had none."""
    before = poses(np.array([[0.5, 0, 0], [np.nan, 0, 0]]))
    svg = camera_plan(poses(np.array([[-1.0, 0, 0], [1.0, 0, 0]])), ["a", "b"], np.zeros((1, 3)), "above", before)
    assert svg.count('<circle class="m"') == 1
    assert "nan" not in svg


def test_the_plan_bears_one_camera_and_names_with_brackets() -> None:
    svg = camera_plan(poses(np.zeros((1, 3))), ["<a>.jpg"], np.empty((0, 3)))
    assert "&lt;a&gt;.jpg" in svg
    assert "nan" not in svg
