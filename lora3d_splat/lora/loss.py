"""The confidence-weighted, scale-normalised regression loss (DUSt3R; LoRA3D Eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_splat.networks.base import PairOutput
from lora3d_splat.records import PseudoLabels

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class LabelBatch:
    """Targets of B pairs of equal shapes, reference camera frames."""

    points_reference: Tensor
    """(B, H1, W1, 3)"""
    valid_reference: Tensor
    """(B, H1, W1) bool"""
    points_other: Tensor
    """(B, H2, W2, 3)"""
    valid_other: Tensor
    """(B, H2, W2) bool"""

    @staticmethod
    def stack(labels: Sequence[PseudoLabels], device: torch.device | str = "cpu") -> LabelBatch:
        """A batch of pseudo labels on the device, points in float32."""
        return LabelBatch(
            torch.stack([label.points_reference for label in labels]).to(device, torch.float32),
            torch.stack([label.valid_reference for label in labels]).to(device),
            torch.stack([label.points_other for label in labels]).to(device, torch.float32),
            torch.stack([label.valid_other for label in labels]).to(device),
        )


def confidence_loss(output: PairOutput, labels: LabelBatch, alpha: float = 0.2) -> Tensor:
    """Mean of C * ||X / z - X~ / z~|| - alpha log C over the valid pixels of each side, the two sides added.

    z is, per pair, the mean distance to the reference camera over the valid pixels of both maps, so the loss does not
    see scale. For a fixed error its minimum lies at C = alpha / error. Invalid pixels have no effect at all.
    """
    valid = (labels.valid_reference, labels.valid_other)
    predicted = _normalised((output.points_reference, output.points_other), valid)
    target = _normalised((labels.points_reference, labels.points_other), valid)
    confidence = (output.confidence_reference, output.confidence_other)
    sides = zip(predicted, target, confidence, valid, strict=True)
    return torch.stack([_side(*side, alpha) for side in sides]).sum()


def _normalised(points: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Both maps over their common mean distance; invalid points become zero before any arithmetic touches them."""
    kept = [torch.where(mask[..., None], side, 0.0) for side, mask in zip(points, valid, strict=True)]
    total = sum(torch.linalg.vector_norm(side, dim=-1).sum(dim=(1, 2)) for side in kept)
    count = sum(mask.sum(dim=(1, 2)) for mask in valid)
    scale = (total / torch.clamp(torch.as_tensor(count), min=1)).clamp(min=SMALLEST_SCALE)
    return [side / scale[:, None, None, None] for side in kept]


def _side(predicted: Tensor, target: Tensor, confidence: Tensor, valid: Tensor, alpha: float) -> Tensor:
    error = torch.linalg.vector_norm(predicted - target, dim=-1)
    confidence = torch.where(valid, confidence, 1.0)  # log 1 = 0, and the error of an invalid pixel is 0
    return (confidence * error - alpha * confidence.log()).sum() / valid.sum().clamp(min=1)
