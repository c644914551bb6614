"""The dense prediction head (Ranftl et al., ICCV 2021) in the form that DUSt3R-type networks use.

Four levels of tokens become feature maps of 4, 2, 1 and 1/2 times the token grid; coarse ones are fused into finer
ones, and the finest is enlarged to pixels. Module names are those of the public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

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

    def forward(self, tokens: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Four tensors (B, rows * columns, width) -> (B, channels, 16 rows, 16 columns)"""
        grids = [part.transpose(1, 2).unflatten(2, (rows, columns)) for part in tokens]
        levels = [reassemble(grid) for reassemble, grid in zip(self.act_postprocess, grids, strict=True)]
        return self.head(self.scratch(levels, rows, columns))


class Scratch(nn.Module):
    """Brings the levels to one width and fuses them, coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        rn = [nn.Conv2d(width, FEATURES, 3, padding=1, bias=False) for width in REASSEMBLED]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = rn
        self.layer_rn = nn.ModuleList(rn)  # the same four modules: checkpoints store them under both names
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (Fusion() for _ in range(4))

    def forward(self, levels: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Levels of 4, 2, 1 and 1/2 times the grid -> (B, FEATURES, 8 rows, 8 columns)"""
        s0, s1, s2, s3 = (layer(level) for layer, level in zip(self.layer_rn, levels, strict=True))
        z = self.refinenet4(s3)[..., :rows, :columns]  # one more where the grid is odd
        return self.refinenet1(self.refinenet2(self.refinenet3(z, s2), s1), s0)


class Fusion(nn.Module):
    """Adds a finer level to a coarser result, refines the sum and doubles its size."""

    def __init__(self) -> None:
        super().__init__()
        self.resConfUnit1 = Refinement()  # of the coarsest fusion, which adds nothing, stored but not used
        self.resConfUnit2 = Refinement()
        self.out_conv = nn.Conv2d(FEATURES, FEATURES, 1)
        self.enlarge = Double()

    def forward(self, z: Tensor, finer: Tensor | None = None) -> Tensor:
        """(B, C, h, w) twice -> (B, C, 2h, 2w)"""
        if finer is not None:
            z = z + self.resConfUnit1(finer)
        # By its definition the convolution comes last; being 1x1 it commutes with the interpolation, at a quarter of
        # the cost.
        return self.enlarge(self.out_conv(self.resConfUnit2(z)))


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
        return F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=True)
