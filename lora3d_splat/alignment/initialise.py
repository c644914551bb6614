"""The start: a spanning tree over the views, grown from the pair in which the network is surest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import focal_from_pointmap
from ..geometry.procrustes import robust_similarity
from ..geometry.transforms import invert_rigid, rigid, transform_points
from ..records import ImagePair
from .observations import Observations
from .residuals import SMALLEST_DEPTH
from .variables import FocalModes, Variables

AGREEMENT_SCALE = 0.1
"""Disagreement of the two orders (fraction of depth) that halves an edge's score."""
ONE_ORDER_DISAGREEMENT = 0.2
"""What is assumed of an edge of which only one order was predicted."""


@dataclass(frozen=True)
class Edge:
    """An unordered pair of views with what speaks for it."""

    views: tuple[int, int]
    pairs: tuple[int, ...]
    """positions of its one or two ordered pairs"""
    score: float
    disagreement: float
    """median distance between the two orders' pointmaps after a similarity fit, over the median depth"""


def score_edges(observations: Observations, pairs: list[ImagePair]) -> list[Edge]:
    """All edges, best first: mean log-confidence of both sides times the agreement of the two orders."""
    position = {(pair.reference, pair.other): index for index, pair in enumerate(pairs)}
    keys = sorted({(min(key), max(key)) for key in position})
    both = [key for key in keys if key[::-1] in position and key in position]
    disagreement = dict(zip(both, _order_disagreement(observations, position, both), strict=True))
    sureness = observations.sides(observations.confidence).mean(dim=1)
    edges = []
    for key in keys:
        members = tuple(position[order] for order in (key, key[::-1]) if order in position)
        gap = disagreement.get(key, ONE_ORDER_DISAGREEMENT)
        score = float(sureness[list(members)].mean()) / (1 + gap / AGREEMENT_SCALE)
        edges.append(Edge(key, members, score, gap))
    return sorted(edges, key=lambda edge: -edge.score)


def _order_disagreement(
    observations: Observations, position: dict[tuple[int, int], int], keys: list[tuple[int, int]]
) -> list[float]:
    if not keys:
        return []
    one = torch.tensor([position[key] for key in keys])
    two = torch.tensor([position[key[::-1]] for key in keys])
    # The reference side of one order and the other side of the reverse order show the same view.
    source, target = (torch.stack([2 * one, 2 * one + 1], 1), torch.stack([2 * two + 1, 2 * two], 1))
    clouds = [observations.points[blocks].flatten(1, 2) for blocks in (source, target)]
    votes = (observations.confidence[source] * observations.confidence[target]).flatten(1, 2)
    depth = masked_median(observations.points[2 * two][..., 2], observations.confidence[2 * two]).nan_to_num(1.0)
    _, residual = robust_similarity(*clouds, votes, tolerance=0.02 * depth)
    return (masked_median(residual, votes) / depth).nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()


def grow_tree(edges: list[Edge]) -> list[tuple[Edge, int, int]]:
    """The largest connected tree of best edges as (edge, placed view, new view) in the order of placing."""
    best: list[tuple[Edge, int, int]] = []
    seen: set[int] = set()
    for root in edges:
        if root.views[0] in seen:
            continue
        placed, tree = {root.views[0]}, []
        while candidates := [edge for edge in edges if len(placed & set(edge.views)) == 1]:
            edge = root if not tree else candidates[0]
            old, new = edge.views if edge.views[0] in placed else edge.views[::-1]
            tree.append((edge, old, new))
            placed.add(new)
        seen |= placed
        best = max(best, tree, key=len)
    return best


def initial_variables(
    observations: Observations,
    pairs: list[ImagePair],
    tree: list[tuple[Edge, int, int]],
    modes: FocalModes,
    scale: float,
) -> tuple[Variables, Tensor]:
    """Variables and depths (V, S) from a tree that reaches every view."""
    clouds = _place_clouds(observations, pairs, tree, scale)
    depth_unit = scale * masked_median(observations.points[0::2, :, 2], observations.confidence[0::2]).nanmedian()
    tolerance = 0.02 * depth_unit
    target = clouds[observations.view]
    fits, _ = robust_similarity(
        observations.sides(observations.points),
        observations.sides(target),
        observations.sides(observations.confidence),
        tolerance,
    )
    poses = _view_poses(observations, clouds, tolerance)
    depth = transform_points(invert_rigid(poses), clouds)[..., 2].clamp_min(10 * SMALLEST_DEPTH)
    focal = modes.settle(view_focals(observations))
    return Variables(poses, focal.log(), rigid(fits.rotation, fits.translation), fits.scale.log()), depth


def view_focals(observations: Observations) -> Tensor:
    """(V,) focal in network pixels: Weiszfeld on the reference side of each pair, then the median over a view's."""
    blocks = observations.reference_blocks()
    view = observations.view[blocks]
    focal = focal_from_pointmap(observations.points[blocks], observations.pixels[view], observations.confidence[blocks])
    extent = observations.pixels.norm(dim=-1).amax(dim=-1)
    # A half angle of the diagonal outside 6 to 79 degrees is no photograph's.
    focal = torch.minimum(torch.maximum(focal, 0.2 * extent[view]), 10 * extent[view])
    return torch.stack([focal[view == index].nanmedian() for index in range(observations.view_count)])


def _place_clouds(
    observations: Observations, pairs: list[ImagePair], tree: list[tuple[Edge, int, int]], scale: float
) -> Tensor:
    """(V, S, 3) world points of every view, each carried along its branch of the tree."""
    clouds = torch.zeros_like(observations.points[: observations.view_count])
    root, old, _ = tree[0]
    start = max(root.pairs, key=lambda pair: float(observations.confidence[2 * pair : 2 * pair + 2].sum()))
    clouds[old] = scale * observations.points[_block(pairs, start, old)]
    for edge, known, new in tree:
        anchors = torch.tensor([_block(pairs, pair, known) for pair in edge.pairs])
        depth = masked_median(observations.points[anchors][..., 2], observations.confidence[anchors]).nan_to_num(1.0)
        fits, residual = robust_similarity(
            observations.points[anchors],
            clouds[known].expand(len(anchors), -1, -1),
            observations.confidence[anchors],
            0.02 * scale * depth,
        )
        choice = int(masked_median(residual, observations.confidence[anchors]).argmin())
        block = _block(pairs, edge.pairs[choice], new)
        clouds[new] = transform_points(fits.matrix[choice], observations.points[block])
    return clouds


def _view_poses(observations: Observations, clouds: Tensor, tolerance: Tensor) -> Tensor:
    """(V, 4, 4) from the view's own camera frame (the pairs it leads) to its world points; best of its pairs."""
    blocks = observations.reference_blocks()
    view, votes = observations.view[blocks], observations.confidence[blocks]
    fits, residual = robust_similarity(observations.points[blocks], clouds[view], votes, tolerance)
    quality = torch.nan_to_num(masked_median(residual, votes), nan=torch.inf)
    best = [int(torch.where(view == index, quality, torch.inf).argmin()) for index in range(observations.view_count)]
    return rigid(fits.rotation, fits.translation)[best]


def masked_median(values: Tensor, votes: Tensor) -> Tensor:
    """Median over the last axis of the entries with votes; NaN where there are none."""
    return values.masked_fill(votes <= 0, torch.nan).nanmedian(dim=-1).values


def _block(pairs: list[ImagePair], pair: int, view: int) -> int:
    return 2 * pair + (pairs[pair].other == view)
