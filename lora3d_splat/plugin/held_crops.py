"""A crop of every training picture that the training never sees, to notice when further steps do harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora3d_splat.photometric import photo_loss
from lora3d_splat.plugin.crops import Crop

LEAST_SIDE = 24
"""Pixels; smaller crops say nothing about structure."""


@dataclass
class EarlyStopConfig:
    """Stopping when a held-out crop of the training pictures gets worse."""

    enabled: bool = True
    """Hold crops out and stop; False trains on whole pictures for all steps."""
    side: float = 0.2
    """Width and height of the crop, as a share of the picture's."""
    every: int = 50
    """Steps between two looks at the crops; there are two more after a quarter and a half of them, because with poor
    poses the very first steps are the best."""
    patience: int = 8
    """Bad looks in a row after which training ends; the last state that looked good is kept."""
    tolerance: float = 0.15
    """A look is good while the crops' loss has risen from its lowest by at most this share of what it had fallen since
    the first look. Where cameras are good it falls far, then goes up and down while held-out views still gain; where
    they are poor it hardly falls, and every rise counts."""
    slack: float = 0.05
    """A rise from the lowest loss by up to this share of it counts as none: with three photographs the crops show what
    no other one shows, and their loss hardly moves either way; with poor cameras it soon rises by more."""
    ssim_weight: float = 0.5
    """Share of 1 - SSIM in what is compared, the rest is L1: too many steps on wrong poses cost structure first."""


def place_crop(view: int, width: int, height: int, side: float) -> Crop | None:
    """Where the crop of a training view lies: drawn at random, the same in every run; None in a small picture."""
    size = [max(round(side * length), LEAST_SIDE) for length in (width, height)]
    if 2 * size[0] > width or 2 * size[1] > height:
        return None
    generator = torch.Generator().manual_seed(view)
    left, top = (
        int(torch.randint(length - part + 1, (1,), generator=generator))
        for length, part in zip((width, height), size, strict=True)
    )
    return Crop(left, top, *size)


class HeldCrops:
    """The crops of all training views, and the last state in which they looked good."""

    def __init__(self, config: EarlyStopConfig, sizes: Sequence[tuple[int, int]]) -> None:
        self.config = config
        self.crops = [place_crop(view, *size, config.side) for view, size in enumerate(sizes)]
        self.first = self.best = float("inf")
        self.kept_step = -1
        self._waited = 0
        self._state: dict[str, Tensor] = {}

    def hide(self, view: int, rendered: Tensor, photo: Tensor) -> Tensor:
        """The rendering (H, W, 3) with the photograph in place of the view's crop: no loss and no gradient there."""
        crop = self.crops[view] if view < len(self.crops) else None
        if crop is None:
            return rendered
        hidden = torch.zeros(rendered.shape[:2], dtype=torch.bool, device=rendered.device)
        crop.of(hidden).fill_(True)
        return torch.where(hidden[..., None], photo, rendered)

    def due(self, step: int) -> bool:
        """Whether to look after this step."""
        every, done = self.config.every, step + 1
        return done % every == 0 or done in (every // 4, every // 2)

    def look(self, step: int, loss: float, module: nn.Module) -> bool:
        """Take notice of the crops' loss after a step; True when it has been bad for too long."""
        self.first = loss if self.first == float("inf") else self.first
        self.best = min(self.best, loss)
        allowed = max(self.config.tolerance * (self.first - self.best), self.config.slack * self.best)
        if loss <= self.best + allowed:
            self.kept_step, self._waited = step, 0
            self._state = {name: value.detach().clone() for name, value in module.state_dict().items()}
            return False
        self._waited += 1
        return self._waited >= self.config.patience

    def restore(self, module: nn.Module) -> None:
        """Return to the last state that looked good."""
        if self._state:
            module.load_state_dict(self._state)

    def loss(self, rendered: Sequence[Tensor], photos: Sequence[Tensor]) -> float:
        """Mean over the crops."""
        losses = [photo_loss(r, p, self.config.ssim_weight) for r, p in zip(rendered, photos, strict=True)]
        return float(torch.stack(losses).mean())
