"""Versions and licences of what a result was made with."""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

PACKAGES = ("lora3d-splat", "torch", "numpy", "peft", "gsplat", "nerfstudio")
LONGEST = 60
"""Some packages put the whole text of their licence where its name belongs."""


NAMED_ELSEWHERE = {"torch": "BSD-3-Clause", "gsplat": "Apache-2.0"}
"""Packages whose own description does not name the licence that their repositories have."""


class Package(NamedTuple):
    """An installed package; None for what it does not say, or where it is absent."""

    name: str
    version: str | None
    licence: str | None


def packages() -> tuple[Package, ...]:
    """The packages that a result depends on."""
    return tuple(_package(name) for name in PACKAGES)


def _package(name: str) -> Package:
    try:
        facts = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Package(name, None, None)
    named = {key: facts[key] for key in ("License-Expression", "License") if key in facts}
    stated = named.get("License-Expression") or named.get("License") or ""
    first = next(iter(stated.strip().splitlines()), "")
    classified = [line.split(" :: ")[-1] for line in facts.get_all("Classifier") or () if line.startswith("License ::")]
    licence = first if 0 < len(first) <= LONGEST else next(iter(classified), NAMED_ELSEWHERE.get(name))
    return Package(name, metadata.version(name), licence)
