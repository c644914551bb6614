"""The unknowns of the alignment and how a solver step moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.cameras import photograph_to_network_focal
from ..geometry.procrustes import Similarity
from ..geometry.transforms import rigid, so3_exp
from ..records import View
from .config import AlignmentConfig
from .observations import Observations
from .priors import CameraPriors

USUAL_FOCAL = 0.9
"""Focal over the photograph's diagonal where nothing tells: a diagonal field of view of 58 degrees."""


SCALE_REACH = 4.6
"""Largest deviation of a pair's log scale from the median, a factor of 100."""


def within_reach(log_scale: Tensor) -> Tensor:
    """Pair scales (P,) near enough to the others: under a bounded loss a hopeless pair could grow without end."""
    if not len(log_scale):
        return log_scale
    middle = log_scale.median()
    return log_scale.clamp(middle - SCALE_REACH, middle + SCALE_REACH)


@dataclass(frozen=True)
class Variables:
    """float64; the world frame's unit is set by the pinned mean of `log_scale`."""

    T_world_view: Tensor
    """(V, 4, 4) camera poses"""
    log_focal: Tensor
    """(V,) log of the focal in network pixels"""
    T_world_pair: Tensor
    """(P, 4, 4) poses of the pairs' reference frames"""
    log_scale: Tensor
    """(P,) log of pair unit -> world unit"""

    def moved(self, view_step: Tensor, focal_step: Tensor, pair_step: Tensor) -> Variables:
        """Apply a step about each own origin: (V, 6), (V,), (P, 7); translation, world rotation vector, log scale."""
        return Variables(
            _nudge(self.T_world_view, view_step),
            self.log_focal + focal_step.clamp(-0.3, 0.3),
            _nudge(self.T_world_pair, pair_step[:, :6]),
            within_reach(self.log_scale + pair_step[:, 6]),
        )

    def in_unit_of(self, other: Variables, trust: Tensor) -> Variables:
        """The same scene in the unit in which the mean log scale, pairs weighted by `trust` (P,), is the other's.

        The spring of the step holds that mean only while no pair is held back by its reach.
        """
        drift = (trust @ (self.log_scale - other.log_scale) / trust.sum()).neg().exp()
        still = torch.eye(3, dtype=drift.dtype, device=drift.device)
        return self.moved_to(Similarity(drift, still, still.new_zeros(3)))

    def moved_to(self, frame: Similarity) -> Variables:
        """The same scene in another frame and unit."""

        def carried(T_world_frame: Tensor) -> Tensor:
            return rigid(frame.rotation @ T_world_frame[:, :3, :3], frame.apply(T_world_frame[:, :3, 3]))

        return replace(
            self,
            T_world_view=carried(self.T_world_view),
            T_world_pair=carried(self.T_world_pair),
            log_scale=self.log_scale + frame.scale.log(),
        )


@dataclass(frozen=True)
class FocalModes:
    """Which focals move together: log focal of view v is free along column `mode[v]`, or fixed where that is -1.

    A shared focal is one number relative to the photograph's diagonal, so that portrait and landscape photographs and
    different resizes of one camera share it exactly.
    """

    unit: Tensor
    """(V,) the photograph's diagonal in network pixels"""
    mode: Tensor
    """(V,) index of the free parameter, -1 for a fixed focal"""
    fixed: Tensor
    """(V,) the fixed focal in network pixels, NaN where free"""

    @property
    def count(self) -> int:
        return int(self.mode.max().item()) + 1

    def settle(self, focal: Tensor) -> Tensor:
        """Bring per-view estimates (V,) in network pixels into the modes: shared ones become their median."""
        relative = focal / self.unit
        for mode in range(self.count):
            members = self.mode == mode
            relative[members] = relative[members].nanmedian()
        relative = relative.nan_to_num(float(relative.nanmedian().nan_to_num(USUAL_FOCAL)))
        return torch.where(self.mode >= 0, relative * self.unit, self.fixed)

    def of(self, members: Sequence[int]) -> FocalModes:
        """The modes of some of the views, columns renumbered without gaps."""
        chosen = list(members)
        mode = self.mode[chosen]
        used = mode[mode >= 0].unique()
        mode = torch.where(mode >= 0, torch.searchsorted(used, mode.clamp_min(0)), mode)
        return FocalModes(self.unit[chosen], mode, self.fixed[chosen])


@dataclass(frozen=True)
class Layout:
    """Where the parameters lie in one flat vector: views, focals, pairs, and a last place for what is fixed."""

    views: int
    pairs: int
    modes: FocalModes
    fixed_pose: Tensor
    """(V,) bool"""
    free_unit: bool
    """whether nothing known sets the unit, so that the pair scales must be pinned"""
    lead: Tensor
    """(P,) reference view of each pair"""
    own: int = 7
    """parameters that each pair has for itself: pose and scale, or none (its pose is its reference view's)"""

    @property
    def land(self) -> int:
        """Parameters of views and focals, which come first."""
        return 6 * self.views + self.modes.count

    @property
    def size(self) -> int:
        return self.land + self.own * self.pairs

    def view_places(self) -> Tensor:
        """(V, 7) translation, rotation, focal"""
        pose = 6 * torch.arange(self.views)[:, None] + torch.arange(6)
        pose = pose.masked_fill(self.fixed_pose[:, None], self.size)
        focal = torch.where(self.modes.mode >= 0, 6 * self.views + self.modes.mode, self.size)
        return torch.cat([pose, focal[:, None]], dim=1)

    def pair_places(self) -> Tensor:
        """(P, 7) translation, rotation, scale"""
        if self.own:
            return torch.arange(self.land, self.size).view(-1, 7)
        nothing = torch.full((self.pairs, 1), self.size)
        return torch.cat([self.view_places()[self.lead, :6], nothing], dim=1)

    def block_places(self, observations: Observations) -> Tensor:
        """(B, 14) places of the parameters that each block depends on"""
        return torch.cat([self.view_places()[observations.view], self.pair_places()[observations.pair]], dim=1)

    def split(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step (size,) as (V, 6), (V,) and (P, 7); what is fixed stays."""
        padded = torch.cat([step, step.new_zeros(1)])
        view = padded[self.view_places()]
        return view[:, :6], view[:, 6], padded[self.pair_places()]

    def on_poses(self, values: Tensor) -> Tensor:
        """(size,) vector with the values (V, 6) at the places of the free poses"""
        vector = values.new_zeros(self.size + 1)
        vector[self.view_places()[:, :6]] = values
        return vector[:-1]

    def on_scales(self, values: Tensor) -> Tensor:
        """(size,) vector with the values (P,) at the places of the pairs' log scales"""
        vector = values.new_zeros(self.size)
        if self.own:
            vector[self.pair_places()[:, 6]] = values
        return vector

    def pin(self, trust: Tensor) -> Tensor:
        """(size,) direction in which the scene's unit would drift: the mean log scale of the trusted pairs (P,)"""
        return self.on_scales(trust / trust.mean() if self.free_unit else torch.zeros_like(trust))


def focal_modes(views: Sequence[View], config: AlignmentConfig, priors: CameraPriors) -> FocalModes:
    """Read the focal setting; known focals are fixed, and an EXIF focal missing in some photographs is shared there."""
    unit = torch.tensor([photograph_to_network_focal(diagonal(view), view.affine) for view in views]).double()
    fixed = priors.focal.clone()
    mode = _mode_numbers(views, config)
    for index, view in enumerate(views):
        value = view.focal_hint if config.focal == "exif" else config.fixed_focal
        if value is not None and not bool(fixed[index].isfinite()):
            fixed[index] = photograph_to_network_focal(value, view.affine)
    if config.focal == "exif" and not bool(fixed.isfinite().any()):
        raise InputError("no EXIF focal in any photograph", "photographs with EXIF focal", "set the focal to shared")
    used = mode[~fixed.isfinite()].unique()
    mode = torch.where(fixed.isfinite(), -1, torch.searchsorted(used, mode).clamp_max(max(len(used) - 1, 0)))
    return FocalModes(unit, mode, fixed)


def _mode_numbers(views: Sequence[View], config: AlignmentConfig) -> Tensor:
    """(V,) which views share a focal: all, those of one camera, or none."""
    if config.focal == "per-view":
        return torch.arange(len(views))
    if config.focal == "per-camera":
        cameras = [(view.camera, *sorted((view.width, view.height))) for view in views]
        return torch.tensor([cameras.index(camera) for camera in cameras])
    return torch.zeros(len(views), dtype=torch.long)


def diagonal(view: View) -> float:
    """Diagonal of the photograph in photograph pixels."""
    return float((view.width**2 + view.height**2) ** 0.5)


def _nudge(T_world_frame: Tensor, step: Tensor) -> Tensor:
    rotation = so3_exp(step[:, 3:6]) @ T_world_frame[:, :3, :3]
    return rigid(rotation, T_world_frame[:, :3, 3] + step[:, :3])
