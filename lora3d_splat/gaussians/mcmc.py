"""Densification as Markov chain Monte Carlo (Kheradmand et al. 2024), the rule of gsplat's MCMCStrategy.

gsplat computes it with CUDA kernels; these are the same formulas in torch, for any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lora3d_splat.geometry.transforms import wxyz_to_rotation

MOST_COPIES = 51
GATE_STEEPNESS, GATE_OPACITY = 100.0, 0.005
"""Noise moves Gaussians whose opacity is below about this value."""


def share_between_copies(opacity: Tensor, scale: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity (N,) and scale (N, 3) of each of `copies` (N,) coincident Gaussians that together look like one.

    The transmittances of the copies multiply to the original's, and their integrals along a ray agree (equation 9).
    """
    count = copies.clamp(1, MOST_COPIES)
    shared = 1.0 - (1.0 - opacity).pow(1.0 / count)
    total = torch.zeros_like(opacity)
    powers = torch.stack([shared.pow(k + 1) for k in range(int(count.max()))])
    for i in range(1, int(count.max()) + 1):
        weights = torch.tensor([(-1) ** k * math.comb(i - 1, k) / math.sqrt(k + 1) for k in range(i)]).to(opacity)
        term = (weights[:, None] * powers[:i]).sum(0)
        total = total + torch.where(i <= count, term, torch.zeros_like(term))
    return shared, scale * (opacity / total)[:, None]


def draw_by_opacity(opacity: Tensor, count: int) -> Tensor:
    """Indices (count,) of Gaussians, the chance proportional to their opacity (N,), with repeats."""
    # torch.multinomial takes at most 2^24 categories.
    chance = opacity.double().cumsum(0)
    drawn = torch.rand(count, dtype=torch.float64, device=opacity.device) * chance[-1]
    return torch.searchsorted(chance, drawn).clamp_max(len(opacity) - 1)


def exploration_noise(opacity: Tensor, scale: Tensor, quaternion_wxyz: Tensor, rate: float) -> Tensor:
    """(N, 3) random moves, shaped like each Gaussian; only the nearly transparent ones move."""
    gate = torch.sigmoid(-GATE_STEEPNESS * (opacity - GATE_OPACITY))
    rotation = wxyz_to_rotation(quaternion_wxyz)
    white = torch.randn_like(scale) * (gate * rate)[:, None]
    local = (rotation.transpose(1, 2) @ white[..., None])[..., 0] * scale.square()
    return (rotation @ local[..., None])[..., 0]
