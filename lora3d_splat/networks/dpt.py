"""The dense prediction head (Ranftl et al., ICCV 2021) in the form that DUSt3R-type networks use.

Four levels of tokens become feature maps of 4, 2, 1 and 1/2 times the token grid; coarse ones are fused into finer
ones, and the finest is enlarged to pixels. Module names are those of the public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.networks.enlarged import convolve_enlarged

REASSEMBLED = (96, 192, 384, 768)
FEATURES = 256
LAST = 128


class Dpt(nn.Module):
    """Tokens of four depths on one grid to `channels` raw values per pixel."""

    def __init__(self, token_widths: Sequence[int], channels: int) -> None:
        super().__init__()
        a, b, c, d = (nn.Conv2d(token, width, 1) for token, width in zip(token_widths, REASSEMBLED, strict=True))
        finest, finer, _, coarser = REASSEMBLED
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(a, nn.ConvTranspose2d(finest, finest, 4, stride=4)),
                nn.Sequential(b, nn.ConvTranspose2d(finer, finer, 2, stride=2)),
                nn.Sequential(c),
                nn.Sequential(d, nn.Conv2d(coarser, coarser, 3, stride=2, padding=1)),
            ]
        )
        self.scratch = Scratch()
        self.head = nn.Sequential(
            nn.Conv2d(FEATURES, LAST, 3, padding=1),
            Double(),
            nn.Conv2d(LAST, LAST, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(LAST, channels, 1),
        )

    def finest(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """What the finest level adds, which depends on the first tokens alone: (B, FEATURES, 4 rows, 4 columns)."""
        level = self.act_postprocess[0](to_grid(tokens, rows, columns))
        return self.scratch.refinenet1.resConfUnit1(self.scratch.layer1_rn(level))

    def forward(self, tokens: Sequence[Tensor], rows: int, columns: int, finest: Tensor | None = None) -> Tensor:
        """Four tensors (B, rows * columns, width) -> (B, channels, 16 rows, 16 columns); `finest` saves its part."""
        finest = self.finest(tokens[0], rows, columns) if finest is None else finest
        coarser = zip(self.act_postprocess[1:], tokens[1:], strict=True)
        levels = [reassemble(to_grid(part, rows, columns)) for reassemble, part in coarser]
        fused = self.scratch(finest, levels, rows, columns)
        if torch.is_grad_enabled() or fused.device.type != "cpu":
            return self.head(double(fused))
        return self._head_without_gradients(fused)

    def _head_without_gradients(self, fused: Tensor) -> Tensor:
        """The same at a quarter of the products, which is what counts on a CPU."""
        first, second, last = (part for part in self.head if isinstance(part, nn.Conv2d))
        half = convolve_enlarged(fused, first.weight, first.bias)
        finish = partial(_rectify_and_project, weight=last.weight.flatten(1), bias=last.bias)
        return convolve_enlarged(half, second.weight, second.bias, finish)


class Scratch(nn.Module):
    """Brings the levels to one width and fuses them, coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        rn = [nn.Conv2d(width, FEATURES, 3, padding=1, bias=False) for width in REASSEMBLED]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = rn
        self.layer_rn = nn.ModuleList(rn)  # the same four modules: checkpoints store them under both names
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (Fusion() for _ in range(4))

    def forward(self, finest: Tensor, levels: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """What the finest level adds, and levels of 2, 1 and 1/2 times the grid -> (B, FEATURES, 4 rows, 4 columns)"""
        s1, s2, s3 = (layer(level) for layer, level in zip(self.layer_rn[1:], levels, strict=True))
        z = self.refinenet4(s3)[..., :rows, :columns]  # one more where the grid is odd
        return self.refinenet1.refine(finest + self.refinenet2(self.refinenet3(z, s2), s1))


class Fusion(nn.Module):
    """Adds a finer level to a coarser result, refines the sum and doubles its size."""

    def __init__(self) -> None:
        super().__init__()
        self.resConfUnit1 = Refinement()  # of the coarsest fusion, which adds nothing, stored but not used
        self.resConfUnit2 = Refinement()
        self.out_conv = nn.Conv2d(FEATURES, FEATURES, 1)

    def forward(self, z: Tensor, finer: Tensor | None = None) -> Tensor:
        """(B, C, h, w) twice -> (B, C, 2h, 2w)"""
        if finer is not None:
            z = z + self.resConfUnit1(finer)
        return double(self.refine(z))

    def refine(self, z: Tensor) -> Tensor:
        """All but the enlargement, which by definition comes before the convolution.

        Being 1x1, that commutes with the interpolation, at a quarter of the cost.
        """
        return self.out_conv(self.resConfUnit2(z))


class Refinement(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.conv2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Double(nn.Module):
    """Bilinear enlargement to twice the size, the corners staying in place."""

    def forward(self, x: Tensor) -> Tensor:
        return double(x)


def double(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w)"""
    return F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=True)


def to_grid(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows * columns, C) -> (B, C, rows, columns) without a copy, hence in channels-last memory"""
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def _rectify_and_project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.relu_(), weight, bias)
