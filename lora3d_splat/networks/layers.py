"""Transformer parts shared by the pointmap networks: rotary positions, attention, encoder and decoder blocks.

Written from the arithmetic of DUSt3R-type networks (Wang et al., CVPR 2024); parameter names are those of the public
checkpoints. LayerNorm eps 1e-6, exact GELU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.networks.attention import attend

LAYER_NORM_EPS = 1e-6
LORA_TARGETS = ("qkv", "projq", "projk", "projv")


def token_positions(batch: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Integer (row, column) of tokens in row-major order, (batch, rows * columns, 2)."""
    grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
    return grid.reshape(1, -1, 2).expand(batch, -1, -1)


def rotary_angles(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, N, head_width) of the 2D rotary embedding for integer positions (B, N, 2)."""
    quarter = head_width // 4
    frequencies = base ** (-torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter)
    angles = positions[..., None].float() * frequencies  # B, N, 2, quarter
    angles = torch.cat([angles, angles], dim=-1).flatten(2)  # row, row, column, column
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(vectors: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary angles to (B, heads, N, d): in each half, element k is paired with element k + d/4."""
    cos, sin = angles
    a, b, c, d = vectors.chunk(4, dim=-1)
    turned = torch.cat([-b, a, -d, c], dim=-1)
    return vectors * cos.to(vectors.dtype) + turned * sin.to(vectors.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)"""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions and a fused qkv projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(attend(rotate(q, angles), rotate(k, angles), v)))


class CrossAttention(nn.Module):
    """Multi-head cross-attention with rotary positions; queries and keys use their own image's positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, angles_x: tuple[Tensor, Tensor], angles_y: tuple[Tensor, Tensor]) -> Tensor:
        q = rotate(split_heads(self.projq(x), self.heads), angles_x)
        k = rotate(split_heads(self.projk(y), self.heads), angles_y)
        return self.proj(merge_heads(attend(q, k, split_heads(self.projv(y), self.heads))))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def residual_stream(x: Tensor) -> Tensor:
    """The tokens that all layers add to: float32 below autocast, which takes a third off its error for no time."""
    return x.float() if torch.is_autocast_enabled(x.device.type) else x


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon of the public networks."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the other view's tokens, MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.norm3 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm_y = layer_norm(width)

    def forward(
        self, x: Tensor, memory: Tensor, angles_x: tuple[Tensor, Tensor], angles_memory: tuple[Tensor, Tensor]
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), angles_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), angles_x, angles_memory)
        return x + self.mlp(self.norm3(x))
