"""The pictures of docs/images, taken anew from a finished run: `python benchmarks/pictures.py RUN FOLDER`."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from playwright.sync_api import sync_playwright

PORT = 7411
COLOURS = 256
"""Of the stored pictures, which keeps them small."""


@dataclass
class Arguments:
    run: tyro.conf.Positional[Path]
    """A finished run folder of the example scene."""
    folder: tyro.conf.Positional[Path]
    """Where the pictures go."""
    chromium: str = shutil.which("chromium") or "chromium"


def main(arguments: Arguments) -> None:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        report(browser, arguments)
        panel(browser, arguments)
        preview(browser, arguments)
        browser.close()


def report(browser: Any, arguments: Arguments) -> None:
    for name, width, height, scheme in (("report", 1100, 1250, "light"), ("report_dark", 400, 1200, "dark")):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.goto((arguments.run / "report.html").absolute().as_uri())
        page.wait_for_timeout(1000)
        keep(page, arguments.folder / f"{name}.png")
        if name == "report":
            page.locator("#scene").scroll_into_view_if_needed()
            page.wait_for_timeout(500)
            keep(page, arguments.folder / "report_scene.png")
        context.close()


def panel(browser: Any, arguments: Arguments) -> None:
    viewer = [str(Path(sys.executable).parent / "ns-viewer"), "--load-config", str(arguments.run / "config.yml")]
    with program([*viewer, "--viewer.websocket-port", str(PORT)]):
        page = visit(browser)
        page.get_by_role("tab", name="Self-calibration").click(timeout=60_000)
        page.get_by_label("Pair graph by residual", exact=True).check(force=True)
        page.wait_for_timeout(6000)
        keep(page, arguments.folder / "panel.png")
        page.get_by_label("Colour by", exact=True).click()
        page.get_by_role("option", name="calibrated confidence").click()
        page.wait_for_timeout(6000)
        keep(page, arguments.folder / "panel_confidence.png")
        page.close()


def preview(browser: Any, arguments: Arguments) -> None:
    photographs = Path(__file__).parents[1] / "examples" / "tabletop" / "images"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--output", f"{folder}/out", "--cache", f"{folder}/cache", "--long-side", "112", "--no-lora"]
        command = [str(Path(sys.executable).parent / "ns-lora3d"), "calibrate", str(photographs), *options]
        with program([*command, "--preview", "--preview-port", str(PORT)]):
            page = visit(browser)
            page.get_by_text("robust alignment").first.wait_for(timeout=300_000)
            page.wait_for_timeout(2500)
            keep(page, arguments.folder / "preview.png")
            page.close()


@contextmanager
def program(command: list[str]) -> Iterator[None]:
    """A program that serves a page at PORT."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                    break
            time.sleep(0.2)
        time.sleep(1.0)
        yield
    finally:
        running.kill()
        running.wait()


def visit(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"http://localhost:{PORT}")
    page.wait_for_timeout(4000)
    return page


def keep(page: Any, path: Path) -> None:
    """Store what is on the page with few colours."""
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
