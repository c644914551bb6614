"""Muon for matrices, AdamW for the rest, both on float32 master weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora3d_splat.precision import has_bfloat16

MOMENTUM = 0.95
WEIGHT_DECAY = 0.02
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""quintic Newton-Schulz iteration of Muon (Jordan et al., 2024)"""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, approximately, of (B, r, c) by Newton-Schulz, in bfloat16 where the device has
    instructions for it."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if has_bfloat16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight, flattened to a matrix, is orthogonalised; equal shapes go in one batch.

    The update is scaled to the size of a typical AdamW update, so learning rates compare.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for shape, members in shapes.items():
                updates = orthogonalise(torch.stack([self._nesterov(each).flatten(1) for each in members]))
                rate = group["lr"]
                for parameter, update in zip(members, updates, strict=True):
                    parameter.mul_(1 - rate * WEIGHT_DECAY)
                    parameter.add_(update.view_as(parameter), alpha=-rate * 0.2 * max(shape) ** 0.5)

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.mul_(MOMENTUM).add_(parameter.grad)
        return parameter.grad + MOMENTUM * buffer


def make_optimizers(network: nn.Module, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices and kernels; AdamW for vectors and for the layers at the image and point ends."""
    ends = ("stem.first", "head.out", "view_embedding")
    matrices, rest = [], []
    for name, parameter in network.named_parameters():
        (matrices if parameter.ndim >= 2 and not name.startswith(ends) else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers = [Muon(matrices, muon_rate), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
