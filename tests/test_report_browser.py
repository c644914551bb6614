"""The report in a real browser, with the network cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, collect_errors
from calibration_example import make_calibration, write_finished_run

from lora3d_splat.outputs import write_outputs, write_report

MOST_BYTES = 8_000_000
VIEWS = 12


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of twelve views, all of them scored."""
    folder = tmp_path_factory.mktemp("report")
    calibration = make_calibration(folder, count=VIEWS, lost=4)
    run = folder / "run"
    write_outputs(calibration, run / "calibration", None)
    write_finished_run(run, tuple(f"{index}.png" for index in range(VIEWS)))
    return write_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(params=[(400, "light"), (1600, "dark")], ids=str)
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened from disk; fails where it asks for anything or complains."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    errors, asked = collect_errors(opened), []
    opened.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    opened.goto(report.as_uri())
    yield opened
    assert errors == []
    assert asked == []
    context.close()


def test_a_run_of_twelve_views_is_small_enough(report: Path) -> None:
    assert report.stat().st_size < MOST_BYTES


def test_it_is_readable_at_every_width_and_in_both_schemes(page: Any) -> None:
    """Nothing reaches beyond the window, no text of the charts is tiny, text and paper differ clearly."""
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text, p, td, figcaption, label')].map(e => {"
        "  const m = e.ownerSVGElement ? e.getScreenCTM() : { a: 1, b: 0 };"
        "  return Math.hypot(m.a, m.b) * parseFloat(getComputedStyle(e).fontSize); }))"
    )
    assert smallest >= 9
    light = page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (sum(paper) > 600) == light
    broken = page.evaluate("[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length")
    assert broken == 0


def test_points_turn_and_fade(page: Any) -> None:
    """Another pass, colour, threshold and direction each change the picture; fewer points pass a higher threshold."""
    canvas = page.locator("#scene")
    canvas.scroll_into_view_if_needed()

    def picture() -> str:
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page.evaluate("document.getElementById('scene').toDataURL()")

    seen = [picture()]
    page.select_option("#scene-colour", "residual")
    seen.append(picture())
    page.locator("#scene-threshold").fill("80")
    seen.append(picture())
    kept = int(page.locator("#scene-count").inner_text().split()[0].replace(",", ""))
    assert 0 < kept < 0.6 * (VIEWS - 1) * 24 * 32
    page.get_by_role("button", name="from above").click()
    seen.append(picture())
    page.locator("#scene-cameras").uncheck()
    seen.append(picture())
    assert len(set(seen)) == len(seen)


def test_the_wipe_moves(page: Any) -> None:
    """Half of the photograph lies over the rendering at first, all of it at the far right."""
    wipe = page.locator(".wipe").first
    over = wipe.locator(".over")
    assert "50%" in over.evaluate("e => getComputedStyle(e).clipPath")
    wipe.locator("input").fill("100")
    assert over.evaluate("e => getComputedStyle(e).clipPath") in (
        "inset(0px calc(0%) 0px 0px)",
        "inset(0px 0% 0px 0px)",
    )
    assert wipe.locator(".aligned").is_visible()
    page.get_by_label("pose as registered").first.check()
    assert not wipe.locator(".aligned").is_visible()
    assert wipe.locator(".raw").is_visible()
