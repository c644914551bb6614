"""Settings of the alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError
from .robust import Kernel

FOCAL_MODES = ("shared", "per-camera", "per-view", "exif")


@dataclass(frozen=True)
class AlignmentConfig:
    """How the pair predictions become one scene."""

    robust: Kernel = "geman-mcclure"
    """geman-mcclure calibrates the confidence while aligning (LoRA3D); huber bends only small residuals; none keeps
    the network's own confidence (plain)."""
    residual: Literal["pointmap", "reprojection"] = "pointmap"
    """pointmap: distance of aligned and predicted points; reprojection: their distance in the reference picture."""
    depth_weight: float = 0.25
    """How much a residual along the pixel's ray counts against one across it, since networks err more in depth than in
    direction; 1 is LoRA3D's norm, and what the plain alignment always uses."""
    focal: str = "shared"
    """shared (one camera), per-camera (told apart by EXIF and size), per-view, exif (fixed to EXIF), or a fixed VALUE
    in photograph pixels."""
    steps: int = 60
    """Largest number of Gauss-Newton steps; the solver stops earlier when the objective no longer falls."""
    settle_steps: int = 12
    """Steps over which the robust kernel closes in from wide to its final width mu; mu is fixed from then on."""
    mu_relative: float = 0.01
    """Residual, as a fraction of the median depth, at which a pixel keeps a quarter of its confidence."""
    mu_spread: float = 1.0
    """Lower bound of that residual as a fraction of the median one: weak networks keep voters."""
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
    parallax_doubt: float = 0.5
    """The same as a fraction of what the two orders of a pair typically disagree by: less is lost in their error ..."""
    parallax_ceiling: float = 0.02
    """... but this extent always counts, however weak the network is."""

    def __post_init__(self) -> None:
        for name, choices in (("robust", get_args(Kernel)), ("residual", ("pointmap", "reprojection"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}", " or ".join(choices), "choose one of them")
        if self.focal not in FOCAL_MODES:
            accepted = ", ".join(FOCAL_MODES) + " or a positive number of photograph pixels"
            _positive_number("focal", self.focal, accepted)
        for name in ("steps", "settle_steps", "samples_per_view"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", "a whole number of at least 1", "raise it")
        for name in ("mu_relative", "depth_weight", "pair_scale", "disagreement_limit", "residual_limit"):
            _positive_number(name, getattr(self, name), "a positive number")

    @property
    def fixed_focal(self) -> float | None:
        """The focal VALUE in photograph pixels, None where the focal is a mode."""
        return None if self.focal in FOCAL_MODES else float(self.focal)


def _positive_number(name: str, value: str | float, accepted: str) -> None:
    try:
        positive = float(value) > 0
    except ValueError:
        positive = False
    if not positive:
        raise InputError(f"{name}={value!r}", accepted, "correct the setting")
