"""Matches that pointmaps doubt: what a network shows at both ends of a match lies in one place, or the match is wrong.

Repeated texture matches well, and by the hundred under one epipolar geometry; where it is, only the pointmaps tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...geometry.lens import network_pixels
from ...records import PairPrediction, View

WILD = 0.4
"""Distance of the two points, over the median depth of the view, beyond which a match is wrong."""
WILD_TIMES = 8.0
"""The same over the network's own error, for networks that err more: then few matches are doubted, or none."""


def pointmap_gaps(
    views: Sequence[View], predictions: Sequence[PairPrediction], first: int, second: int, ends: Sequence[np.ndarray]
) -> np.ndarray:
    """(M,) how far apart a pair's pointmaps put both ends of each match, over the median depth.

    `ends` are photograph pixels (M, 2) in the view `first` and in the view `second`. Of the two ordered predictions the
    smaller distance counts; NaN where there is none.
    """
    pixels = {first: ends[0], second: ends[1]}
    gaps = [np.full(len(ends[0]), np.nan)]
    for item in predictions:
        sides = item.pair.reference, item.pair.other
        if set(sides) == {first, second}:
            shown = [
                _shown(views[view], cloud, pixels[view])
                for view, cloud in zip(sides, (item.points_reference, item.points_other), strict=True)
            ]
            unit = float(item.points_reference[..., 2].median())
            gaps.append((shown[0] - shown[1]).norm(dim=-1).numpy() / max(unit, 1e-12))
    return np.fmin.reduce(gaps)


def wild_gap(gaps: np.ndarray) -> float:
    """The gap beyond which a match is wrong, from the gaps of all matches, a tenth of which at least are right."""
    known = gaps[~np.isnan(gaps)]
    return max(WILD, WILD_TIMES * float(np.quantile(known, 0.1))) if len(known) else float("inf")


def _shown(view: View, cloud: Tensor, pixels: np.ndarray) -> Tensor:
    """(M, 3) points of a pointmap (H, W, 3) at photograph pixels (M, 2); NaN outside the crop."""
    column, row = network_pixels(view, torch.from_numpy(pixels)).floor().long().unbind(-1)
    height, width = cloud.shape[:2]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    points = cloud[row.clamp(0, height - 1), column.clamp(0, width - 1)].double()
    return torch.where(inside[:, None], points, torch.full_like(points, torch.nan))
