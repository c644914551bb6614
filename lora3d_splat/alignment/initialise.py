"""The start: canonical depths per view, pairwise registration against them, and a tree of edges that agree.

Every pair led by a view predicts that view in its own camera. The pixelwise median over those predictions, each brought
to unit median depth, is the view's *canonical* depth; no minority of wrong pairs can bend it. A view that leads no pair
is first resected (robust PnP) in the pairs that it belongs to. Registering every pair's
other side against it tells each pair's relative pose, and edges whose orders or triangles contradict lose their score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import focal_from_pointmap
from ..geometry.procrustes import robust_similarity, sampled_similarity
from ..geometry.transforms import invert_similarity, rigid, split_similarity, transform_points
from ..records import ImagePair
from .observations import Observations
from .resection import resected_depth
from .robust import masked_median, masked_quantile
from .variables import FocalModes, Variables

AGREEMENT_SCALE = 0.1
"""Disagreement of an edge (fraction of depth) that halves its score."""
ONE_ORDER_DISAGREEMENT = 0.2
"""What is assumed of an edge of which only one order was predicted and that lies in no triangle."""
AGREEING = 0.3
"""Share of the pixels whose distance tells how well a pair fits: two sides with a third of outliers each leave it."""
PROBES = 48
"""Points per view on which relative poses are compared."""


@dataclass(frozen=True)
class Edge:
    """An unordered pair of views with what speaks for it."""

    views: tuple[int, int]
    pairs: tuple[int, ...]
    """positions of its one or two ordered pairs"""
    score: float
    disagreement: float
    """median distance between what its orders, and its triangles, make of a view's points, over the median depth"""


@dataclass(frozen=True)
class Canonical:
    """One view each, in its own camera, at unit median depth."""

    depth: Tensor
    """(V, S); zero where no pair votes"""
    focal: Tensor
    """(V,) network pixels"""
    points: Tensor
    """(V, S, 3)"""

    @property
    def votes(self) -> Tensor:
        """(V, S)"""
        return (self.depth > 0).to(self.depth)


@dataclass(frozen=True)
class Start:
    """Everything the start is made of."""

    canonical: Canonical
    relative: Tensor
    """(P, 4, 4) similarity from the canonical frame of each pair's other view to that of its reference view"""
    pair_unit: Tensor
    """(P,) network units of the pair -> canonical units of its reference view"""
    residual: Tensor
    """(P,) distance of the other side after registration that a third of its pixels keep, over the median depth"""
    edges: list[Edge]
    """best first"""


def prepare(observations: Observations, pairs: list[ImagePair], modes: FocalModes) -> Start:
    """Canonical views, registered pairs and scored edges."""
    canonical = canonical_views(observations, modes)
    reference, other = observations.reference_blocks(), observations.reference_blocks() + 1
    owner = observations.view[reference]
    ratio = canonical.depth[owner] / observations.points[reference][..., 2].clamp_min(1e-12)
    votes = observations.confidence[reference] * canonical.votes[owner]
    unit = masked_median(ratio, votes).nan_to_num(1.0).clamp_min(1e-9)
    guest = observations.view[other]
    votes = observations.confidence[other] * canonical.votes[guest]
    fit, residual = sampled_similarity(
        canonical.points[guest], unit[:, None, None] * observations.points[other], votes, tolerance=0.02
    )
    gap = masked_quantile(residual, votes, AGREEING).nan_to_num(torch.inf)
    edges = _score_edges(observations, pairs, canonical, fit.matrix, gap)
    return Start(canonical, fit.matrix, unit, gap, edges)


def canonical_views(observations: Observations, modes: FocalModes) -> Canonical:
    """Pixelwise median depth over the pairs that each view leads, over all its pairs where it leads none."""
    focal = modes.settle(_view_focals(observations))
    slopes = observations.pixels / focal[:, None, None]
    blocks, depth = _own_depths(observations, slopes)
    owner = observations.view[blocks]
    votes = observations.confidence[blocks] * (depth > 0)
    logs = (depth / masked_median(depth, votes)[:, None]).log().masked_fill(votes <= 0, torch.nan)
    # Pairs by view, padded: (V, K, S) with as many rows as the most frequent view has.
    rank = torch.zeros_like(owner)
    for view in range(observations.view_count):
        mine = owner == view
        rank[mine] = torch.arange(int(mine.sum()), device=owner.device)
    stacked = logs.new_full((observations.view_count, int(rank.max()) + 1, logs.shape[1]), torch.nan)
    stacked[owner, rank] = logs
    median = stacked.nanmedian(dim=1).values.exp().nan_to_num(0.0)
    points = torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1) * median[..., None]
    return Canonical(median, focal, points)


def _own_depths(observations: Observations, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (K,) that say what depth (K, S) their view has in its own camera: reference sides; others by resection."""
    blocks = observations.reference_blocks()
    depth = observations.points[blocks][..., 2]
    leads = torch.isin(observations.view, observations.view[blocks])
    led = torch.nonzero(~leads)[:, 0]
    if len(led) == 0:
        return blocks, depth
    resected = [
        resected_depth(slopes[observations.view[block]], observations.points[block], observations.confidence[block])
        for block in led.tolist()
    ]
    return torch.cat([blocks, led]), torch.cat([depth, torch.stack(resected)])


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
    observations: Observations, pairs: list[ImagePair], start: Start, tree: list[tuple[Edge, int, int]], scale: float
) -> tuple[Variables, Tensor]:
    """Variables and depths (V, S) from a tree that reaches every view; the root's median depth is `scale`."""
    world = _walk(observations.view_count, pairs, start, tree, scale)
    unit, rotation, translation = split_similarity(world)
    poses = rigid(rotation, translation)
    depth = unit[:, None] * torch.where(start.canonical.depth > 0, start.canonical.depth, 1.0)
    clouds = transform_points(world, start.canonical.points)
    votes = observations.confidence * start.canonical.votes[observations.view]
    fits, _ = robust_similarity(
        observations.sides(observations.points),
        observations.sides(clouds[observations.view]),
        observations.sides(votes),
        tolerance=0.02 * unit[observations.view[0::2]],
    )
    return Variables(
        poses, start.canonical.focal.log(), rigid(fits.rotation, fits.translation), fits.scale.log()
    ), depth


def _walk(count: int, pairs: list[ImagePair], start: Start, tree: list[tuple[Edge, int, int]], scale: float) -> Tensor:
    """(V, 4, 4) similarity from each view's canonical frame to the world, along the tree."""
    world = torch.eye(4, dtype=start.relative.dtype, device=start.relative.device).repeat(count, 1, 1)
    world[:, :3, :3] *= scale
    for edge, old, new in tree:
        choice = min(edge.pairs, key=lambda pair: float(start.residual[pair]))
        step = start.relative[choice]
        world[new] = world[old] @ (step if pairs[choice].reference == old else invert_similarity(step))
    return world


def _score_edges(
    observations: Observations, pairs: list[ImagePair], canonical: Canonical, relative: Tensor, residual: Tensor
) -> list[Edge]:
    """All edges, best first: mean log-confidence of both sides times the agreement of orders and triangles."""
    position = {(pair.reference, pair.other): index for index, pair in enumerate(pairs)}
    keys = sorted({(min(key), max(key)) for key in position})
    members = [tuple(position[order] for order in (key, (key[1], key[0])) if order in position) for key in keys]
    probes = _probes(canonical)
    gaps = torch.maximum(
        _order_gaps(pairs, members, relative, residual, probes),
        _triangle_gaps(observations.view_count, keys, members, pairs, relative, residual, probes),
    )
    gaps = gaps.where(gaps > 0, ONE_ORDER_DISAGREEMENT)
    sureness = observations.sides(observations.confidence).mean(dim=1).tolist()
    edges = []
    for key, own, gap in zip(keys, members, gaps.tolist(), strict=True):
        score = sum(sureness[pair] for pair in own) / len(own) / (1 + gap / AGREEMENT_SCALE)
        edges.append(Edge(key, own, score, gap))
    return sorted(edges, key=lambda edge: -edge.score)


def _order_gaps(
    pairs: list[ImagePair], members: list[tuple[int, ...]], relative: Tensor, residual: Tensor, probes: Tensor
) -> Tensor:
    """(E,) disagreement of the two orders on the other view's points; zero where there is one order alone."""
    first = torch.tensor([own[0] for own in members], device=relative.device)
    last = torch.tensor([own[-1] for own in members], device=relative.device)
    other = torch.tensor([pairs[own[0]].other for own in members], device=relative.device)
    there = transform_points(relative[first], probes[other])
    back = transform_points(invert_similarity(relative[last]), probes[other])
    gap = (there - back).norm(dim=-1).median(dim=-1).values / there[..., 2].abs().median(dim=-1).values
    gap = gap + residual[first] + residual[last]
    return torch.where(first == last, torch.zeros_like(gap), gap).nan_to_num(torch.inf)


def _triangle_gaps(
    count: int,
    keys: list[tuple[int, int]],
    members: list[tuple[int, ...]],
    pairs: list[ImagePair],
    relative: Tensor,
    residual: Tensor,
    probes: Tensor,
) -> Tensor:
    """(E,) median, over the triangles of each edge, of how far the way round a third view misses; zero without any."""
    step = torch.full((count, count, 4, 4), torch.nan, dtype=relative.dtype, device=relative.device)
    for (low, high), own in zip(keys, members, strict=True):
        choice = min(own, key=lambda pair: float(residual[pair]))
        forward = relative[choice] if pairs[choice].reference == low else invert_similarity(relative[choice])
        step[low, high], step[high, low] = forward, invert_similarity(forward)
    low, high = torch.tensor(keys, device=relative.device).T
    direct = transform_points(step[low, high], probes[high])
    around = transform_points((step[low] @ step[:, high].transpose(0, 1)), probes[high][:, None])
    miss = (around - direct[:, None]).norm(dim=-1).median(dim=-1).values
    depth = direct[..., 2].abs().median(dim=-1).values
    return (miss / depth[:, None]).nanmedian(dim=1).values.nan_to_num(0.0)


def _probes(canonical: Canonical) -> Tensor:
    """(V, PROBES, 3) points of each view, spread over those that have a depth."""
    order = torch.argsort((canonical.depth <= 0).to(torch.int8), dim=1, stable=True)
    filled = (canonical.depth > 0).sum(1).clamp_min(1)
    place = (torch.arange(PROBES, device=order.device) * filled[:, None]) // PROBES
    return canonical.points.gather(1, order.gather(1, place)[..., None].expand(-1, -1, 3))


def _view_focals(observations: Observations) -> Tensor:
    """(V,) focal in network pixels: Weiszfeld on the reference side of each pair, then the median over a view's."""
    blocks = observations.reference_blocks()
    view = observations.view[blocks]
    focal = focal_from_pointmap(observations.points[blocks], observations.pixels[view], observations.confidence[blocks])
    extent = observations.pixels.norm(dim=-1).amax(dim=-1)
    # A half angle of the diagonal outside 6 to 79 degrees is no photograph's.
    focal = torch.minimum(torch.maximum(focal, 0.2 * extent[view]), 10 * extent[view])
    return torch.stack([focal[view == index].nanmedian() for index in range(observations.view_count)])
