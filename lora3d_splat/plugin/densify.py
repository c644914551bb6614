"""Growing the set of Gaussians while it trains, inside nerfstudio's optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter, ParameterDict
from torch.optim import Optimizer

from lora3d_splat.gaussians.mcmc import draw_by_opacity, exploration_noise, share_between_copies

CAP = {"cuda": 1_000_000, "cpu": 200_000}


@dataclass
class DensifyConfig:
    """Densification by gsplat's MCMC strategy: transparent Gaussians move to where they help, new ones are added."""

    enabled: bool = False
    """False keeps the seed points' number."""
    cap: int | None = None
    """Most Gaussians; None means 1,000,000 on CUDA and 200,000 elsewhere."""
    start: int = 500
    """First step."""
    stop: float = 0.85
    """Share of the training after which the set stays as it is."""
    every: int = 100
    """Steps between two rounds."""
    growth: float = 0.05
    """Share of new Gaussians in each round."""
    min_opacity: float = 0.005
    """Gaussians below this opacity are moved."""
    noise: float = 5e5
    """Random moves, times the learning rate of the positions."""
    opacity_penalty: float = 0.01
    """Weight of the mean opacity in the loss."""
    scale_penalty: float = 0.01
    """Weight of the mean standard deviation in the loss."""


@torch.no_grad()
def relocate(params: ParameterDict, optimizers: dict[str, Optimizer], min_opacity: float) -> int:
    """Move Gaussians that are nearly transparent onto opaque ones; returns how many."""
    opacity = params["opacities"].flatten().sigmoid()
    dead = (opacity <= min_opacity).nonzero()[:, 0]
    alive = (opacity > min_opacity).nonzero()[:, 0]
    if len(dead) == 0 or len(alive) == 0:
        return 0
    targets = alive[draw_by_opacity(opacity[alive], len(dead))]
    _share(params, targets, min_opacity)
    for name, value in params.items():
        value.data[dead] = value.data[targets]
        _each_moment(optimizers[name], lambda moment: moment.index_fill_(0, targets, 0.0))
    return len(dead)


@torch.no_grad()
def grow(params: ParameterDict, optimizers: dict[str, Optimizer], count: int, min_opacity: float) -> Tensor:
    """Add `count` Gaussians as copies of opaque ones; returns the indices (count,) of the originals."""
    opacity = params["opacities"].flatten().sigmoid()
    originals = draw_by_opacity(opacity, count)
    _share(params, originals, min_opacity)
    for name, value in list(params.items()):
        _each_moment(optimizers[name], lambda moment: torch.cat([moment, moment.new_zeros(count, *moment.shape[1:])]))
        params[name] = _replace(optimizers[name], value, torch.cat([value.data, value.data[originals]]))
    return originals


@torch.no_grad()
def explore(params: ParameterDict, rate: float) -> None:
    """Shake the nearly transparent Gaussians."""
    opacity, scale = params["opacities"].flatten().sigmoid(), params["scales"].exp()
    params["means"].data += exploration_noise(opacity, scale, params["quats"], rate)


def _share(params: ParameterDict, targets: Tensor, min_opacity: float) -> None:
    """Weaken the Gaussians that are about to be copied, each once for every copy."""
    copies = torch.bincount(targets, minlength=len(params["opacities"]))[targets] + 1
    opacity, scale = params["opacities"].flatten()[targets].sigmoid(), params["scales"][targets].exp()
    opacity, scale = share_between_copies(opacity, scale, copies)
    params["opacities"].data[targets] = opacity.clamp(min_opacity, 1.0 - 1e-7).logit()[:, None]
    params["scales"].data[targets] = scale.log()


def _replace(optimizer: Optimizer, old: Parameter, values: Tensor) -> Parameter:
    """A new Parameter in the old one's place. The old one, resized, would not do: as long as something keeps a graph of
    an earlier step, torch goes on expecting gradients of the old size."""
    new = Parameter(values)
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
    return new


def _each_moment(optimizer: Optimizer, change: Callable[[Tensor], Tensor]) -> None:
    """Replace Adam's running averages; its step counter stays."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                state[key] = change(value)
