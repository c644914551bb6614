"""Views, depths and predictions carried to the pinhole pictures that a lens of known distortion leaves behind.

Tracks find the distortion; from then on everything is done with pinhole cameras and straightened pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from ...geometry.lens import radial_of_slopes
from ...images.straighten import notable, source_pixels, straight_view
from ...records import AlignedScene, ImagePair, PairPrediction, SparseScene, View


@dataclass(frozen=True)
class StraightPrediction:
    """Stands in for a `PairPrediction` of straightened views: each pixel has what its place as taken has."""

    pair: ImagePair
    taken: PairPrediction
    reference: Tensor
    """(H_ref, W_ref) flat index of the pixel as taken"""
    other: Tensor
    """(H_other, W_other)"""

    @property
    def points_reference(self) -> Tensor:
        """As in PairPrediction, as the other fields are."""
        return self.taken.points_reference.flatten(0, 1)[self.reference]

    @property
    def confidence_reference(self) -> Tensor:
        return self.taken.confidence_reference.flatten()[self.reference]

    @property
    def points_other(self) -> Tensor:
        return self.taken.points_other.flatten(0, 1)[self.other]

    @property
    def confidence_other(self) -> Tensor:
        return self.taken.confidence_other.flatten()[self.other]


def lens_radials(views: Sequence[View], sparse: SparseScene) -> tuple[float, ...]:
    """Per view the distortion (`View.radial`) that tracks found, the median's where they do not place the view.

    Zero where it would not be seen.
    """
    known = {
        index: radial_of_slopes(float(sparse.radial[index]), float(sparse.focal[index]), views[index])
        for index, placed in enumerate(sparse.placed) if placed
    }  # fmt: skip
    usual = median(known.values())
    found = [known.get(index, usual) for index in range(len(views))]
    return tuple(radial if notable(view, radial) else 0.0 for view, radial in zip(views, found, strict=True))


def straightened(
    views: Sequence[View], scene: AlignedScene, predictions: Sequence[PairPrediction], radials: Sequence[float]
) -> tuple[tuple[View, ...], AlignedScene, tuple[PairPrediction, ...]]:
    """Everything that lies in the pixels of the views as taken, in those of the pinhole pictures."""
    places = [_flat_index(view, radial) for view, radial in zip(views, radials, strict=True)]
    depth = tuple(values.flatten()[place] for values, place in zip(scene.depth, places, strict=True))
    moved = tuple(
        StraightPrediction(item.pair, item, places[item.pair.reference], places[item.pair.other])
        for item in predictions
    )
    straight = tuple(
        straight_view(view, radial) if radial else view for view, radial in zip(views, radials, strict=True)
    )
    return straight, replace(scene, depth=depth), moved  # type: ignore[return-value]


def _flat_index(view: View, radial: float) -> Tensor:
    """(H, W) flat index of the pixel as taken that each straight one shows; outside, the edge goes on."""
    height, width = view.size
    column, row = source_pixels(view, view.affine, view.size, radial).floor().long().unbind(-1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
