"""DUSt3R (Wang et al., CVPR 2024) and MASt3R (Leroy et al., ECCV 2024).

A shared ViT encoder, two entangled decoders, one head per view; MASt3R's head also gives local descriptors. Module
names are the state-dict names of the public checkpoints. `encode` and `decode` take images of any orientation upright;
calling the network also serves the landscape layout in which training batches mix orientations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lora3d_splat.errors import InputError
from lora3d_splat.networks.base import EncodedViews, PairOutput
from lora3d_splat.networks.dust3r_config import Dust3RConfig
from lora3d_splat.networks.heads import HEADS, DescriptorHead, DptHead
from lora3d_splat.networks.landscape import Maps, embed_stored, stored_maps
from lora3d_splat.networks.layers import (
    LORA_TARGETS,
    DecoderBlock,
    EncoderBlock,
    layer_norm,
    residual_stream,
    rotary_angles,
    token_positions,
)
from lora3d_splat.networks.postprocess import descriptors, points_and_confidence

UNKNOWN_LICENCE = "unknown; published weights of this architecture are CC BY-NC-SA 4.0 (non-commercial)"
ViewInput = Mapping[str, Any]
"""{"img": (B, 3, H, W) in [-1, 1], "true_shape": (B, 2) height and width, by default the tensor's own}"""


CONFIDENCE_FLOOR = 0.5
"""of the log-confidence (LoRA3D)"""


class PatchEmbed(nn.Module):
    """Images to tokens, one linear map per patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, N, E) in row-major order and their positions (B, N, 2)."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise InputError(f"images of {width}x{height} pixels", f"multiples of {self.patch}", "resize or crop them")
        grid = self.proj(images.to(self.proj.weight.dtype))
        positions = token_positions(len(grid), grid.shape[2], grid.shape[3], grid.device)
        return grid.flatten(2).transpose(1, 2), positions


class Dust3R(nn.Module):
    """Pointmap network of the DUSt3R and MASt3R architecture; meets `PointmapNetwork`."""

    lora_targets: tuple[str, ...] = LORA_TARGETS
    confidence_cutoff: float | None = 1.5

    def __init__(self, config: Dust3RConfig, name: str | None = None, licence: str = UNKNOWN_LICENCE) -> None:
        super().__init__()
        self.config, self.name, self.licence = config, name or config.model, licence
        self.patch_size, self.long_side = config.patch_size, max(config.img_size)
        self.confidence_floor = CONFIDENCE_FLOOR if config.conf_mode is not None else 0.0
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
        self.downstream_head1, self.downstream_head2 = (HEADS[config.head_type](config) for _ in range(2))

    def encode(self, images: Tensor) -> EncodedViews:
        """Encode upright images (B, 3, H, W) with values in [-1, 1]; H and W are multiples of the patch."""
        tokens, positions = self.encode_tokens(*self.patch_embed(images))
        return EncodedViews((images.shape[2], images.shape[3]), tokens, positions)

    def share(self, encoded: EncodedViews) -> EncodedViews:
        """The same views with what every pair of one computes alike, for either side; it is large."""
        heads = [head for head in (self.downstream_head1, self.downstream_head2) if isinstance(head, DptHead)]
        if not heads:
            return encoded
        grid = encoded.size[0] // self.patch_size, encoded.size[1] // self.patch_size
        with torch.autocast(encoded.tokens.device.type, enabled=False):
            parts = [head.share(_for(head, encoded.tokens), *grid) for head in heads]
        return replace(encoded, detail=torch.cat(parts, dim=1))

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        """Decode B pairs of upright images; both pointmaps are in the reference camera's frame.

        Descriptors, which cost half as much again as the decoder, are left to the full call.
        """
        streams = self.decode_tokens(reference.tokens, reference.positions, other.tokens, other.positions)
        as_first = None if reference.detail is None else reference.detail.chunk(2, dim=1)[0]
        as_second = None if other.detail is None else other.detail.chunk(2, dim=1)[1]
        first = self._upright(self.downstream_head1, streams[0], reference.size, False, as_first)
        second = self._upright(self.downstream_head2, streams[1], other.size, False, as_second)
        return PairOutput(first["points"], _confidence(first), second["points"], _confidence(second))

    def forward(self, view1: ViewInput, view2: ViewInput) -> tuple[Maps, Maps]:
        """{"pts3d", "conf"} of view 1 and {"pts3d_in_other_view", "conf"} of view 2, both in the frame of camera 1.

        Points (B, H, W, 3), confidence (B, H, W); with descriptors also "desc" (B, H, W, K), "desc_conf" (B, H, W).
        Upright when `landscape_only` is False, and then all images of a view have one shape; else in the landscape
        layout in which the images are stored. The two views may differ in shape.
        """
        views = view1, view2
        shapes = [_true_shape(view) for view in views]
        encoded = [self.encode_tokens(*self._embed(v["img"], shape)) for v, shape in zip(views, shapes, strict=True)]
        streams = self.decode_tokens(*encoded[0], *encoded[1])
        first = self._maps(self.downstream_head1, streams[0], shapes[0])
        second = self._maps(self.downstream_head2, streams[1], shapes[1])
        return {"pts3d": first.pop("points"), **first}, {"pts3d_in_other_view": second.pop("points"), **second}

    def encode_tokens(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder on embedded patches; returns the normed tokens (B, N, E) with their positions."""
        angles = self._angles(positions, self.config.enc_embed_dim // self.config.enc_num_heads)
        tokens = residual_stream(tokens)
        for block in self.enc_blocks:
            tokens = block(tokens, angles)
        return self.enc_norm(tokens), positions

    def decode_tokens(self, f1: Tensor, pos1: Tensor, f2: Tensor, pos2: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """L + 1 tokens per view: the encoder's, the residual stream after each layer, the last one normed.

        Both views are updated from the other's previous layer, so the order of the two lines does not matter.
        """
        head_width = self.config.dec_embed_dim // self.config.dec_num_heads
        angles1, angles2 = self._angles(pos1, head_width), self._angles(pos2, head_width)
        a, b = residual_stream(self.decoder_embed(f1)), residual_stream(self.decoder_embed(f2))
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
            return embed_stored(self.patch_embed, images, true_shape)
        return self.patch_embed(images)

    def _maps(self, head: nn.Module, stream: list[Tensor], true_shape: Tensor) -> Maps:
        """All maps of one view, upright or in the landscape layout as the configuration says."""
        if self.config.landscape_only:
            return stored_maps(lambda part, size: self._upright(head, part, size, True), stream, true_shape)
        return self._upright(head, stream, _common_shape(true_shape), True)

    def _upright(
        self, head: nn.Module, stream: list[Tensor], size: tuple[int, int], describe: bool, shared: Tensor | None = None
    ) -> Maps:
        """Maps of upright images of one size (H, W). Heads run in float32, also below a trunk in mixed precision."""
        config = self.config
        grid = size[0] // self.patch_size, size[1] // self.patch_size
        with torch.autocast(stream[0].device.type, enabled=False):
            stream = [_for(head, tokens) for tokens in stream]
            maps = points_and_confidence(head(stream, *grid, shared), config.depth_mode, config.conf_mode)
            if describe and isinstance(head, DescriptorHead):
                mode = config.desc_conf_mode or config.conf_mode
                maps |= descriptors(head.descriptors(stream, *grid), config.descriptor_width or 0, mode)
                if not config.two_confs and "conf" in maps:
                    maps["desc_conf"] = maps["conf"].clone()
        return maps


def _for(head: nn.Module, tokens: Tensor) -> Tensor:
    """In the precision of the head's weights: float32, unless the whole network was converted."""
    return tokens.to(next(head.parameters()).dtype)


def _confidence(maps: Maps) -> Tensor:
    """(B, H, W), all ones for networks without confidence."""
    return maps["conf"] if "conf" in maps else torch.ones_like(maps["points"][..., 0])


def _true_shape(view: ViewInput) -> Tensor:
    """(B, 2) integers on the CPU, where they decide what is computed."""
    images = view["img"]
    if (given := view.get("true_shape")) is None:
        return torch.tensor(images.shape[2:]).expand(len(images), 2)
    return torch.as_tensor(given).reshape(-1, 2).cpu()


def _common_shape(true_shape: Tensor) -> tuple[int, int]:
    if bool((true_shape != true_shape[0]).any()):
        raise InputError(
            found=f"images of the shapes {true_shape.unique(dim=0).tolist()} in one batch",
            accepted="one shape per batch, or a network with landscape_only=True",
            remedy="group the images by shape",
        )
    height, width = true_shape[0].tolist()
    return height, width
