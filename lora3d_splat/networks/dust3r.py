"""DUSt3R (Wang et al., CVPR 2024): a shared ViT encoder, two entangled decoders, one head per view.

Module names are the state-dict names of the public checkpoints. `encode` and `decode` take images of any orientation
upright; `forward` also serves the landscape layout in which training batches mix orientations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lora3d_splat.networks.base import EncodedViews, PairOutput
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.networks.heads import points_and_confidence, require_head
from lora3d_splat.networks.layers import (
    LORA_TARGETS,
    DecoderBlock,
    EncoderBlock,
    layer_norm,
    rotary_angles,
    token_positions,
)

WEIGHTS_LICENCE = "CC BY-NC-SA 4.0 (non-commercial), and the terms of the training data"
Maps = dict[str, Tensor]


class PatchEmbed(nn.Module):
    """Images to tokens, one linear map per patch; portrait images of a landscape layout are turned upright first."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, N, E) in row-major order and their positions (B, N, 2)."""
        grid = self.proj(images)
        positions = token_positions(len(grid), grid.shape[2], grid.shape[3], grid.device)
        return grid.flatten(2).transpose(1, 2), positions

    def landscape_layout(self, images: Tensor, true_shape: Tensor) -> tuple[Tensor, Tensor]:
        """The same for images stored with width >= height, those whose true shape is portrait transposed."""
        portrait = is_portrait(true_shape)
        upright, turned = self(images), self(images.transpose(2, 3))
        choose = portrait[:, None, None]
        return torch.where(choose, turned[0], upright[0]), torch.where(choose, turned[1], upright[1])


class Dust3R(nn.Module):
    """Pointmap network of the DUSt3R architecture; meets `PointmapNetwork`."""

    lora_targets = LORA_TARGETS
    confidence_floor = 0.5
    confidence_cutoff = 1.5

    def __init__(self, config: Dust3RConfig, name: str = "dust3r", licence: str = WEIGHTS_LICENCE) -> None:
        super().__init__()
        self.config, self.name, self.licence = config, name, licence
        self.patch_size, self.long_side = config.patch_size, max(config.img_size)
        self.image_shape = "square" if self.long_side == 224 else "no-square"
        encoder, decoder = config.enc_embed_dim, config.dec_embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))  # of pre-training: stored in every file, never used
        self.patch_embed = PatchEmbed(config.patch_size, encoder)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(encoder, config.enc_num_heads, config.mlp_ratio) for _ in range(config.enc_depth)
        )
        self.enc_norm = layer_norm(encoder)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(
                DecoderBlock(decoder, config.dec_num_heads, config.mlp_ratio) for _ in range(config.dec_depth)
            )
            for _ in range(2)
        )
        self.dec_norm = layer_norm(decoder)
        channels = 3 if config.conf_mode is None else 4
        head = require_head(config.head_type)
        self.downstream_head1 = head(decoder, config.patch_size, channels)
        self.downstream_head2 = head(decoder, config.patch_size, channels)

    def encode(self, images: Tensor) -> EncodedViews:
        """Encode upright images (B, 3, H, W) with values in [-1, 1]; H and W are multiples of the patch."""
        tokens, positions = self.encode_tokens(*self.patch_embed(images))
        return EncodedViews((images.shape[2], images.shape[3]), tokens, positions)

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        """Decode B pairs of upright images; both pointmaps are in the reference camera's frame."""
        streams = self.decode_tokens(reference.tokens, reference.positions, other.tokens, other.positions)
        first = self._upright_maps(self.downstream_head1, streams[0], reference.size)
        second = self._upright_maps(self.downstream_head2, streams[1], other.size)
        return PairOutput(first["points"], first["conf"], second["points"], second["conf"])

    def forward(self, view1: Maps, view2: Maps) -> tuple[Maps, Maps]:
        """Maps for views {"image": (B, 3, H, W), "true_shape": (B, 2) height and width, by default the tensor's own}.

        Returns {"pts3d", "conf"} and {"pts3d_in_other_view", "conf"}, points (B, H, W, 3), confidence (B, H, W):
        upright when `landscape_only` is False, else in the landscape layout in which the images are stored.
        """
        shapes = [view.get("true_shape", _own_shape(view["image"])) for view in (view1, view2)]
        encoded = [self.encode_tokens(*self._embed(v["image"], s)) for v, s in zip((view1, view2), shapes, strict=True)]
        streams = self.decode_tokens(*encoded[0], *encoded[1])
        first = self._maps(self.downstream_head1, streams[0], shapes[0])
        second = self._maps(self.downstream_head2, streams[1], shapes[1])
        return (
            {"pts3d": first["points"], "conf": first["conf"]},
            {"pts3d_in_other_view": second["points"], "conf": second["conf"]},
        )

    def encode_tokens(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder on embedded patches; returns the normed tokens (B, N, E) with their positions."""
        angles = self._angles(positions, self.config.enc_embed_dim // self.config.enc_num_heads)
        for block in self.enc_blocks:
            tokens = block(tokens, angles)
        return self.enc_norm(tokens), positions

    def decode_tokens(self, f1: Tensor, pos1: Tensor, f2: Tensor, pos2: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """L + 1 tokens per view: the encoder's, the residual stream after each layer, the last one normed.

        Both views are updated from the other's previous layer, so the order of the two lines does not matter.
        """
        head_width = self.config.dec_embed_dim // self.config.dec_num_heads
        angles1, angles2 = self._angles(pos1, head_width), self._angles(pos2, head_width)
        a, b = self.decoder_embed(f1), self.decoder_embed(f2)
        stream1, stream2 = [f1], [f2]
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            a, b = block1(a, b, angles1, angles2), block2(b, a, angles2, angles1)
            stream1.append(a)
            stream2.append(b)
        stream1[-1], stream2[-1] = self.dec_norm(a), self.dec_norm(b)
        return stream1, stream2

    def _angles(self, positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
        return rotary_angles(positions, head_width, self.config.rotary_base or 100.0)

    def _embed(self, images: Tensor, true_shape: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.patch_embed_cls == "ManyAR_PatchEmbed":
            return self.patch_embed.landscape_layout(images, true_shape)
        return self.patch_embed(images)

    def _maps(self, head: nn.Module, stream: list[Tensor], true_shape: Tensor) -> Maps:
        """Maps of one view, upright or in the landscape layout as the configuration says."""
        if self.config.landscape_only:
            return landscape_maps(lambda part, size: self._upright_maps(head, part, size), stream, true_shape)
        return self._upright_maps(head, stream, _common_shape(true_shape))

    def _upright_maps(self, head: nn.Module, stream: list[Tensor], size: tuple[int, int]) -> Maps:
        """Heads always run in float32, also below a trunk in mixed precision."""
        rows, columns = size[0] // self.patch_size, size[1] // self.patch_size
        with torch.autocast(stream[0].device.type, enabled=False):
            raw = head([tokens.float() for tokens in stream], rows, columns)
            return points_and_confidence(raw, self.config.depth_mode, self.config.conf_mode)


def is_portrait(true_shape: Tensor) -> Tensor:
    """(B,) bool for true shapes (B, 2) of (height, width); a square counts as landscape."""
    return true_shape[:, 0] > true_shape[:, 1]


def landscape_maps(
    maps: Callable[[list[Tensor], tuple[int, int]], Maps], stream: list[Tensor], true_shape: Tensor
) -> Maps:
    """Evaluate each orientation on its real grid and transpose the portrait maps, so that all have one layout.

    The vectors stay as they are: the points of a portrait image are those of its upright camera.
    """
    short, long = int(true_shape.min()), int(true_shape.max())
    portrait = is_portrait(true_shape)
    parts: list[Any] = []
    for chosen, size in ((~portrait, (short, long)), (portrait, (long, short))):
        if chosen.any():
            part = maps([tokens[chosen] for tokens in stream], size)
            turned = {k: v.transpose(1, 2) for k, v in part.items()} if size == (long, short) and long > short else part
            parts.append((chosen.nonzero()[:, 0], turned))
    order = torch.cat([indices for indices, _ in parts]).argsort()
    return {key: torch.cat([part[key] for _, part in parts])[order] for key in parts[0][1]}


def _own_shape(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[2:], device=images.device).expand(len(images), 2)


def _common_shape(true_shape: Tensor) -> tuple[int, int]:
    height, width = (int(side) for side in true_shape[0])
    if bool((true_shape != true_shape[0]).any()):
        raise ValueError(f"images of one batch must have one shape, got {true_shape.unique(dim=0).tolist()}")
    return height, width
