"""What the solver sees: sampled pixels of every (pair, side), padded to one dense batch.

A *block* is one side of one ordered pair; blocks 2p and 2p + 1 are the reference and the other side of pair p. Views of
different sizes contribute grids of about equally many pixels; padding has confidence zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import pixel_grid, principal_point_of
from ..records import ImagePair, PairPrediction, View


@dataclass(frozen=True)
class Observations:
    """V views, S sampled pixels per view, B = 2 P blocks; float64."""

    pixels: Tensor
    """(V, S, 2) network pixels relative to the principal point"""
    points: Tensor
    """(B, S, 3) predicted points in the frame of the block's pair, network units"""
    confidence: Tensor
    """(B, S) masked log-confidence C; zero where padded or below the floor"""
    view: Tensor
    """(B,) the view whose pixels the block predicts"""

    @property
    def pair(self) -> Tensor:
        """(B,) the pair of each block."""
        return torch.arange(len(self.view)) // 2

    @property
    def view_count(self) -> int:
        return len(self.pixels)

    @property
    def pair_count(self) -> int:
        return len(self.view) // 2

    def reference_blocks(self) -> Tensor:
        """(P,) blocks whose points lie in their own view's camera frame."""
        return torch.arange(0, len(self.view), 2)

    def sides(self, pair_values: Tensor) -> Tensor:
        """Concatenate the two sides of each pair: (B, S, ...) -> (P, 2 S, ...)."""
        return pair_values.unflatten(0, (-1, 2)).flatten(1, 2)


def sample_grid(size: tuple[int, int], samples: int) -> Tensor:
    """Flat indices of about `samples` pixels on a regular grid of an (H, W) image."""
    height, width = size
    stride = max(1, math.ceil(math.sqrt(height * width / samples)))
    rows = torch.arange(min(stride // 2, height - 1), height, stride)
    columns = torch.arange(min(stride // 2, width - 1), width, stride)
    return (rows[:, None] * width + columns).flatten()


def centred_pixels(view: View) -> Tensor:
    """(H * W, 2) pixel centres relative to the principal point, network pixels."""
    grid = pixel_grid(*view.size, dtype=torch.float64).flatten(0, 1)
    return grid - torch.tensor(principal_point_of(view), dtype=torch.float64)


def observe(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    confidences: Sequence[tuple[Tensor, Tensor]],
    samples: int,
) -> Observations:
    """Gather the sampled pixels; `confidences` are the masked log-confidences of each prediction's two sides."""
    grids = [sample_grid(view.size, samples) for view in views]
    width = max(len(grid) for grid in grids)
    pixels = torch.stack([_pad(centred_pixels(view)[grid], width) for view, grid in zip(views, grids, strict=True)])
    points, confidence, owners = [], [], []
    for prediction, sides in zip(predictions, confidences, strict=True):
        for view, cloud, values in zip(_views_of(prediction.pair), _clouds_of(prediction), sides, strict=True):
            points.append(_pad(cloud.reshape(-1, 3)[grids[view]].double(), width))
            confidence.append(_pad(values.reshape(-1)[grids[view]].double(), width))
            owners.append(view)
    return Observations(pixels, torch.stack(points), torch.stack(confidence), torch.tensor(owners))


def _views_of(pair: ImagePair) -> tuple[int, int]:
    return pair.reference, pair.other


def _clouds_of(prediction: PairPrediction) -> tuple[Tensor, Tensor]:
    return prediction.points_reference, prediction.points_other


def _pad(rows: Tensor, count: int) -> Tensor:
    """Append zero rows up to `count`."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
