"""Readable reasons for views that cannot be placed and for scenes that cannot be built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import AlignmentError
from ..records import View
from .config import AlignmentConfig
from .initialise import Edge
from .observations import Observations
from .robust import weighted_median
from .solve import State


def unusable_views(
    views: Sequence[View], observations: Observations, edges: Sequence[Edge], config: AlignmentConfig
) -> dict[int, str]:
    """Views that cannot be placed whatever the solver does, each with a sentence."""
    reasons: dict[int, str] = {}
    for index in range(len(views)):
        mine = [edge for edge in edges if index in edge.views]
        blocks = 2 * torch.nonzero(observations.view[::2] == index)[:, 0]
        if not mine:
            reasons[index] = "no pair with another view was predicted"
        elif len(blocks) == 0:
            reasons[index] = "no pair was predicted that has it as the reference view"
        elif (share := _confident_share(observations, blocks)) < config.confident_fraction:
            reasons[index] = (
                f"the network is sure of only {share:.1%} of its pixels ({config.confident_fraction:.1%} needed)"
            )
        else:
            best = min(mine, key=lambda edge: edge.disagreement)
            if best.disagreement > config.disagreement_limit:
                partner = best.views[0] if best.views[1] == index else best.views[1]
                reasons[index] = (
                    f"it fits no other view: the two orders of its best pair (with {views[partner].file}) disagree by "
                    f"{best.disagreement:.0%} of the median depth (limit {config.disagreement_limit:.0%})"
                )
    return reasons


def unconnected_views(views: Sequence[View], reached: set[int]) -> dict[int, str]:
    """Views outside the largest group of views that pairs connect."""
    count = len(reached)
    return {
        index: f"no consistent pair connects it to the {count} views of the largest group"
        for index in range(len(views))
        if index not in reached
    }


def misfit_views(observations: Observations, state: State, config: AlignmentConfig) -> dict[int, str]:
    """Views whose predictions stay far from the aligned scene; judged by medians, so outliers alone never suffice."""
    reasons: dict[int, str] = {}
    for index in range(observations.view_count):
        mine = observations.view == index
        votes = observations.confidence[mine]
        typical = weighted_median(state.depth[index].expand_as(votes), votes)
        relative = float(weighted_median(state.residual[mine], votes) / typical)
        if not relative <= config.residual_limit:
            reasons[index] = (
                f"it does not fit the other views: its median residual after alignment is {relative:.0%} of its depth "
                f"(limit {config.residual_limit:.0%})"
            )
    return reasons


def check_parallax(T_world_view: Tensor, median_depth: float, config: AlignmentConfig) -> None:
    """Raise AlignmentError where all cameras stand in one place: depth would be the network's guess alone."""
    centres = T_world_view[:, :3, 3]
    extent = float((centres - centres.mean(0)).norm(dim=-1).max()) / max(median_depth, 1e-12)
    if extent < config.parallax_limit:
        raise AlignmentError(
            f"no parallax: all cameras lie within {extent:.2%} of the median depth",
            f"camera positions that differ by at least {config.parallax_limit:.2%} of the median depth",
            "take photographs from different positions instead of turning on the spot",
        )


def too_few_views(views: Sequence[View], reasons: Sequence[str | None]) -> AlignmentError:
    """The error for a scene in which fewer than two views fit together; names each view with its reason."""
    named = "; ".join(f"{view.file}: {reason}" for view, reason in zip(views, reasons, strict=True) if reason)
    return AlignmentError(
        f"fewer than two views that fit together ({named})",
        "at least two photographs whose pictures overlap",
        "add photographs between the existing ones, so that neighbours share at least a third of the picture",
    )


def _confident_share(observations: Observations, blocks: Tensor) -> float:
    real = (observations.points[blocks] != 0).any(dim=-1).sum().clamp_min(1)
    return float((observations.confidence[blocks] > 0).sum() / real)
