"""Relative pose of two views from soft matches and rough depths: robust, in batches, from many starts.

A match says where a point lands on the other picture, to within its own spread. Where it lands along the epipolar
line depends on the depth, which is known to some per cent only; across that line depth plays no part. So every match
counts with the covariance of both, and even a poor depth does not bend the pose (Hartley and Zisserman 2004, ch. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .transforms import skew, so3_exp, so3_log

NEAREST = 0.05
"""least depth a point is projected from, in units of the depths"""
OUTLIER = 4.0
"""squared whitened residual at which a match keeps a quarter of its weight (Geman-McClure)"""
START_ANGLES = (-40.0, -20.0, 20.0, 40.0)
"""degrees by which the starts walk around the scene, sideways and up"""
BLUR = 0.02
"""added to the standard deviation of places, z = 1, while a start is sought; then it fades"""
JUDGES = 256
"""points of each view, those of most weight, that choose among the starts"""
LONGEST_STEP = 0.3
"""of a turn (radians), a shift (units of the depths) and the log scale, per round"""


@dataclass(frozen=True)
class Sightings:
    """Points of one view, and where the other view sees them."""

    rays: Tensor
    """(B, N, 3) points at z = 1, own camera"""
    depth: Tensor
    """(B, N) z-depth, own camera"""
    seen: Tensor
    """(B, N, 2) place of the match at z = 1, other camera"""
    sigma: Tensor
    """(B, N) standard deviation of that place, per axis"""
    weight: Tensor
    """(B, N) >= 0"""

    def repeated(self, times: int) -> Sightings:
        """Every batch element `times` times in a row."""
        return Sightings(*(each.repeat_interleave(times, 0) for each in vars(self).values()))

    def blurred(self, sigma: float) -> Sightings:
        """As if their places were known `sigma` less well."""
        return replace(self, sigma=(self.sigma.square() + sigma**2).sqrt())

    def best(self, count: int) -> Sightings:
        """The `count` of most weight."""
        rows = self.weight.topk(min(count, self.weight.shape[1]), dim=1).indices
        wide = rows[..., None]
        return Sightings(
            self.rays.expand(len(rows), -1, -1).gather(1, wide.expand(-1, -1, 3)),
            self.depth.gather(1, rows),
            self.seen.gather(1, wide.expand(-1, -1, 2)),
            self.sigma.gather(1, rows),
            self.weight.gather(1, rows),
        )


@dataclass(frozen=True)
class RelativePose:
    """X_1 = rotation X_2 + translation, for points X_2 = exp(log_scale) * depth * ray."""

    rotation: Tensor
    """(B, 3, 3)"""
    translation: Tensor
    """(B, 3), units of the first view's depths"""
    log_scale: Tensor
    """(B,)"""
    cost: Tensor
    """(B,) weighted mean of the bounded loss, in [0, 1]"""

    def joined(self, more: RelativePose) -> RelativePose:
        """Followed by those of another batch."""
        return RelativePose(*map(torch.cat, zip(vars(self).values(), vars(more).values(), strict=True)))

    def inverted(self) -> RelativePose:
        """With the views exchanged: X_2 in units of the second view's depths, for points X_1."""
        back = self.rotation.transpose(1, 2)
        shift = -(back @ self.translation[..., None])[..., 0] * (-self.log_scale).exp()[:, None]
        return replace(self, rotation=back, translation=shift, log_scale=-self.log_scale)

    def mirrored(self) -> RelativePose:
        """Of the two pictures with left and right exchanged."""
        sides = self.rotation.new_tensor([-1.0, 1.0, 1.0])
        return replace(self, rotation=sides[:, None] * self.rotation * sides, translation=sides * self.translation)

    def moved(self, step: Tensor) -> RelativePose:
        """After a step (B, 7) of turn, shift and log scale."""
        return replace(
            self,
            rotation=so3_exp(step[:, :3]) @ self.rotation,
            translation=self.translation + step[:, 3:6],
            log_scale=self.log_scale + step[:, 6],
        )

    def best_of(self, starts: int) -> RelativePose:
        """The cheapest of every `starts` poses in a row."""
        best = self.cost.unflatten(0, (-1, starts)).argmin(1)
        rows = torch.arange(len(best), device=best.device) * starts + best
        return RelativePose(*(value[rows] for value in vars(self).values()))


class Whitened(NamedTuple):
    """Residuals in standard deviations, what they depend on, and what they mean."""

    residuals: Tensor
    """(B, N, 2)"""
    by_pose: Tensor
    """(B, N, 2, 7) by turn, shift and log scale"""
    by_depth: Tensor
    """(B, N, 2) by the log of the depth"""
    parallax: Tensor
    """(B, N) how far a place moves with the log of the depth, z = 1"""


class Prior(NamedTuple):
    """What is known of a relative pose beforehand."""

    depth: float
    """relative error of the depths"""
    scale: float
    """log of how far the depths of the two views may disagree in scale"""
    rotation: Tensor | None = None
    """(B, 3, 3) expected"""
    translation: Tensor | None = None
    """(B, 3) expected, units of the first view's depths"""
    turn: float = torch.inf
    """standard deviation of the rotation, per axis, radians"""
    shift: float = torch.inf
    """standard deviation of the translation, per axis, as a share of the first view's median depth"""


@torch.no_grad()
def relative_pose(
    first: Sightings, second: Sightings, prior: Prior, starts: Sequence[tuple[Tensor, Tensor]] = (), rounds: int = 12
) -> RelativePose:
    """The pose between view 1 and view 2 with the least robust cost, in float32.

    `starts` are rotations (B, 3, 3) and translations (B, 3) to begin from; without any it begins from no motion and
    from walks around what view 1 sees. A third of the rounds chooses among them.
    """
    begun = _stacked(starts) if starts else _walks(first)
    count = len(begun.cost) // len(first.depth)
    pose = begun
    judge_1, judge_2 = (side.best(JUDGES).blurred(BLUR).repeated(count) for side in (first, second))
    repeated = prior._replace(
        rotation=None if prior.rotation is None else prior.rotation.repeat_interleave(count, 0),
        translation=None if prior.translation is None else prior.translation.repeat_interleave(count, 0),
    )
    for _ in range(rounds // 3):
        pose = _improved(pose, judge_1, judge_2, repeated)
    pose = _scored(pose, judge_1, judge_2, prior.depth).best_of(count)
    for left in reversed(range(rounds - rounds // 3)):
        blur = BLUR * 2.0 ** (left + 1 + rounds // 3 - rounds) if left else 0.0
        pose = _improved(pose, first.blurred(blur), second.blurred(blur), prior)
    return _scored(pose, first, second, prior.depth)


def _stacked(starts: Sequence[tuple[Tensor, Tensor]]) -> RelativePose:
    """Those of one pair in a row."""
    rotations, translations = (torch.stack(each, 1).flatten(0, 1) for each in zip(*starts, strict=True))
    zero = torch.zeros_like(translations[:, 0])
    return RelativePose(rotations, translations, zero, zero)


def _walks(first: Sightings) -> RelativePose:
    """No motion, then orbits about a point in front of view 1; those of one pair follow one another."""
    like, count = first.depth, len(first.depth)
    vectors = [[0.0, 0.0, 0.0]]
    vectors += [[0.0, angle, 0.0] for angle in START_ANGLES] + [[angle, 0.0, 0.0] for angle in START_ANGLES]
    turns = so3_exp(torch.deg2rad(like.new_tensor(vectors))).repeat(count, 1, 1)
    middle = like.median(1).values.repeat_interleave(len(vectors))[:, None] * like.new_tensor([0.0, 0.0, 1.0])
    zero = torch.zeros_like(middle[:, 0])
    return RelativePose(turns, middle - (turns @ middle[..., None])[..., 0], zero, zero)


def whitened(pose: RelativePose, side: Sightings, inverse: bool, depth_sigma: float) -> Whitened:
    """Where the points of one view are seen, against where they should be.

    `inverse`: the points are view 1's, seen by view 2; else the other way round.
    """
    own, R = side.rays * side.depth[..., None], pose.rotation
    if inverse:
        arm = own - pose.translation[:, None]
        Y, by_depth = arm @ R, own @ R
        by_turn = R.transpose(1, 2)[:, None] @ skew(arm)
        by_shift = -R.transpose(1, 2)[:, None].expand_as(by_turn)
        by_scale = torch.zeros_like(own)
    else:
        by_depth = (own * pose.log_scale.exp()[:, None, None]) @ R.transpose(1, 2)
        Y = by_depth + pose.translation[:, None]
        by_turn = -skew(by_depth)
        by_shift = torch.eye(3, device=own.device).expand_as(by_turn)
        by_scale = by_depth
    Z = Y[..., 2:].clamp(min=NEAREST)
    image = Y[..., :2] / Z
    changes = torch.cat([by_turn, by_shift, by_scale[..., None], by_depth[..., None]], dim=-1)  # B, N, 3, 8
    J = (changes[..., :2, :] - image[..., None] * changes[..., 2:, :]) / Z[..., None]
    parallax = J[..., 7].square().sum(-1, keepdim=True).clamp(min=1e-18).sqrt()
    along = J[..., 7] / parallax
    shrink = 1 - (1 + (depth_sigma * parallax / side.sigma[..., None]) ** 2).rsqrt()
    both = torch.cat([(image - side.seen)[..., None], J], dim=-1)
    white = both - (shrink * along)[..., None] * (along[..., None, :] @ both)
    white = white / side.sigma[..., None, None]
    return Whitened(white[..., 0], white[..., 1:8], white[..., 8], parallax[..., 0])


def _improved(pose: RelativePose, first: Sightings, second: Sightings, prior: Prior) -> RelativePose:
    """One step of re-weighted Gauss-Newton."""
    H, g = prior_equations(pose, first, prior)
    for side, inverse in ((first, True), (second, False)):
        r, J, *_ = whitened(pose, side, inverse, prior.depth)
        more_H, more_g = normal_equations(r, J, side.weight * kept(r))
        H, g = H + more_H, g + more_g
    return pose.moved(limited_step(H, g, 1e-5))


def prior_equations(pose: RelativePose, first: Sightings, prior: Prior) -> tuple[Tensor, Tensor]:
    """(B, 7, 7) and (B, 7) of what is known beforehand of turn, shift and log scale."""
    eye = torch.eye(7, device=pose.rotation.device)
    H, g = 1e-4 * eye.repeat(len(pose.rotation), 1, 1), pose.rotation.new_zeros(len(pose.rotation), 7)
    H[:, 6, 6] += prior.scale**-2
    g[:, 6] += pose.log_scale * prior.scale**-2
    if prior.rotation is not None and prior.translation is not None:
        unit = (prior.shift * first.depth.median(1).values)[:, None] ** -2
        tight = torch.cat([torch.full_like(pose.translation, prior.turn**-2), unit.expand(-1, 3)], dim=1)
        gap = [so3_log(pose.rotation @ prior.rotation.transpose(1, 2)), pose.translation - prior.translation]
        H.diagonal(dim1=1, dim2=2)[:, :6] += tight
        g[:, :6] += tight * torch.cat(gap, dim=1)
    return H, g


def kept(residuals: Tensor) -> Tensor:
    """The share of its weight (B, N) that a match of whitened residual (B, N, 2) keeps (Geman-McClure)."""
    return (1 + residuals.square().sum(-1) / OUTLIER) ** -2


def normal_equations(residuals: Tensor, J: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """J^T W J (B, P, P) and J^T W r (B, P) of residuals (B, N, 2), derivatives (B, N, 2, P) and weights (B, N)."""
    weighted = (J * weights[..., None, None]).flatten(1, 2).transpose(1, 2)
    return weighted @ J.flatten(1, 2), (weighted @ residuals.flatten(1, 2)[..., None])[..., 0]


def limited_step(H: Tensor, g: Tensor, damping: float) -> Tensor:
    """The Gauss-Newton step (B, P), no unknown by more than LONGEST_STEP; `damping` in mean diagonals of H."""
    eye = torch.eye(H.shape[-1], device=H.device)
    H = H + damping * H.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
    step = -torch.linalg.solve_ex(H.double(), g.double()).result.float()  # no wait for a GPU to say that it went well
    return step * (LONGEST_STEP / step.abs().amax(1, keepdim=True).clamp(min=LONGEST_STEP))


def _scored(pose: RelativePose, first: Sightings, second: Sightings, depth_sigma: float) -> RelativePose:
    """The pose with its cost."""
    total, weights = torch.zeros_like(pose.log_scale), torch.zeros_like(pose.log_scale)
    for side, inverse in ((first, True), (second, False)):
        r, *_ = whitened(pose, side, inverse, depth_sigma)
        squared = r.square().sum(-1)
        total, weights = total + (side.weight * squared / (OUTLIER + squared)).sum(1), weights + side.weight.sum(1)
    return replace(pose, cost=total / weights.clamp(min=1e-9))
