"""Parts of the compact network: convolutional stem, correlation between two views, guided attention, point head.

Feature maps are (B, C, h, w) in channels-last memory. "Cells" are the stride-8 grid, "tokens" the stride-16 grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.networks.layers import (
    CrossAttention,
    DecoderBlock,
    EncoderBlock,
    SelfAttention,
    layer_norm,
    merge_heads,
    rotate,
    split_heads,
)

CELL_WIDTH = 128
SKIP_WIDTH = 32
CUES = 27
"""own position 2, expected match 2, displacement 2, spread, peak, cycle consistency, first guess of geometry 18"""


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a (B, C, h, w) map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = layer_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualConv(nn.Module):
    """Pre-norm residual pair of 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


def halve(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Stride-2 convolution whose outputs are centred on 2 x 2 input blocks, so positions stay exact."""
    return nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)


class Stem(nn.Module):
    """Image -> skip features (stride 4), cells (stride 8), tokens (stride 16)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = halve(3, 32)
        self.quarter = nn.Sequential(halve(32, 64), ResidualConv(64))
        self.skip = nn.Conv2d(64, SKIP_WIDTH, 1)
        self.cells = nn.Sequential(halve(64, CELL_WIDTH), ResidualConv(CELL_WIDTH), ResidualConv(CELL_WIDTH))
        self.tokens = nn.Sequential(ChannelNorm(CELL_WIDTH), nn.Conv2d(CELL_WIDTH, width, 2, stride=2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quarter = self.quarter(F.gelu(self.first(images.contiguous(memory_format=torch.channels_last))))
        cells = self.cells(quarter)
        return self.skip(quarter), cells, self.tokens(cells)


class PlainSelfAttention(SelfAttention):
    """Self-attention as two matrix products: at these sizes faster on a CPU than the fused kernel."""

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(merge_heads(attention(rotate(q, angles), rotate(k, angles)) @ v))


class GuidedCrossAttention(CrossAttention):
    """Cross-attention whose first head looks where the correlation volume says the match is."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor,
        angles_x: tuple[Tensor, Tensor],
        angles_y: tuple[Tensor, Tensor],
        guide: Tensor,
    ) -> Tensor:
        q = rotate(split_heads(self.projq(x), self.heads)[:, 1:], angles_x)
        k = rotate(split_heads(self.projk(y), self.heads)[:, 1:], angles_y)
        weights = torch.cat([guide[:, None], attention(q, k)], dim=1)
        return self.proj(merge_heads(weights @ split_heads(self.projv(y), self.heads)))


def attention(q: Tensor, k: Tensor) -> Tensor:
    """Softmax attention weights (B, heads, N, M)."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)


class CompactEncoderBlock(EncoderBlock):
    """Encoder block with the plain attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attn = PlainSelfAttention(width, heads)


class GuidedDecoderBlock(DecoderBlock):
    """Decoder block whose cross-attention is guided by the correlation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attn = PlainSelfAttention(width, heads)
        self.cross_attn = GuidedCrossAttention(width, heads)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        angles_x: tuple[Tensor, Tensor],
        angles_memory: tuple[Tensor, Tensor],
        guide: Tensor,
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), angles_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), angles_x, angles_memory, guide)
        return x + self.mlp(self.norm3(x))


def cell_centres(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 2) centres (x, y) of a grid, image centre at 0, half the long side at 1; float32."""
    longest = max(rows, columns)
    y = (2 * torch.arange(rows, device=device) + 1 - rows) / longest
    x = (2 * torch.arange(columns, device=device) + 1 - columns) / longest
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Correspondence:
    """Soft matches from one view's cells (N) to the other view's cells (M)."""

    cues: Tensor
    """(B, N, 9) float32"""
    probability: Tensor
    """(B, N, M) float32"""
    trust: Tensor
    """(B, N) float32 cycle consistency: the chance that the match of the match is the cell itself"""
    guide: Tensor
    """(B, n, m) float32 probability between tokens"""


def pool_to_tokens(probability: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> Tensor:
    """Cell-to-cell probabilities (B, N, M) -> token-to-token (B, n, m); rows still sum to one."""
    (h, w), (p, q) = grid, other_grid
    blocks = probability.reshape(-1, h // 2, 2, w // 2, 2, p // 2, 2, q // 2, 2)
    return blocks.sum((6, 8)).mean((2, 4)).flatten(1, 2).flatten(2, 3)


def correspond(forward: Tensor, backward: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> Correspondence:
    """Where each cell's match lies and how sure that is, from match probabilities (B, N, M) and (B, M, N)."""
    own = cell_centres(*grid, forward.device)
    other = cell_centres(*other_grid, forward.device)
    moments = forward @ torch.cat([other, other.square().sum(-1, keepdim=True)], dim=-1)
    expected = moments[..., :2]
    spread = (moments[..., 2:] - expected.square().sum(-1, keepdim=True)).clamp(min=1e-6).sqrt()
    peak = forward.amax(-1, keepdim=True)
    cycle = (forward * backward.transpose(1, 2)).sum(-1, keepdim=True)
    place = own.expand(forward.shape[0], -1, -1)
    cues = torch.cat([place, expected, 4 * (expected - place), 4 * spread, peak, cycle], dim=-1)
    return Correspondence(cues, forward, cycle[..., 0], pool_to_tokens(forward, grid, other_grid))


@dataclass(frozen=True)
class FirstGuess:
    """Geometry before the decoder: per-view depth guesses, registered through the matches. Float32, no gradient."""

    points_reference: Tensor
    """(B, N, 3) cell centres of the reference view, reference frame"""
    points_other: Tensor
    """(B, M, 3) cell centres of the other view, reference frame"""
    pose: Tensor
    """(B, 12) rotation (row-major) and translation of T_reference_other"""

    def cues(self, side: int, match: Correspondence) -> Tensor:
        """(B, N, 18) own point, matched point, pose, for the cells of side 0 (reference) or 1."""
        sides = (self.points_reference, self.points_other)
        own, matched = sides[side], match.probability.detach() @ sides[1 - side]
        return torch.cat([own, matched, self.pose[:, None].expand(-1, own.shape[1], -1)], dim=-1)


@torch.no_grad()
def first_guess(own: Tensor, other: Tensor, match: Correspondence, back: Correspondence, rounds: int = 4) -> FirstGuess:
    """Register the other view's guessed points (B, M, 3) to the reference's (B, N, 3), each in its own camera's frame.

    Robust weighted Procrustes over the soft matches in both directions; errors count relative to distance.
    """
    source = torch.cat([match.probability @ other, other], dim=1)
    target = torch.cat([own, back.probability @ own], dim=1)
    near = target.square().sum(-1).clamp(min=1e-4)
    trust = torch.cat([match.trust, back.trust], dim=1).square() / near + 1e-6
    weights = trust
    for _ in range(rounds):
        fitted = weighted_similarity(source, target, weights)
        residual = (fitted.apply(source) - target).square().sum(-1).div(near).add(1e-8).sqrt()
        typical = (residual * trust).sum(1, keepdim=True) / trust.sum(1, keepdim=True)
        weights = trust / (1 + (residual / typical) ** 2)
    pose = torch.cat([fitted.rotation.flatten(1), fitted.translation.clamp(-3, 3)], dim=1)
    return FirstGuess(own, fitted.apply(other), pose)


class PointHead(nn.Module):
    """Tokens and cells -> (B, 4, H/2, W/2): offset from the first guess (3) and raw confidence (1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = layer_norm(width)
        self.spread = nn.Linear(width, 4 * CELL_WIDTH)
        self.coarse = ResidualConv(CELL_WIDTH)
        self.finer = nn.Conv2d(CELL_WIDTH, 4 * 64, 1)
        self.skip = nn.Conv2d(SKIP_WIDTH, 64, 1)
        self.fine = ResidualConv(64)
        self.out = nn.Conv2d(64, 16, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()

    def forward(self, tokens: Tensor, cells: Tensor, skip: Tensor) -> Tensor:
        rows, columns = cells.shape[-2] // 2, cells.shape[-1] // 2
        x = self.coarse(cells + tokens_to_cells(self.spread(self.norm(tokens)), rows, columns))
        x = self.fine(F.pixel_shuffle(self.finer(x), 2) + self.skip(skip))
        return F.pixel_shuffle(self.out(F.gelu(x)), 2)


def tokens_to_cells(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows * columns, 4 C) -> (B, C, 2 rows, 2 columns)"""
    blocks = tokens.unflatten(1, (rows, columns)).unflatten(-1, (2, 2, -1))  # B, r, c, 2, 2, C
    return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).contiguous(memory_format=torch.channels_last)


def cells_to_tokens(cells: Tensor) -> Tensor:
    """(B, C, 2 rows, 2 columns) -> (B, rows * columns, 4 C)"""
    blocks = cells.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B, C, r, 2, c, 2
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
