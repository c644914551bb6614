"""Parts of the compact network: convolutional stem, correlation between two views, guided attention, point head.

Feature maps are (B, C, h, w) in channels-last memory. "Cells" are the stride-8 grid, "tokens" the stride-16 grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.geometry.relative_pose import Sightings, relative_pose
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
"""own position 2, match 2, displacement 2, spread, mass and trust of the match, first guess of geometry 18"""
SHARPENED = 2.0
"""Factor of the match logits where places are read from them: the loss spreads what it is unsure of over all cells."""
FINEST = 0.3
"""least standard deviation of a match, cells"""
GUESSED_DEPTH_SIGMA = 0.25
"""relative error of the depths of the first guess"""


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
    """Soft matches from one view's cells (N) to the other view's cells (M). Places as in `cell_centres`."""

    cues: Tensor
    """(B, N, 9) float32"""
    probability: Tensor
    """(B, N, M) float32"""
    cycle: Tensor
    """(B, N) float32 cycle consistency: the chance that the match of the match is the cell itself"""
    guide: Tensor
    """(B, n, m) float32 probability between tokens"""
    place: Tensor
    """(B, N, 2) float32: where in the other view the best 3 x 3 cells put the match"""
    spread: Tensor
    """(B, N) float32 standard deviation within those cells"""
    trust: Tensor
    """(B, N) float32: the chance of those cells, times the chance that they lead back next to the cell itself"""


def pool_to_tokens(probability: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> Tensor:
    """Cell-to-cell probabilities (B, N, M) -> token-to-token (B, n, m); rows still sum to one."""
    (h, w), (p, q) = grid, other_grid
    blocks = probability.reshape(-1, h // 2, 2, w // 2, 2, p // 2, 2, q // 2, 2)
    return blocks.sum((6, 8)).mean((2, 4)).flatten(1, 2).flatten(2, 3)


def correspond(logits: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> Correspondence:
    """Where each cell's match lies and how sure that is, from match logits (B, N, M)."""
    forward, backward = logits.softmax(-1), logits.transpose(1, 2).softmax(-1)
    place, spread, mass, trust = best_window(logits, grid, other_grid)
    cycle = (forward * backward.transpose(1, 2)).sum(-1)
    own = cell_centres(*grid, forward.device).expand(forward.shape[0], -1, -1)
    scalars = torch.stack([4 * spread, mass, trust], dim=-1)
    cues = torch.cat([own, place, 4 * (place - own), scalars], dim=-1)
    return Correspondence(cues, forward, cycle, pool_to_tokens(forward, grid, other_grid), place, spread, trust)


@torch.no_grad()
def best_window(
    logits: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Place (B, N, 2), spread, mass and trust (B, N) of each cell's match, from the 3 x 3 cells that hold most of it.

    A mean over all cells would draw every uncertain match to the middle of the picture, and so every pose to no motion.
    """
    (h, w), (p, q) = grid, other_grid
    sharp = SHARPENED * logits
    forward, backward = sharp.softmax(-1), sharp.transpose(1, 2).softmax(-1)
    framed = F.pad(forward.unflatten(2, other_grid), (1, 1, 1, 1))
    best = box_sum(framed.flatten(0, 1), 0).flatten(1).argmax(1).unflatten(0, forward.shape[:2])
    around = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(best.device)
    rows, columns = best[..., None] // q + around[:, 0], best[..., None] % q + around[:, 1]  # in the frame of width 1
    chance = framed.flatten(2).gather(2, rows * (q + 2) + columns)
    mass = chance.sum(-1)
    share = chance / mass[..., None]
    x, y = (2 * columns - 1 - q) / max(p, q), (2 * rows - 1 - p) / max(p, q)
    place = torch.stack([(share * x).sum(-1), (share * y).sum(-1)], dim=-1)
    variance = (share * ((x - place[..., :1]) ** 2 + (y - place[..., 1:]) ** 2)).sum(-1) / 2
    back = box_sum(backward.unflatten(2, grid).flatten(0, 1), 1).unflatten(0, backward.shape[:2])
    back = F.pad(back.flatten(2).transpose(1, 2).unflatten(2, other_grid), (1, 1, 1, 1))
    trust = (chance * back.flatten(2).gather(2, rows * (q + 2) + columns)).sum(-1)
    return place, variance.sqrt().clamp(min=FINEST * 2 / max(p, q)), mass, trust


def box_sum(maps: Tensor, padding: int) -> Tensor:
    """Sums over the 3 x 3 boxes of (B, h, w), with a frame of `padding` zeros."""
    maps = F.pad(maps, [padding] * 4)
    rows = maps[:, :-2] + maps[:, 1:-1] + maps[:, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


@dataclass(frozen=True)
class FirstGuess:
    """Geometry before the decoder: per-view depth guesses, registered through the matches. Float32, no gradient."""

    points_reference: Tensor
    """(B, N, 3) cell centres of the reference view, reference frame"""
    points_other: Tensor
    """(B, M, 3) cell centres of the other view, reference frame"""
    pose: Tensor
    """(B, 12) rotation (row-major) and translation of T_reference_other"""

    def cues(self, side: int, match: Correspondence, other_grid: tuple[int, int]) -> Tensor:
        """(B, N, 18) own point, matched point, pose, for the cells of side 0 (reference) or 1."""
        sides = (self.points_reference, self.points_other)
        matched = sampled(sides[1 - side], other_grid, match.place)
        return torch.cat([sides[side], matched, self.pose[:, None].expand(-1, matched.shape[1], -1)], dim=-1)


def sampled(values: Tensor, grid: tuple[int, int], places: Tensor) -> Tensor:
    """Values (B, M, C) of a grid at places (B, N, 2), bilinear -> (B, N, C)."""
    shape = places.new_tensor([grid[1], grid[0]]) / max(grid)
    maps = values.transpose(1, 2).unflatten(2, grid)
    found = F.grid_sample(maps, (places / shape)[:, None], padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


@torch.no_grad()
def first_guess(
    rays: tuple[Tensor, Tensor],
    depths: tuple[Tensor, Tensor],
    match: Correspondence,
    back: Correspondence,
    focal: float,
) -> FirstGuess:
    """Register the other view's guessed points to the reference's.

    `rays` (N, 3) and (M, 3) at z = 1 and `depths` (B, N) and (B, M) are those of the reference and of the other view;
    `focal` is the assumed focal length, half a long side being 1.
    """
    sides = [
        Sightings(ray.expand(len(depth), -1, -1), depth, each.place / focal, each.spread / focal, each.trust)
        for ray, depth, each in zip(rays, depths, (match, back), strict=True)
    ]
    found = relative_pose(*sides, GUESSED_DEPTH_SIGMA)
    pose = torch.cat([found.rotation.flatten(1), found.translation.clamp(-3, 3)], dim=1)
    other = rays[1] * (depths[1] * found.log_scale.exp()[:, None])[..., None]
    other = other @ found.rotation.transpose(1, 2) + found.translation[:, None]
    return FirstGuess(rays[0] * depths[0][..., None], other, pose)


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
