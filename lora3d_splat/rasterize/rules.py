"""What differs between gsplat's releases: a CPU renders as the installed gsplat would on a GPU."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from lora3d_splat.errors import InputError


@dataclass(frozen=True)
class Rules:
    """The image formation of one release line of gsplat where it differs from another's."""

    release: str
    """major.minor"""
    alpha_max: float
    """alphas are clamped to this value"""
    square_radius: bool
    """True: one radius, three standard deviations of the longer axis, whose square also cuts the tile lists. False: a
    radius per image axis that reaches to alpha = 1/255 and cuts nothing; fainter Gaussians are culled."""
    compensation_min: float
    """least opacity factor of the antialiased mode"""


RULES = {
    "1.4": Rules("1.4", alpha_max=0.999, square_radius=True, compensation_min=0.0),
    "1.5": Rules("1.5", alpha_max=0.999, square_radius=False, compensation_min=0.0),
    "1.6": Rules("1.6", alpha_max=0.99, square_radius=False, compensation_min=0.005),
}
DEFAULT = "1.4"
"""What nerfstudio 1.1.5 pins; used where no gsplat is installed."""

_chosen: str | None = None


def set_rules(release: str | None) -> None:
    """Render by the rules of a release line ("1.4", "1.5", "1.6"); None returns to those of the installed gsplat."""
    global _chosen
    if release is not None and release not in RULES:
        raise InputError(f"rules of gsplat {release}", " or ".join(RULES), "pass None for the installed release")
    _chosen = release


def get_rules() -> Rules:
    """The rules of the next call."""
    return RULES[_chosen or release_line(_installed())]


def release_line(version: str) -> str:
    """The newest known release line that is not newer than a version such as 1.5.3."""
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    known = [line for line in RULES if [int(part) for part in line.split(".")] <= parts]
    return known[-1] if known else DEFAULT


def _installed() -> str:
    try:
        return importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return DEFAULT
