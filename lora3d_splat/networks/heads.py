"""From tokens to raw channels: the regression heads, by the name that a checkpoint gives them.

A head takes the L + 1 token tensors of one view (encoder output, residual stream after each decoder layer, the last
one normed) and gives the raw channels (B, 3 or 4, H, W) of points and confidence; `postprocess` says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora3d_splat.networks.dpt import Dpt
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.networks.layers import Mlp


class LinearHead(nn.Module):
    """One linear layer on the last tokens, each token giving the channels of its own patch of pixels."""

    def __init__(self, config: Dust3RConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = nn.Linear(config.dec_embed_dim, point_channels(config) * self.patch**2)

    def forward(self, tokens: Sequence[Tensor], rows: int, columns: int, shared: Tensor | None = None) -> Tensor:
        """(B, rows * columns, D) -> (B, C, rows * patch, columns * patch); nothing is shared."""
        return patches_to_pixels(self.proj(tokens[-1]), rows, columns, self.patch)


class DptHead(nn.Module):
    """The convolutional head on the encoder's tokens and those halfway, three quarters and all the way down."""

    def __init__(self, config: Dust3RConfig) -> None:
        super().__init__()
        depth = config.dec_depth
        self.hooks = (0, 2 * depth // 4, 3 * depth // 4, depth)
        self.dpt = Dpt((config.enc_embed_dim, *[config.dec_embed_dim] * 3), point_channels(config))

    def share(self, encoded: Tensor, rows: int, columns: int) -> Tensor:
        """What all pairs of a view share, as it depends on the encoder's tokens alone: (B, C, 4 rows, 4 columns)."""
        return self.dpt.finest(encoded, rows, columns)

    def forward(self, tokens: Sequence[Tensor], rows: int, columns: int, shared: Tensor | None = None) -> Tensor:
        """(B, rows * columns, E or D) each -> (B, C, 16 rows, 16 columns); `shared` is computed where not given."""
        return self.dpt([tokens[hook] for hook in self.hooks], rows, columns, shared)


class DescriptorHead(DptHead):
    """The convolutional head, and beside it an MLP that gives every pixel a local descriptor (MASt3R)."""

    def __init__(self, config: Dust3RConfig) -> None:
        super().__init__(config)
        self.patch = config.patch_size
        width = config.enc_embed_dim + config.dec_embed_dim
        channels = (config.descriptor_width or 0) + int(config.two_confs)
        self.head_local_features = Mlp(width, 4 * width, channels * self.patch**2)

    def descriptors(self, tokens: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Raw descriptors, with a confidence channel where there is one: (B, K or K + 1, H, W)."""
        features = self.head_local_features(torch.cat([tokens[0], tokens[-1]], dim=-1))
        return patches_to_pixels(features, rows, columns, self.patch)


HEADS: dict[str, type[LinearHead] | type[DptHead]] = {
    "linear": LinearHead, "dpt": DptHead, "catmlp+dpt": DescriptorHead
}  # fmt: skip
"""head_type of a checkpoint -> class"""


def point_channels(config: Dust3RConfig) -> int:
    """x, y, z, and the confidence where there is one."""
    return 3 if config.conf_mode is None else 4


def patches_to_pixels(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """(B, rows * columns, C * patch^2), channel-major -> (B, C, rows * patch, columns * patch)"""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), patch)
