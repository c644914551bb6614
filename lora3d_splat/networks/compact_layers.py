"""Parts of the compact network: convolutional stem, correlation between two views, guided attention, point head.

Feature maps are (B, C, h, w) in channels-last memory. "Cells" are the stride-8 grid, "tokens" the stride-16 grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.geometry.relative_pose import NEAREST, Prior, RelativePose, Sightings
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
CACHED = 2**20
"""numbers that a core's cache holds a few times over"""
FINEST = 0.3
"""least standard deviation of a match, cells"""
GUESSED = Prior(depth=0.25, scale=0.2)
"""of the depths of the first guess"""


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
    window: Window

    def joined(self, more: Correspondence) -> Correspondence:
        """Followed by those of another batch, of the same sizes."""
        window = Window(*map(torch.cat, zip(self.window, more.window, strict=True)))
        return Correspondence(
            torch.cat([self.cues, more.cues]),
            torch.cat([self.probability, more.probability]),
            torch.cat([self.cycle, more.cycle]),
            torch.cat([self.guide, more.guide]),
            window,
        )


def pool_to_tokens(probability: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> Tensor:
    """Cell-to-cell probabilities (B, N, M) -> token-to-token (B, n, m); rows still sum to one."""
    (h, w), (p, q) = grid, other_grid
    columns = probability.unflatten(2, (p // 2, 2, q // 2, 2))
    columns = columns[..., 0, :, 0] + columns[..., 0, :, 1] + columns[..., 1, :, 0] + columns[..., 1, :, 1]
    return columns.flatten(2).unflatten(1, (h // 2, 2, w // 2, 2)).mean((2, 4)).flatten(1, 2)


def correspond(
    logits: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]
) -> tuple[Correspondence, Correspondence]:
    """Where the matches of either view's cells lie and how sure that is, from match logits (B, N, M)."""
    forward, backward = logits.softmax(-1), logits.transpose(1, 2).softmax(-1)
    both = forward * backward.transpose(1, 2)
    windows = _windows(forward, backward, grid, other_grid)
    return (
        _one_way(forward, both.sum(2), windows[0], grid, other_grid),
        _one_way(backward, both.sum(1), windows[1], other_grid, grid),
    )


def best_windows(logits: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]) -> tuple[Window, Window]:
    """The best windows of either view's cells, from match logits (B, N, M); on a CPU as many pairs at once as its cache
    holds."""
    at_once = max(1, CACHED // logits[0].numel()) if logits.device.type == "cpu" else len(logits)
    parts = [
        _windows(each.softmax(-1), each.transpose(1, 2).softmax(-1), grid, other_grid) for each in logits.split(at_once)
    ]
    first, second = (Window(*map(torch.cat, zip(*side, strict=True))) for side in zip(*parts, strict=True))
    return first, second


def _windows(
    forward: Tensor, backward: Tensor, grid: tuple[int, int], other_grid: tuple[int, int]
) -> tuple[Window, Window]:
    ahead, back = Boxes.of(forward, other_grid), Boxes.of(backward, grid)
    return best_window(ahead, back, other_grid), best_window(back, ahead, grid)


def _one_way(
    probability: Tensor, cycle: Tensor, window: Window, grid: tuple[int, int], other_grid: tuple[int, int]
) -> Correspondence:
    own = cell_centres(*grid, probability.device).expand(len(probability), -1, -1)
    scalars = torch.stack([4 * window.spread, window.mass, window.trust], dim=-1)
    cues = torch.cat([own, window.place, 4 * (window.place - own), scalars], dim=-1)
    return Correspondence(cues, probability, cycle, pool_to_tokens(probability, grid, other_grid), window)


class Boxes(NamedTuple):
    """Squared match probabilities, which sharpens them: the loss spreads what it is unsure of over all cells."""

    squares: Tensor
    """(B, N, M), rows not normalised"""
    sums: Tensor
    """(B, N, M) over the 3 x 3 cells around each of the other view's cells"""
    total: Tensor
    """(B, N) of the rows"""

    @classmethod
    @torch.no_grad()
    def of(cls, probability: Tensor, other_grid: tuple[int, int]) -> Boxes:
        """Of probabilities (B, N, M)."""
        squares = probability.square()
        framed = F.pad(squares.unflatten(2, other_grid), (1, 1, 1, 1))
        rows = framed[:, :, :-2] + framed[:, :, 1:-1] + framed[:, :, 2:]
        sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        return cls(squares, sums.flatten(2), squares.sum(-1).clamp(min=1e-30))


class Window(NamedTuple):
    """The 3 x 3 cells of the other view that hold most of each cell's match. All (B, N) float32, without gradient."""

    place: Tensor
    """(B, N, 2): where these cells put the match"""
    spread: Tensor
    """standard deviation within them, per axis"""
    mass: Tensor
    """chance of these cells"""
    trust: Tensor
    """the same, times the chance that they lead back next to the cell itself"""


@torch.no_grad()
def best_window(ahead: Boxes, back: Boxes, other_grid: tuple[int, int]) -> Window:
    """Matches from the best window only.

    A mean over all cells would draw what is unsure to the middle of the picture, and so every pose to no motion.
    """
    p, q = other_grid
    best = ahead.sums.argmax(-1, keepdim=True)
    offsets = torch.tensor([-1, 0, 1], device=best.device)
    rows, columns = best // q + offsets.repeat_interleave(3), best % q + offsets.repeat(3)
    inside = (rows >= 0) & (rows < p) & (columns >= 0) & (columns < q)
    cells = rows.clamp(0, p - 1) * q + columns.clamp(0, q - 1)
    chance = ahead.squares.gather(2, cells) * inside / ahead.total[..., None]
    returning = back.sums.transpose(1, 2).gather(2, cells) / back.total.gather(1, cells.flatten(1)).view_as(cells)
    mass = chance.sum(-1)
    share = chance / mass[..., None].clamp(min=1e-12)
    x, y = (2 * columns + 1 - q) / max(p, q), (2 * rows + 1 - p) / max(p, q)
    place = torch.stack([(share * x).sum(-1), (share * y).sum(-1)], dim=-1)
    variance = (share * ((x - place[..., :1]) ** 2 + (y - place[..., 1:]) ** 2)).sum(-1) / 2
    return Window(place, variance.sqrt().clamp(min=FINEST * 2 / max(p, q)), mass, (chance * returning).sum(-1))


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
        matched = sampled(sides[1 - side], other_grid, match.window.place)
        return torch.cat([sides[side], matched, self.pose[:, None].expand(-1, matched.shape[1], -1)], dim=-1)


def sampled(values: Tensor, grid: tuple[int, int], places: Tensor) -> Tensor:
    """Values (B, M, C) of a grid at places (B, N, 2), bilinear -> (B, N, C)."""
    shape = places.new_tensor([grid[1], grid[0]]) / max(grid)
    maps = values.transpose(1, 2).unflatten(2, grid)
    found = F.grid_sample(maps, (places / shape)[:, None], padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def sightings(points: Tensor, window: Window, focal: Tensor) -> Sightings:
    """Points (B, N, 3) of cells in their own camera, and their matches.

    `focal` (B,) or (1,) is that of the view that the matches lie in, half a long side being 1.
    """
    depth = points[..., 2].clamp(min=NEAREST)
    place, spread = window.place / focal[:, None, None], window.spread / focal[:, None]
    return Sightings(points / depth[..., None], depth, place, spread, window.trust)


@torch.no_grad()
def first_guess(rays: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor], pose: RelativePose) -> FirstGuess:
    """Points of both views, the other view's in its pose.

    `rays` (N, 3) and (M, 3) at z = 1 and `depths` (B, N) and (B, M) are those of the reference and of the other view.
    """
    other = rays[1] * (depths[1] * pose.log_scale.exp()[:, None])[..., None]
    other = other @ pose.rotation.transpose(1, 2) + pose.translation[:, None]
    cues = torch.cat([pose.rotation.flatten(1), pose.translation.clamp(-3, 3)], dim=1)
    return FirstGuess(rays[0] * depths[0][..., None], other, cues)


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
