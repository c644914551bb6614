"""A training with the viewer, and what a visitor sees and does: preview, panel, points, cameras, exports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, collect_errors

pytest.importorskip("nerfstudio")

HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds for anything to happen; a busy machine draws slowly."""
KNOWN = ("Computed radius is NaN",)
"""viser 0.2 says so itself of an empty geometry."""


@dataclass(frozen=True)
class Visit:
    """A page on a running training."""

    folder: Path
    page: Any
    errors: list[str]

    def picture(self) -> bytes:
        """The scene alone, once two looks at it agree."""
        clip = self.scene()
        before = self.page.screenshot(clip=clip)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.page.wait_for_timeout(150)
            now = self.page.screenshot(clip=clip)
            if now == before:
                return now
            before = now
        pytest.fail("the scene does not come to rest")

    def scene(self) -> dict[str, float]:
        """Where the scene is in the window, without the panel beside it."""
        return self.page.locator("canvas").last.bounding_box()

    def visitor(self) -> dict[str, Any]:
        return json.loads((self.folder / "visitor.json").read_text())


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """The page is opened while the calibration runs and is never loaded again."""
    folder = tmp_path_factory.mktemp("visit")
    with chromium() as browser, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = (folder / "log.txt").open("w")
        command = [sys.executable, str(HERE / "viewer_training.py"), str(folder), str(port)]
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        training = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})
        try:
            wait_for(lambda: answers(port) or training.poll() is not None, 120)
            assert training.poll() is None, (folder / "log.txt").read_text()[-3000:]
            page = browser.new_page(viewport={"width": 1200, "height": 760})
            page.set_default_timeout(1000 * PATIENCE)
            errors = collect_errors(page, KNOWN)
            page.route(lambda url: "localhost" not in url, answer_emptily)
            page.goto(f"http://localhost:{port}")
            yield Visit(folder, page, errors)
        finally:
            training.kill()
            training.wait()
            log.close()


def answer_emptily(route: Any) -> None:
    """nerfstudio's page asks its site for a logo, and viser's for a script that counts visits."""
    script = route.request.resource_type == "script"
    route.fulfill(status=200, body="", content_type="text/javascript" if script else "image/svg+xml")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of the condition; fails when none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail("waited in vain")


def test_the_page_of_the_preview_becomes_that_of_the_training(visit: Visit) -> None:
    """Progress of the calibration first; then, without being loaded again, the viewer with the panel's tab."""
    visit.page.get_by_text("prediction").first.wait_for()
    tab = visit.page.get_by_role("tab", name="Self-calibration")
    tab.wait_for()
    tab.click()
    visit.page.get_by_text("training picture").first.wait_for()
    visit.page.get_by_role("button", name="Pause Training").click()
    assert visit.errors == []


def test_points_pass_and_threshold_change_the_scene(visit: Visit) -> None:
    page = visit.page
    seen = [visit.picture()]
    page.get_by_label("Points", exact=True).check(force=True)
    wait_for(lambda: visit.picture() != seen[-1], PATIENCE)
    seen.append(visit.picture())
    page.get_by_label("Pass", exact=True).click()
    page.get_by_role("option", name="plain alignment").click()
    wait_for(lambda: visit.picture() != seen[-1], PATIENCE)
    seen.append(visit.picture())
    page.get_by_label("Colour by", exact=True).click()
    page.get_by_role("option", name="calibrated confidence").click()
    wait_for(lambda: visit.picture() != seen[-1], PATIENCE)
    seen.append(visit.picture())
    page.get_by_role("slider").first.press("End")
    wait_for(lambda: visit.picture() != seen[-1], PATIENCE)
    count = page.get_by_text("points", exact=False).filter(has_text=" of ").first.inner_text()
    kept, total = (int(text.replace(",", "")) for text in count.split(" points")[0].split(" of "))
    assert 0 < kept < 0.2 * total
    assert total == 7 * 64 * 48
    page.get_by_label("Points", exact=True).uncheck(force=True)


def test_a_click_on_a_camera_takes_the_visitor_there(visit: Visit) -> None:
    """The nearest camera on the page is clicked; the visitor's position becomes that of one of the cameras."""
    visit.picture()
    box = visit.scene()
    before = wait_for(lambda: (seen := visit.visitor())["cameras"] and seen, PATIENCE)
    assert len(before["cameras"]) == 7
    reachable = [c for c in before["cameras"] if c["place"] and all(0.05 < share < 0.95 for share in c["place"])]
    for camera in sorted(reachable, key=lambda each: each["distance"]):
        across, down = camera["place"]
        visit.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
        end = time.monotonic() + 4
        while time.monotonic() < end and visit.visitor()["position"] == before["position"]:
            visit.page.wait_for_timeout(150)
        if visit.visitor()["position"] != before["position"]:
            break
    now = visit.visitor()
    gaps = [np.abs(np.subtract(now["position"], each["position"])).max() for each in now["cameras"]]
    assert min(gaps) < 1e-3


@pytest.mark.parametrize(
    ("button", "file"),
    [
        ("PLY of the Gaussians", "export/splat.ply"),
        ("COLMAP", "export/colmap/sparse/0/images.bin"),
        ("Report", "report.html"),
    ],
)
def test_a_button_writes_to_the_run_folder_and_says_where(visit: Visit, button: str, file: str) -> None:
    run = visit.folder / "outputs" / "viewer" / "lora3d-splat" / "run"
    visit.page.get_by_role("button", name=button, exact=True).click()
    folder = file.removesuffix("/images.bin")
    visit.page.get_by_text(f"Written: {run / folder}").wait_for()
    assert (run / file).stat().st_size > 100


def test_nothing_was_complained_about(visit: Visit) -> None:
    """Neither in the console, nor in the program's own output."""
    assert visit.errors == []
    assert "Traceback" not in (visit.folder / "log.txt").read_text()
