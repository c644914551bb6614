"""How held-out views are scored, by name; every file of scores says which, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig

ProtocolName = Literal["standard", "instantsplat"]

MEAN = "views rendered from their registered pose"
MEAN_ALIGNED = "after photometric pose alignment on the scored photograph itself, Gaussians frozen"
MEAN_HALF = (
    "each half of a photograph scored after alignment of the pose on its other half alone, Gaussians frozen; "
    "mean of both halves"
)


@dataclass(frozen=True)
class Protocol:
    """A way to score."""

    name: ProtocolName
    definition: str
    pose_alignment: PoseAlignmentConfig | None
    """of held-out cameras; None means what is configured"""


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "standard": Protocol("standard", "held-out views by the split, scored raw, aligned, and aligned by halves", None),
    "instantsplat": Protocol(
        "instantsplat",
        "InstantSplat's test poses: 500 Adam steps on the scored photograph, L1 where something is rendered, rates "
        "0.003 and 0.001, weight decay 1e-4, cosine to 1e-4, best pose kept; `--eval-mode instantsplat` is its split. "
        "Differences: poses start where the view was registered, not between the training poses; LPIPS inputs are "
        "scaled to [-1, 1]",
        PoseAlignmentConfig(steps=500, levels=(1,), patience=500, weight_decay=1e-4, ssim_weight=0.0),
    ),
}


def pose_alignment(name: ProtocolName, configured: PoseAlignmentConfig) -> PoseAlignmentConfig:
    """The alignment of held-out cameras that a protocol asks for."""
    return PROTOCOLS[name].pose_alignment or configured
