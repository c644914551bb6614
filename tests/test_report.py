"""The report: strict JSON, three rows always, and an HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from calibration_example import make_calibration

from lora3d_splat.report.html import write_html_report
from lora3d_splat.report.json_report import write_json_report
from lora3d_splat.report.pictures import PALETTE, false_colours
from lora3d_splat.report.plan import SIZE, camera_plan
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
    assert content["versions"]["torch"] is not None


class Tags(HTMLParser):
    """Collects opened tags that are not closed, and every src and href."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.pictures += tag == "img"
        if tag not in ("meta", "img", "br", "circle", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle", "polygon"):
            assert self.open.pop() == tag


def test_html_is_whole_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    """Tags close, every picture is inside, nothing is fetched, user text is escaped, both colour schemes are there."""
    write_html_report(tmp_path / "report.html", make_calibration(tmp_path, lost=1), Settings())
    text = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.pictures == 4 * 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in tags.links)
    assert "<by>" not in text
    assert "&lt;by&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"\$[a-z]", text)


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


def test_the_plan_bears_one_camera_and_names_with_brackets() -> None:
    svg = camera_plan(poses(np.zeros((1, 3))), ["<a>.jpg"], np.empty((0, 3)))
    assert "&lt;a&gt;.jpg" in svg
    assert "nan" not in svg
