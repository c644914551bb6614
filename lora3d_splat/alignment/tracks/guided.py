"""Matches found once the cameras are known: what was too ambiguous to be believed alone is settled by the geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...matching import FEWEST, Features, PairMatches
from ...records import View
from .problem import Rig, slopes_of
from .views import diagonals, reduction, to_image

PIXELS = 3.0
"""Distance to the epipolar line that a match may have, pixels of the photograph as features were sought in it."""


def guided_matches(
    views: Sequence[View], features: Sequence[Features], rig: Rig, candidates: Sequence[PairMatches]
) -> tuple[PairMatches, ...]:
    """The candidates of pairs of placed views that the cameras allow; pairs with too few are left out."""
    found = []
    for pair in candidates:
        if not rig.placed[[pair.first, pair.second]].all():
            continue
        essential, gap = _epipolar(views, features, rig, pair)
        kept = pair.matches[gap < PIXELS * (reduction(views[pair.first]) * reduction(views[pair.second])) ** 0.5]
        if len(kept) >= FEWEST:
            one, two = (_to_slopes(views[view], rig, view) for view in (pair.first, pair.second))
            found.append(PairMatches(pair.first, pair.second, kept, two.T @ essential @ one))
    return tuple(found)


def _epipolar(
    views: Sequence[View], features: Sequence[Features], rig: Rig, pair: PairMatches
) -> tuple[np.ndarray, np.ndarray]:
    """The essential matrix (3, 3) and the Sampson distances (M,), photograph pixels of the first view."""
    turn = rig.rotation[pair.second] @ rig.rotation[pair.first].T
    x, y, z = rig.translation[pair.second] - turn @ rig.translation[pair.first]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ turn
    one, two = (
        _rays(views, features[view].pixels[pair.matches[:, side]], rig, view)
        for side, view in enumerate((pair.first, pair.second))
    )
    line, back = one @ essential.T, two @ essential
    steep = (line[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1)
    gap = np.abs((two * line).sum(1)) / np.sqrt(steep).clip(1e-30)
    return essential, gap * rig.focal[rig.group[pair.first]] * diagonals(views)[pair.first]


def _rays(views: Sequence[View], pixels: np.ndarray, rig: Rig, view: int) -> np.ndarray:
    owner = np.full(len(pixels), view)
    return np.c_[slopes_of(rig, to_image(views, pixels, owner), owner), np.ones(len(pixels))]


def _to_slopes(view: View, rig: Rig, index: int) -> np.ndarray:
    """(3, 3) homogeneous map from photograph pixels to slopes, without distortion."""
    focal = float(rig.focal[rig.group[index]] * np.hypot(view.width, view.height))
    return np.array([[1 / focal, 0, -view.width / 2 / focal], [0, 1 / focal, -view.height / 2 / focal], [0, 0, 1]])
