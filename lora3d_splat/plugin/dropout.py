"""Gaussians left out of single steps, so that few photographs cannot be explained by conspiracies of overlapping ones.

DropGaussian (Park, Ryu and Kim, CVPR 2025): the share that is left out rises along the training, the others are made as
much more opaque.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW, MANY, SHARE = 3, 7, 0.3
"""Up to FEW training photographs this share is left out at the end, less with more, none from MANY on: there it costs
more than it gains (docs/gaussians.md)."""


def usual_share(photographs: int) -> float:
    """The share left out at the end of a training with so many photographs."""
    return SHARE * min(1.0, max(0.0, (MANY - photographs) / (MANY - FEW)))


def some_left_out(opacities: Tensor, share: float) -> Tensor:
    """Opacities (N,), those of a random `share` zero and the others as much higher."""
    if share == 0:
        return opacities
    return opacities * (torch.rand_like(opacities) >= share) / (1 - share)
