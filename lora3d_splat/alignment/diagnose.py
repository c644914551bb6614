"""Readable reasons for views that cannot be placed and for scenes that cannot be built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import AlignmentError
from ..records import View
from .config import AlignmentConfig
from .initialise import AGREEING, Edge
from .observations import Observations
from .robust import masked_quantile
from .solve import Problem, State

Tree = Sequence[tuple[Edge, int, int]]


def heard_pairs(observations: Observations, config: AlignmentConfig) -> list[bool]:
    """Which pairs take part: those of which the network is sure of enough pixels to be held by them."""
    voting = (observations.confidence > 0).sum(1).view(-1, 2).sum(1)
    real = observations.real[observations.view].view(-1, 2).sum(1)
    return (voting > config.confident_fraction * real.clamp_min(1)).tolist()


def silent_views(observations: Observations, heard: Sequence[bool], config: AlignmentConfig) -> dict[int, str]:
    """Views of which pairs were predicted, but none that takes part."""
    owners = observations.view.view(-1, 2).tolist()
    reached = {view for pair, use in zip(owners, heard, strict=True) if use for view in pair}
    silent = {view for pair in owners for view in pair} - reached
    blocks = {index: torch.nonzero(observations.view == index)[:, 0] for index in sorted(silent)}
    return {
        index: _unsure_sentence(_confident_share(observations, index, mine), config) for index, mine in blocks.items()
    }


def lost_views(
    names: Sequence[str], observations: Observations, edges: Sequence[Edge], tree: Tree, config: AlignmentConfig
) -> dict[int, str]:
    """Views that cannot be placed whatever the solver does, each with a sentence."""
    reached = {view for _, old, new in tree for view in (old, new)}
    groups = components(len(names), [edge for edge in edges if edge.disagreement <= config.disagreement_limit])
    apart = {
        index: _group_sentence(names, group, len(reached))
        for group in groups
        for index in group
        if index not in reached
    }
    return apart | _unusable_views(names, observations, edges, config)


def components(count: int, edges: Sequence[Edge]) -> list[list[int]]:
    """The groups of views that the edges connect, each sorted."""
    group = list(range(count))
    for edge in edges:
        low, high = sorted(group[view] for view in edge.views)
        group = [low if label == high else label for label in group]
    return [[view for view in range(count) if group[view] == label] for label in sorted(set(group))]


def _unusable_views(
    names: Sequence[str], observations: Observations, edges: Sequence[Edge], config: AlignmentConfig
) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for index in range(len(names)):
        mine = [edge for edge in edges if index in edge.views]
        own = 2 * torch.nonzero(observations.view[::2] == index)[:, 0]
        blocks = own if len(own) else torch.nonzero(observations.view == index)[:, 0]
        if not mine:
            reasons[index] = "no pair with another view was predicted"
        elif (share := _confident_share(observations, index, blocks)) < config.confident_fraction:
            reasons[index] = _unsure_sentence(share, config)
        else:
            best = min(mine, key=lambda edge: edge.disagreement)
            if best.disagreement > config.disagreement_limit:
                partner = best.views[0] if best.views[1] == index else best.views[1]
                reasons[index] = (
                    f"it fits no other view: the predictions of its best pair (with {names[partner]}) disagree by "
                    f"{best.disagreement:.0%} of the median depth (limit {config.disagreement_limit:.0%})"
                )
    return reasons


def misfit_views(names: Sequence[str], problem: Problem, state: State) -> dict[int, str]:
    """Views whose predictions stay far from the aligned scene; the better pixels judge, so outliers never suffice."""
    observations, limit = problem.observations, problem.config.residual_limit
    residual = state.residual(problem.yardstick(state.depth))
    typical = problem.model.typical_size(observations, state.depth)
    reasons: dict[int, str] = {}
    for index in range(len(names)):
        mine = observations.view == index
        votes = observations.confidence[mine].flatten()
        relative = float(masked_quantile(residual[mine].flatten(), votes, AGREEING) / typical)
        if not relative <= limit:
            reasons[index] = (
                f"it does not fit the other views: after alignment {1 - AGREEING:.0%} of its pixels are off by more "
                f"than {relative:.0%} of its depth (limit {limit:.0%})"
            )
    return reasons


def check_parallax(T_world_view: Tensor, median_depth: float, edges: Sequence[Edge], config: AlignmentConfig) -> None:
    """Raise AlignmentError where all cameras stand in one place: depth would be the network's guess alone.

    Cameras also stand in one place when their distances are lost in what the predictions disagree by.
    """
    centres = T_world_view[:, :3, 3]
    extent = float((centres - centres.mean(0)).norm(dim=-1).max()) / max(median_depth, 1e-12)
    doubt = float(torch.tensor([edge.disagreement for edge in edges]).median())
    needed = max(config.parallax_limit, min(config.parallax_doubt * doubt, config.parallax_ceiling))
    if extent < needed:
        raise AlignmentError(
            f"no parallax: all cameras lie within {extent:.2%} of the median depth of each other, and the predictions "
            f"disagree by {doubt:.2%}",
            f"camera positions that differ by at least {needed:.2%} of the median depth",
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


def _unsure_sentence(share: float, config: AlignmentConfig) -> str:
    return f"the network is sure of only {share:.1%} of its pixels ({config.confident_fraction:.1%} needed)"


def _group_sentence(names: Sequence[str], group: Sequence[int], largest: int) -> str:
    reason = f"no consistent pair connects it to the {largest} views of the largest group"
    if len(group) == 1:
        return reason
    listed = ", ".join(names[view] for view in group)
    return f"it belongs to a separate group of {len(group)} views ({listed}); {reason}"


def _confident_share(observations: Observations, index: int, blocks: Tensor) -> float:
    voting = (observations.confidence[blocks] > 0).sum()
    return float(voting / (observations.real[index] * len(blocks)).clamp_min(1))
