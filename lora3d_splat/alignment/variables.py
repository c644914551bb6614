"""The unknowns of the alignment and how a solver step moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.cameras import photograph_to_network_focal
from ..geometry.transforms import rigid, so3_exp
from ..records import View
from .config import AlignmentConfig

USUAL_FOCAL = 0.9
"""Focal over the photograph's diagonal where nothing tells: a diagonal field of view of 58 degrees."""


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
            self.log_scale + pair_step[:, 6],
        )

    def pinned(self, scale: float) -> Variables:
        """The same scene in the unit that makes the geometric mean of the pair scales equal `scale`."""
        factor = scale / self.log_scale.mean().exp()
        stretch = torch.ones(4, 4, dtype=torch.float64)
        stretch[:3, 3] = factor
        return replace(
            self,
            T_world_view=self.T_world_view * stretch,
            T_world_pair=self.T_world_pair * stretch,
            log_scale=self.log_scale + factor.log(),
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


def focal_modes(views: Sequence[View], config: AlignmentConfig) -> FocalModes:
    """Read the focal setting; an EXIF focal missing in some photographs is shared among those."""
    unit = torch.tensor([photograph_to_network_focal(diagonal(view), view.affine) for view in views]).double()
    fixed = torch.full((len(views),), torch.nan, dtype=torch.float64)
    mode = torch.zeros(len(views), dtype=torch.long)
    if config.focal == "per-view":
        mode = torch.arange(len(views))
    for index, view in enumerate(views):
        value = view.focal_hint if config.focal == "exif" else config.fixed_focal
        if value is not None:
            fixed[index] = photograph_to_network_focal(value, view.affine)
            mode[index] = -1
    if config.focal == "exif" and bool((mode >= 0).all()):
        raise InputError("no EXIF focal in any photograph", "photographs with EXIF focal", "set the focal to shared")
    return FocalModes(unit, mode, fixed)


def diagonal(view: View) -> float:
    """Diagonal of the photograph in photograph pixels."""
    return float((view.width**2 + view.height**2) ** 0.5)


def _nudge(T_world_frame: Tensor, step: Tensor) -> Tensor:
    rotation = so3_exp(step[:, 3:6]) @ T_world_frame[:, :3, :3]
    return rigid(rotation, T_world_frame[:, :3, 3] + step[:, :3])
