"""Settings of the alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError


@dataclass(frozen=True)
class AlignmentConfig:
    """How the pair predictions become one scene."""

    robust: Literal["geman-mcclure", "none"] = "geman-mcclure"
    """geman-mcclure calibrates the confidence while aligning (LoRA3D); none keeps the network's own (plain)."""
    focal: str = "shared"
    """shared (one camera), per-view, exif (fixed to EXIF), or a fixed VALUE in photograph pixels."""
    steps: int = 60
    """Largest number of Gauss-Newton steps; the solver stops earlier when the objective no longer falls."""
    reweight_every: int = 1
    """Steps between refreshes of the robust weights; one Gauss-Newton step goes as far as tens of gradient steps."""
    mu_relative: float = 0.01
    """Residual, as a fraction of the median depth, at which a pixel keeps a quarter of its confidence."""
    mu_spread: float = 0.5
    """Lower bound of that residual as a fraction of the plain alignment's median one: weak networks keep voters."""
    samples_per_view: int = 800
    """Pixels per view, on a regular grid, that drive poses and focals; depths and weights are dense in the end."""
    pair_scale: float = 0.5
    """The geometric mean of the pair scales, which fixes the scene's unit (DUSt3R: 0.5)."""
    disagreement_limit: float = 0.5
    """A view is left out when even its best pair's two orders disagree by more than this share of the median depth."""
    residual_limit: float = 0.5
    """A view is left out when its median residual after alignment exceeds this fraction of the median depth."""
    confident_fraction: float = 0.01
    """A view is left out when fewer of its pixels than this fraction reach the confidence floor."""
    parallax_limit: float = 1e-3
    """Smallest extent of the camera centres, as a fraction of the median depth, that counts as parallax."""

    def __post_init__(self) -> None:
        if self.robust not in ("geman-mcclure", "none"):
            raise InputError(f"robust={self.robust!r}", "geman-mcclure or none", "choose one of the two")
        if self.focal not in ("shared", "per-view", "exif"):
            _positive_number("focal", self.focal, "shared, per-view, exif or a positive number of photograph pixels")
        for name in ("steps", "reweight_every", "samples_per_view"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", "a whole number of at least 1", "raise it")
        for name in ("mu_relative", "pair_scale", "disagreement_limit", "residual_limit"):
            _positive_number(name, getattr(self, name), "a positive number")

    @property
    def fixed_focal(self) -> float | None:
        """The focal VALUE in photograph pixels, None where the focal is a mode."""
        return None if self.focal in ("shared", "per-view", "exif") else float(self.focal)


def _positive_number(name: str, value: str | float, accepted: str) -> None:
    try:
        positive = float(value) > 0
    except ValueError:
        positive = False
    if not positive:
        raise InputError(f"{name}={value!r}", accepted, "correct the setting")
