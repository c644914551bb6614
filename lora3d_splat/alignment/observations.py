"""What the solver sees: sampled pixels of every (pair, side), padded to one dense batch.

A *block* is one side of one ordered pair; blocks 2p and 2p + 1 are the reference and the other side of pair p. Views of
different sizes contribute grids of about equally many pixels; padding, masked pixels and points that are not finite
have confidence zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry.cameras import pixel_grid
from ..records import PairPrediction, View
from .priors import CameraPriors
from .robust import masked_log_confidence


@dataclass(frozen=True)
class Voting:
    """From raw confidence to the vote C."""

    floor: float
    """log-confidence below which a pixel never votes; 0: the network does not judge itself, all pixels count alike"""

    def votes(self, confidence: Tensor, points: Tensor, mask: Tensor | None) -> Tensor:
        """C of raw confidences (...) of points (..., 3); zero where masked or not finite."""
        vote = masked_log_confidence(confidence, self.floor) if self.floor > 0 else torch.ones_like(confidence)
        vote = torch.where(points.isfinite().all(-1) & vote.isfinite(), vote, torch.zeros_like(vote))
        return vote if mask is None else vote * mask


@dataclass(frozen=True)
class Observations:
    """V views, S sampled pixels per view, B = 2 P blocks; float64."""

    pixels: Tensor
    """(V, S, 2) network pixels relative to the principal point"""
    points: Tensor
    """(B, S, 3) predicted points in the frame of the block's pair, network units"""
    confidence: Tensor
    """(B, S) votes C; zero where nothing is known or below the floor"""
    view: Tensor
    """(B,) the view whose pixels the block predicts"""
    real: Tensor
    """(V,) number of pixels that are no padding and not masked"""

    @property
    def pair(self) -> Tensor:
        """(B,) the pair of each block."""
        return torch.arange(len(self.view), device=self.view.device) // 2

    @property
    def view_count(self) -> int:
        return len(self.pixels)

    @property
    def pair_count(self) -> int:
        return len(self.view) // 2

    def reference_blocks(self) -> Tensor:
        """(P,) blocks whose points lie in their own view's camera frame."""
        return torch.arange(0, len(self.view), 2, device=self.view.device)

    def sides(self, pair_values: Tensor) -> Tensor:
        """Concatenate the two sides of each pair: (B, S, ...) -> (P, 2 S, ...)."""
        return pair_values.unflatten(0, (-1, 2)).flatten(1, 2)

    def of(self, members: Sequence[int], positions: Sequence[int]) -> Observations:
        """The views `members`, renumbered, and the pairs at `positions`, which must be among them."""
        chosen, pairs = torch.tensor(list(members)), torch.tensor(list(positions), dtype=torch.long)
        blocks = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
        rename = torch.full((self.view_count,), -1)
        rename[chosen] = torch.arange(len(chosen))
        return Observations(
            self.pixels[chosen], self.points[blocks], self.confidence[blocks], rename[self.view[blocks]],
            self.real[chosen],
        )  # fmt: skip

    def thinned(self, samples: int) -> Observations:
        """About `samples` of each view's pixels, evenly."""
        stride = max(1, self.pixels.shape[1] // samples)
        return replace(
            self,
            pixels=self.pixels[:, ::stride],
            points=self.points[:, ::stride],
            confidence=self.confidence[:, ::stride],
        )

    def to(self, device: torch.device) -> Observations:
        """The same on another device."""
        return Observations(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def sample_grid(size: tuple[int, int], samples: int) -> Tensor:
    """Flat indices of about `samples` pixels on a regular grid of an (H, W) image."""
    height, width = size
    stride = max(1, math.ceil(math.sqrt(height * width / samples)))
    rows = torch.arange(min(stride // 2, height - 1), height, stride)
    columns = torch.arange(min(stride // 2, width - 1), width, stride)
    return (rows[:, None] * width + columns).flatten()


def centred_pixels(size: tuple[int, int], principal_point: Tensor) -> Tensor:
    """(H * W, 2) pixel centres relative to the principal point (2,), network pixels."""
    return pixel_grid(*size, dtype=torch.float64).flatten(0, 1) - principal_point


def view_mask(view: View) -> Tensor | None:
    """(H * W,) float32, 1 where the view's pixels count; None where all do."""
    return None if view.mask is None else torch.from_numpy(view.mask.copy()).flatten().float()


def observe(
    views: Sequence[View],
    predictions: Sequence[PairPrediction],
    priors: CameraPriors,
    confidence_floor: float,
    samples: int,
) -> tuple[Observations, Voting]:
    """Gather the sampled pixels, reading each prediction once, and say how confidences vote."""
    grids = [sample_grid(view.size, samples) for view in views]
    width = max(len(grid) for grid in grids)
    pixels = torch.stack(
        [
            _pad(centred_pixels(view.size, centre)[grid], width)
            for view, centre, grid in zip(views, priors.principal_point, grids, strict=True)
        ]
    )
    masks = torch.stack([_pad(_mask(view)[grid], width) for view, grid in zip(views, grids, strict=True)])
    points, confidence, owners = [], [], []
    for item in predictions:
        for view, cloud, values in sides_of(item):
            points.append(_pad(cloud.reshape(-1, 3)[grids[view]].double(), width))
            confidence.append(_pad(values.reshape(-1)[grids[view]].double(), width))
            owners.append(view)
    raw, cloud, owner = torch.stack(confidence), torch.stack(points), torch.tensor(owners)
    voting = Voting(confidence_floor)
    votes = voting.votes(raw, cloud, masks[owner])
    finite = torch.where(cloud.isfinite().all(-1, keepdim=True), cloud, torch.zeros_like(cloud))
    return Observations(pixels, finite, votes, owner, masks.sum(1)), voting


def sides_of(item: PairPrediction) -> tuple[tuple[int, Tensor, Tensor], tuple[int, Tensor, Tensor]]:
    """(view, points, raw confidence) of both sides of a prediction."""
    return (
        (item.pair.reference, item.points_reference, item.confidence_reference),
        (item.pair.other, item.points_other, item.confidence_other),
    )


def pair_votes(
    views: Sequence[View], predictions: Sequence[PairPrediction], confidence_floor: float
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The votes C (H, W) of both sides of each prediction."""
    voting, masks = Voting(confidence_floor), [view_mask(view) for view in views]

    def votes(view: int, points: Tensor, confidence: Tensor) -> Tensor:
        mask = masks[view]
        return voting.votes(confidence, points, None if mask is None else mask.view(confidence.shape))

    return tuple((votes(*first), votes(*second)) for first, second in map(sides_of, predictions))


def _mask(view: View) -> Tensor:
    mask = view_mask(view)
    return torch.ones(view.size[0] * view.size[1], dtype=torch.float64) if mask is None else mask.double()


def _pad(rows: Tensor, count: int) -> Tensor:
    """Append zero rows up to `count`."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
