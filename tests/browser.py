"""A headless Chromium for tests of what people look at; tests skip with a reason where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of the system, named by $CHROMIUM or found on PATH, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        # Without a user namespace, as in most containers, Chromium's sandbox cannot start.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def collect_errors(page: Any, allowed: tuple[str, ...] = ()) -> list[str]:
    """A list that fills with the page's console errors, those that contain an allowed text left out."""
    errors: list[str] = []

    def console(message: Any) -> None:
        if message.type == "error" and not any(text in message.text for text in allowed):
            errors.append(message.text)

    page.on("console", console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors
