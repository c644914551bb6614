"""A training with the viewer, and what a visitor sees and does: preview, panel, points, cameras, exports.

Everything runs with the viser that is installed, and once more with the one in the folder $SECOND_VISER where that is
given: `uv pip install --no-deps --target FOLDER viser==1.1.1 zstandard "websockets<17"`.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, collect_errors
from PIL import Image

from lora3d_splat.export.colmap import read_colmap_cameras
from lora3d_splat.export.ply import read_points_ply
from lora3d_splat.export.splat import read_splat_ply
from lora3d_splat.export.transforms_json import read_transforms_json
from lora3d_splat.preview.drawing import AFTER, BEFORE, HELD_OUT, NOW

pytest.importorskip("nerfstudio")

HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds for anything to happen; a busy machine draws slowly."""
KNOWN = ("Computed radius is NaN",)
"""viser 0.2 says so itself of an empty geometry."""
CLEARLY = 60
"""Difference of a colour that a layer makes at least, of 255."""
LAYERS = {
    "Cameras of the pass": ("cameras", AFTER),
    "Cameras before (plain alignment)": ("before", BEFORE),
    "Cameras as optimised now": ("now", NOW),
    "Held-out cameras": ("heldout", HELD_OUT),
    "Pair graph by residual": ("graph", None),
}
"""Each box with the panel's name of what it shows, and its colour where it is one colour."""


@dataclass(frozen=True)
class Visit:
    """A page on a running training."""

    kind: str
    """which viser"""
    folder: Path
    page: Any
    errors: list[str]

    def picture(self) -> bytes:
        """The scene alone, once two looks at it agree; the pointer is taken from the boxes, whose hints lie over it."""
        clip = self.scene()
        self.page.mouse.move(clip["x"] + clip["width"] - 2, clip["y"] + clip["height"] - 2)
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

    def box(self, label: str) -> Any:
        """One of the panel's boxes to tick."""
        return self.page.get_by_label(label, exact=True)

    def count(self) -> tuple[int, int]:
        """Points above the threshold, and all, as the panel says."""
        text = self.page.get_by_text("points", exact=False).filter(has_text=" of ").first.inner_text()
        kept, total = (int(part.replace(",", "")) for part in text.split(" points")[0].split(" of "))
        return kept, total

    def press(self, button: str, where: str) -> Path:
        """Press a button that writes; returns the path that the panel then names, which is `where` in the run."""
        path = self.folder / "outputs" / "viewer" / "lora3d-splat" / "run" / where
        assert not path.exists()
        self.page.get_by_role("button", name=button, exact=True).click()
        self.page.get_by_text(f"Written: {path}").wait_for()
        return path

    def visitor(self) -> dict[str, Any]:
        return json.loads((self.folder / "visitor.json").read_text())


@pytest.fixture(scope="module", params=["installed viser", "second viser"])
def visit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """The page is opened while the calibration runs and is never loaded again."""
    second = os.environ.get("SECOND_VISER", "")
    if request.param == "second viser" and not Path(second, "viser").is_dir():
        pytest.skip("no second viser: $SECOND_VISER names no folder with one (the head of this file says how)")
    first = [second] if request.param == "second viser" else []
    folder = tmp_path_factory.mktemp("visit")
    with chromium() as browser, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = (folder / "log.txt").open("w")
        command = [sys.executable, str(HERE / "viewer_training.py"), str(folder), str(port)]
        path = os.pathsep.join([*first, str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        training = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})
        try:
            wait_for(lambda: answers(port) or training.poll() is not None, 120)
            assert training.poll() is None, (folder / "log.txt").read_text()[-3000:]
            page = browser.new_page(viewport={"width": 1200, "height": 760})
            page.set_default_timeout(1000 * PATIENCE)
            errors = collect_errors(page, KNOWN)
            page.route(lambda url: "localhost" not in url, answer_emptily)
            page.goto(f"http://localhost:{port}")
            yield Visit(request.param, folder, page, errors)
        finally:
            training.kill()
            training.wait()
            log.close()


def answer_emptily(route: Any) -> None:
    """nerfstudio's page asks its site for a logo, and viser's for a script that counts visits."""
    script = route.request.resource_type == "script"
    route.fulfill(status=200, body="", content_type="text/javascript" if script else "image/svg+xml")


def answers(port: int) -> bool:
    """Asked for a page: newer websockets complain of a visitor who says nothing."""
    try:
        with urllib.request.urlopen(f"http://localhost:{port}", timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


def changed_pixels(before: bytes, after: bytes, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """(H, W) where pixels are clearly other than before, and now have about the hue of a colour where one is given."""
    old, new = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(np.float64) for each in (before, after))
    changed = np.abs(old - new).max(axis=-1) > CLEARLY
    if colour is not None:
        wanted = np.array(colour, np.float64)
        share = (new @ wanted) / (wanted @ wanted)
        changed &= (np.linalg.norm(new - share[..., None] * wanted, axis=-1) < 25) & (share > 0.5)
    return changed


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
    version = (visit.folder / "viser.txt").read_text()
    assert version.startswith("1.") == (visit.kind == "second viser")
    assert visit.errors == []


def test_points_pass_colour_and_threshold_change_the_scene(visit: Visit) -> None:
    page, seen = visit.page, [visit.picture()]

    def changed() -> None:
        seen.append(wait_for(lambda: (now := visit.picture()) != seen[-1] and now, PATIENCE))

    visit.box("Points").check(force=True)
    changed()
    page.get_by_label("Pass", exact=True).click()
    page.get_by_role("option", name="plain alignment").click()
    changed()
    for colour in ("confidence", "calibrated confidence", "residual"):
        page.get_by_label("Colour by", exact=True).click()
        page.get_by_role("option", name=colour, exact=True).click()
        changed()
    page.get_by_role("slider").first.press("End")
    changed()
    assert len(set(seen)) == len(seen)
    kept, total = visit.count()
    assert 0 < kept < 0.2 * total
    assert total == 7 * 64 * 48


def test_a_button_writes_the_points_above_the_threshold(visit: Visit) -> None:
    kept, _ = visit.count()
    points, _ = read_points_ply(visit.press("PLY of the shown points", "export/points.ply"))
    assert len(points) == kept
    visit.box("Points").uncheck(force=True)


@pytest.mark.parametrize("button", ["PLY of the Gaussians", "COLMAP", "transforms.json", "Report"])
def test_a_button_writes_to_the_run_folder_and_says_where(visit: Visit, button: str) -> None:
    """What is written can be read, and holds all seven training views."""
    where, read = {
        "PLY of the Gaussians": ("export/splat.ply", lambda path: len(read_splat_ply(path).means) > 100),
        "COLMAP": ("export/colmap/sparse/0", lambda path: len(read_colmap_cameras(path)) == 7),
        "transforms.json": ("export/transforms.json", lambda path: len(read_transforms_json(path)) == 7),
        "Report": ("report.html", lambda path: path.read_text().count("<h3>") >= 7),
    }[button]
    assert read(visit.press(button, where))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_comes_and_goes(visit: Visit, layer: str) -> None:
    """Alone in the scene it is seen, the cameras in their colour; without it what it covered is seen again.

    Only pixels that come and go count: nerfstudio may render the background once more meanwhile, finer than before,
    and what that changes stays.
    """
    for other in LAYERS:
        visit.box(other).uncheck(force=True)
    wait_for(lambda: visit.visitor()["drawn"] == [], PATIENCE)
    empty = visit.picture()
    visit.box(layer).check(force=True)
    name, colour = LAYERS[layer]
    wait_for(lambda: visit.visitor()["drawn"] == [name], PATIENCE)
    wait_for(lambda: changed_pixels(empty, visit.picture(), colour).sum() > 20, PATIENCE)
    covered = changed_pixels(empty, visit.picture(), colour)
    visit.box(layer).uncheck(force=True)
    wait_for(lambda: visit.visitor()["drawn"] == [], PATIENCE)
    wait_for(lambda: (covered & ~changed_pixels(empty, visit.picture())).sum() > 20, PATIENCE)


def test_a_click_on_a_camera_takes_the_visitor_there(visit: Visit) -> None:
    """The nearest camera on the page is clicked; the visitor's position becomes that of one of the cameras."""
    visit.box("Cameras of the pass").check(force=True)
    seen, box = visit.picture(), visit.scene()
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
    wait_for(lambda: visit.picture() != seen, PATIENCE)


def test_nothing_was_complained_about(visit: Visit) -> None:
    """Neither in the console, nor in the program's own output."""
    assert visit.errors == []
    assert "Traceback" not in (visit.folder / "log.txt").read_text()
