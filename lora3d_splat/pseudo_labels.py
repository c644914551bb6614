"""Pseudo labels: the trusted part of the aligned scene in each pair's reference camera (LoRA3D Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .confidence import trusted_threshold
from .errors import InputError
from .geometry.projection import unproject
from .geometry.transforms import invert_rigid, transform_points
from .records import AlignedScene, CalibratedConfidence, PseudoLabels, View


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Which parts of the aligned scene may teach the network."""

    cutoff: float | None = None
    """Calibrated log-confidence above which a pixel is trusted; None takes the network's own, else ranks."""
    keep: float = 0.7
    """Share of the pair predictions that is trusted when they are judged by rank."""
    agreement: float = 1.0
    """A second judge beside confidence: share of the pixels that may teach, those on which the pairs agree best."""
    minimum_fraction: float = 0.05
    """Fine-tuning is refused when a smaller share of all pair pixels is trusted."""
    minimum_pair_fraction: float = 0.01
    """A pair with a smaller trusted share on either side gives no label."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep={self.keep}", "a share above 0 and at most 1", "start from 0.7")
        if not 0 < self.agreement <= 1:
            raise InputError(f"agreement={self.agreement}", "a share above 0 and at most 1", "start from 0.7")
        for name in ("minimum_fraction", "minimum_pair_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", "a share from 0 to below 1", "correct the setting")


def make_pseudo_labels(
    views: Sequence[View],
    scene: AlignedScene,
    confidence: CalibratedConfidence,
    config: PseudoLabelConfig | None = None,
    cutoff: float | None = None,
) -> tuple[PseudoLabels, ...]:
    """Labels of every ordered pair of the scene that has enough trusted pixels; `cutoff` is the network's own.

    The label is T_i^-1 T_j D_j (u / f_j, v / f_j, 1) for pixels of view j with w_j,i above the cut-off; validity
    belongs to the ordered pair, since the weights do, and moving things drop out because they never agree.
    """
    config = config or PseudoLabelConfig()
    threshold = trusted_threshold(confidence, config.cutoff if config.cutoff is not None else cutoff, config.keep)
    agreed = _agreed(confidence, config.agreement)
    clouds = {index: _points_camera(scene, index) for index in range(len(views)) if scene.registered[index]}
    labels = [_label(scene, clouds, confidence, position, threshold, agreed) for position in range(len(scene.pairs))]
    enough = config.minimum_pair_fraction
    return tuple(
        label
        for label in labels
        if min(float(label.valid_reference.float().mean()), float(label.valid_other.float().mean())) >= enough
    )


def degenerate(labels: Sequence[PseudoLabels], pair_count: int, config: PseudoLabelConfig) -> str | None:
    """Why these labels must not teach the network, or None where they may; `pair_count` counts the scene's pairs."""
    if not labels:
        return f"none of the {pair_count} pairs has enough trusted pixels to learn from"
    shares = [
        (float(label.valid_reference.float().mean()), float(label.valid_other.float().mean())) for label in labels
    ]
    fraction = sum(sum(pair) / 2 for pair in shares) / max(pair_count, 1)
    if fraction < config.minimum_fraction:
        return (
            f"only {fraction:.1%} of the pair predictions are trusted (at least {config.minimum_fraction:.0%} needed): "
            "the photographs disagree too much to teach the network"
        )
    return None


def _label(
    scene: AlignedScene,
    clouds: dict[int, Tensor],
    confidence: CalibratedConfidence,
    position: int,
    threshold: float,
    agreed: Sequence[Tensor],
) -> PseudoLabels:
    pair = scene.pairs[position]
    weights_reference, weights_other = confidence.pair_weights[position]
    T_reference_other = invert_rigid(scene.T_world_camera[pair.reference]) @ scene.T_world_camera[pair.other]
    cloud = clouds[pair.other]
    points_other = transform_points(T_reference_other, cloud.flatten(0, 1)).view_as(cloud)
    return PseudoLabels(
        pair,
        clouds[pair.reference].float(),
        (weights_reference > threshold) & (scene.depth[pair.reference] > 0) & agreed[pair.reference],
        points_other.float(),
        (weights_other > threshold) & (scene.depth[pair.other] > 0) & agreed[pair.other],
    )


def _agreed(confidence: CalibratedConfidence, share: float) -> list[Tensor]:
    """Per view (H, W) bool: the share of all pixels that lost least confidence when the pairs were aligned.

    What the network claimed cancels: calibrated over raw confidence is 1 / (1 + error / mu)^2, averaged over the pairs.
    """
    views = zip(confidence.view_confidence, confidence.view_raw_confidence, strict=True)
    kept = [calibrated.float() / raw.float().clamp_min(1e-6) for calibrated, raw in views]
    if share >= 1:
        return [torch.ones_like(each, dtype=torch.bool) for each in kept]
    values = torch.cat([each.flatten() for each in kept])
    values = values[:: values.numel() // 2_000_000 + 1]
    least = values.kthvalue(max(1, round((1 - share) * values.numel()))).values
    return [each > least for each in kept]


def _points_camera(scene: AlignedScene, index: int) -> Tensor:
    """(H, W, 3) float64 points of a view in its own camera's frame."""
    return unproject(scene.depth[index].to(torch.float64), scene.focal[index], scene.principal_point[index])
