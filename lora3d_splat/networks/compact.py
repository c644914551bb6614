"""The bundled network: small enough to train on a CPU, from procedural scenes alone.

A convolutional stem feeds a normalised correlation volume at stride 8, which is supervised with true matches while
training. Where a cell's match lies, and how sure that is, enters the tokens of a DUSt3R-type decoder (Wang et al.,
CVPR 2024), and guides one head of every cross-attention. Points start from a fixed ray grid and are predicted at
stride 2.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora3d_splat.errors import CheckpointError, InputError
from lora3d_splat.geometry.relative_pose import RelativePose, relative_pose
from lora3d_splat.networks.base import EncodedViews, PairOutput
from lora3d_splat.networks.compact_layers import (
    CELL_WIDTH,
    CUES,
    GUESSED,
    SKIP_WIDTH,
    CompactEncoderBlock,
    Correspondence,
    FirstGuess,
    GuidedDecoderBlock,
    PointHead,
    Stem,
    best_windows,
    cells_to_tokens,
    correspond,
    first_guess,
    sightings,
    tokens_to_cells,
)
from lora3d_splat.networks.compact_settle import Decoded, Matched, exchanged, pixel_rays, settled
from lora3d_splat.networks.compact_subpixel import sharpened
from lora3d_splat.networks.layers import LORA_TARGETS, layer_norm, rotary_angles, token_positions

CHECKPOINT = Path(__file__).with_name("compact.safetensors")
START_FOCAL = 0.9
"""focal length of the first guess, in long sides"""
OVERLAP = (0.07, 0.10)
"""Cycle consistency of the matches: pairs below the first show different things, those above the second the same
(docs/compact.md). In between the log-confidence fades."""
USUAL_CELLS, DILUTION = 192, 0.8
"""More cells have less chance each: cycle consistency falls with this power of their number, and counts as if there
were the usual number (docs/compact.md)."""
FINE, FINE_FROM = 2, 160
"""Poses are read from matches between pictures enlarged this many times, where their long side is at most so many
pixels: more cells, not more detail, is what makes a pose exact (docs/compact.md)."""
FARTHEST = 7.0
"""largest log(1 + distance) of a point; nearest things are at about 1, so this is beyond every horizon"""
DEPTH_RANGE = 2.0
"""largest absolute log of a guessed depth"""


@dataclass(frozen=True)
class CompactArchitecture:
    """Sizes of the compact network; stored in its checkpoint."""

    width: int = 192
    """token width"""
    heads: int = 4
    """attention heads; the first one of each cross-attention is guided"""
    encoder_depth: int = 4
    """self-attention blocks per view"""
    decoder_depth: int = 8
    """blocks that look at both views"""
    match_width: int = 96
    """width of the features that are correlated"""
    rope_base: float = 100.0
    """base of the rotary frequencies"""


@dataclass(frozen=True)
class CompactOutput:
    """A decoded batch at stride 2, with what the training losses need. Frames as in PairOutput."""

    points_reference: Tensor
    """(B, H1/2, W1/2, 3)"""
    confidence_reference: Tensor
    """(B, H1/2, W1/2)"""
    points_other: Tensor
    """(B, H2/2, W2/2, 3)"""
    confidence_other: Tensor
    """(B, H2/2, W2/2)"""
    match_logits: Tensor
    """(B, N, M) float32: stride-8 cells of the reference against those of the other view"""
    log_depth_reference: Tensor
    """(B, N) float32: first guess of the log of z-depth at the reference's cells, up to a constant"""
    cycle: Tensor
    """(B,) float32: mean chance, over the cells of both views, that the match of a cell's match is the cell itself,
    as if there were USUAL_CELLS"""
    settled_reference: Tensor
    """`points_reference` where the matches would have them (`compact_settle`), without gradient; the same where
    nothing has settled"""
    settled_other: Tensor
    """of `points_other`"""

    @classmethod
    def of(cls, decoded: Decoded, match_logits: Tensor, log_depth: Tensor, cycle: Tensor) -> CompactOutput:
        """Before anything settles."""
        points_1, points_2, confidence_1, confidence_2 = decoded
        return cls(points_1, confidence_1, points_2, confidence_2, match_logits, log_depth, cycle, points_1, points_2)

    @property
    def decoded(self) -> Decoded:
        """Points and confidence."""
        return Decoded(self.points_reference, self.points_other, self.confidence_reference, self.confidence_other)

    def halves(self) -> tuple[CompactOutput, CompactOutput]:
        """The first half of the batch, and the second."""
        parts = [value.chunk(2) for value in vars(self).values()]
        return CompactOutput(*(part[0] for part in parts)), CompactOutput(*(part[1] for part in parts))

    def joined(self, more: CompactOutput) -> CompactOutput:
        """Followed by another batch of the same sizes."""
        return CompactOutput(*map(torch.cat, zip(vars(self).values(), vars(more).values(), strict=True)))

    def averaged(self, mirrored: CompactOutput) -> CompactOutput:
        """With points and confidence of the same pairs as decoded from mirrored pictures; the rest stays."""
        left_right = torch.tensor([-1.0, 1.0, 1.0], device=self.points_reference.device)
        reference, other = mirrored.points_reference.flip(2) * left_right, mirrored.points_other.flip(2) * left_right
        ratio = self.points_reference.norm(dim=-1).log() - reference.norm(dim=-1).log()
        scale = ratio.flatten(1).median(1).values.exp()[:, None, None, None]
        return replace(
            self,
            points_reference=(self.points_reference + scale * reference) / 2,
            confidence_reference=(self.confidence_reference * mirrored.confidence_reference.flip(2)).sqrt(),
            points_other=(self.points_other + scale * other) / 2,
            confidence_other=(self.confidence_other * mirrored.confidence_other.flip(2)).sqrt(),
        )


class ViewFeatures(NamedTuple):
    """What the encoder knows of B views."""

    skip: Tensor
    """(B, SKIP_WIDTH, H/4, W/4)"""
    cells: Tensor
    """(B, CELL_WIDTH, H/8, W/8)"""
    tokens: Tensor
    """(B, N, width)"""
    positions: Tensor
    """(B, N, 2)"""
    grid: tuple[int, int]
    """rows and columns of the tokens"""


class Detail(NamedTuple):
    """What the decoder takes from an encoded view beside its tokens, at stride 8."""

    match: Tensor
    """(B, match_width, h, w)"""
    fine: Tensor
    """(B, FINE^2 match_width, h, w) match features of the enlarged picture, packed; no channels where there is none"""
    cells: Tensor
    """(B, CELL_WIDTH, h, w)"""
    skip: Tensor
    """(B, 4 SKIP_WIDTH, h, w) packed skip features"""
    depth: Tensor
    """(B, 1, h, w) raw depth"""
    grey: Tensor
    """(B, 64, h, w) packed mean of the picture's channels"""


class Seen(NamedTuple):
    """What a pair is known by before anything is decoded. Float32."""

    views: tuple[EncodedViews, EncodedViews]
    """reference and other"""
    logits: Tensor
    """(B, N, M), with gradient"""
    matches: tuple[Correspondence, Correspondence]
    """from the reference's cells to the other view's, and back"""
    log_depth: tuple[Tensor, Tensor]
    """(B, N) and (B, M), with gradient"""

    def swapped(self) -> Seen:
        """With the views exchanged."""
        logits = self.logits.transpose(1, 2)
        return Seen(exchanged(self.views), logits, exchanged(self.matches), exchanged(self.log_depth))

    def joined(self, more: Seen) -> Seen:
        """Followed by pairs of the same sizes."""
        (a, b), (c, d) = self.views, more.views
        views = EncodedViews.stack([a, c]), EncodedViews.stack([b, d])
        matches = self.matches[0].joined(more.matches[0]), self.matches[1].joined(more.matches[1])
        first, second = map(torch.cat, zip(self.log_depth, more.log_depth, strict=True))
        return Seen(views, torch.cat([self.logits, more.logits]), matches, (first, second))


class CompactNetwork(nn.Module):
    """Pointmap network (PointmapNetwork protocol) of about eight million parameters."""

    name = "compact"
    revision = 5
    """counts up when equal weights begin to compute something else, so that stored predictions are made again"""
    licence = "Apache-2.0"
    patch_size = 16
    long_side = 128
    lora_targets: tuple[str, ...] = LORA_TARGETS
    confidence_floor = 0.1
    """trained with alpha 1: log-confidence is about -log(relative error), and 0 where there is no surface"""
    confidence_cutoff: float | None = None
    confidence_alpha = 1.0  # as trained (pretraining/config.py)
    adaptation_steps = 450
    adaptation_needs_tracks = True  # its pairs share their errors, so their agreement neither teaches nor judges

    def __init__(self, architecture: CompactArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = a = architecture or CompactArchitecture()
        self.stem = Stem(a.width)
        self.enc_blocks = nn.ModuleList(CompactEncoderBlock(a.width, a.heads) for _ in range(a.encoder_depth))
        self.enc_norm = layer_norm(a.width)
        self.match_cells = nn.Conv2d(CELL_WIDTH, a.match_width, 1)
        self.match_tokens = nn.Linear(a.width, 4 * a.match_width)
        self.match_sharpness = nn.Parameter(torch.tensor(2.3))
        self.depth_cells = nn.Conv2d(CELL_WIDTH, 1, 1)
        self.depth_tokens = nn.Linear(a.width, 4)
        self.cell_cues = nn.Linear(2 * CELL_WIDTH + CUES, CELL_WIDTH)
        self.token_cues = nn.Linear(4 * CELL_WIDTH, a.width)
        self.view_embedding = nn.Parameter(0.02 * torch.randn(2, a.width))
        self.dec_blocks = nn.ModuleList(GuidedDecoderBlock(a.width, a.heads) for _ in range(a.decoder_depth))
        self.head = PointHead(a.width)

    def encode(self, images: Tensor) -> EncodedViews:
        """Encode (B, 3, H, W) images in [-1, 1]; `detail` packs a `Detail`, and where predictions are averaged with
        those of mirrored pictures, that of the mirrored one and its tokens."""
        encoded = self._encode(images)
        if self._learns():
            return encoded
        mirrored = self._encode(images.flip(-1))
        tokens = tokens_to_cells(mirrored.tokens, *token_grid(mirrored))
        return replace(encoded, detail=torch.cat([detail_of(encoded), detail_of(mirrored), tokens], dim=1))

    def _learns(self) -> bool:
        """Whether gradients flow, or an adapter has learnt: then it knows better than matches and mirrors."""
        return torch.is_grad_enabled() or hasattr(self, "peft_config")

    def _encode(self, images: Tensor) -> EncodedViews:
        """The pictures as they are."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(f"images of {width}x{height} pixels", "multiples of 16", "resize or crop the images")
        features = self._features(images)
        match = self._match(features)
        if self._fineness((height, width)) > 1:
            with torch.no_grad():  # poses carry no gradient
                larger = F.interpolate(images.float(), scale_factor=FINE, mode="bicubic", align_corners=False)
                fine = self._match(self._features(larger.clamp(-1, 1).to(images.dtype)))
            match = torch.cat([match, F.pixel_unshuffle(fine, FINE)], dim=1)
        depth = self.depth_cells(features.cells) + tokens_to_cells(self.depth_tokens(features.tokens), *features.grid)
        grey = F.pixel_unshuffle(images.mean(1, keepdim=True), 8)
        detail = torch.cat([match, features.cells, F.pixel_unshuffle(features.skip, 2), depth, grey], dim=1)
        return EncodedViews((height, width), features.tokens, features.positions, detail)

    def _features(self, images: Tensor) -> ViewFeatures:
        """Stem and encoder."""
        skip, cells, grid = self.stem(images)
        rows, columns = grid.shape[-2:]
        tokens = grid.flatten(2).transpose(1, 2)
        positions = token_positions(len(images), rows, columns, images.device)
        angles = self._angles(positions, tokens.dtype)
        for block in self.enc_blocks:
            tokens = block(tokens, angles)
        return ViewFeatures(skip, cells, self.enc_norm(tokens), positions, (rows, columns))

    def _match(self, features: ViewFeatures) -> Tensor:
        """(B, match_width, h, w) features that are correlated."""
        return self.match_cells(features.cells) + tokens_to_cells(self.match_tokens(features.tokens), *features.grid)

    def decode(self, reference: EncodedViews, other: EncodedViews) -> PairOutput:
        """Decode B ordered pairs at full image size; no confidence is left where the two pictures do not overlap.

        What settles needs both orders of a pair: whoever wants both asks for them together."""
        if not self._learns():
            return self.decode_both(reference, other)[0]
        shown, matched = self._matched(reference, other)
        return self._output(self._averaged(shown, matched.pose), reference.size, other.size)

    def decode_both(self, reference: EncodedViews, other: EncodedViews) -> tuple[PairOutput, PairOutput]:
        """Decode B pairs in both orders, the first one with `reference` as its reference. Else as `decode`."""
        there, back = self.decode_half(reference, other)
        return self._output(there, reference.size, other.size), self._output(back, other.size, reference.size)

    def decode_half(
        self, reference: EncodedViews, other: EncodedViews, settle: bool = False
    ) -> tuple[CompactOutput, CompactOutput]:
        """Decode B pairs in both orders at stride 2, with the match logits.

        What is decoded is averaged with what mirrored pictures give and settles on the matches (`compact_settle`), but
        where gradients flow or with an adapter, only to `settle`, and then beside what is decoded."""
        shown, matched = self._matched(reference, other)
        there, back = self._in_both_orders(shown, matched.pose)
        if self._learns() and not settle:
            return there, back
        with torch.autocast(reference.tokens.device.type, enabled=False):  # geometry needs all digits
            points = settled(there.decoded, back.decoded, matched)
        both = [
            replace(order, settled_reference=first, settled_other=second)
            for order, (first, second) in zip((there, back), points, strict=True)
        ]
        return both[0], both[1]

    @staticmethod
    def _output(half: CompactOutput, size: tuple[int, int], other_size: tuple[int, int]) -> PairOutput:
        """At full image size."""
        sure = overlap(half.cycle)[:, None, None]
        points = [half.settled_reference, half.settled_other]
        points_1, confidence_1 = enlarge(points[0], half.confidence_reference**sure, size)
        points_2, confidence_2 = enlarge(points[1], half.confidence_other**sure, other_size)
        return PairOutput(points_1, confidence_1, points_2, confidence_2)

    def _matched(self, reference: EncodedViews, other: EncodedViews) -> tuple[list[Seen], Matched]:
        """A pair as it is and, unless the network learns, as it is mirrored; and what its matches say."""
        (reference, *mirrored), (other, *other_mirrored) = self._unpacked(reference), self._unpacked(other)
        shown = [self._seen(reference, other)]
        if mirrored and other_mirrored and not self._learns():
            shown.append(self._seen(mirrored[0], other_mirrored[0]))
        with torch.autocast(reference.tokens.device.type, enabled=False):  # geometry needs all digits
            return shown, self._finest(shown)

    def _in_both_orders(self, shown: list[Seen], pose: RelativePose) -> tuple[CompactOutput, CompactOutput]:
        """At once where both views are of one size: fewer and larger products."""
        swapped, back = [each.swapped() for each in shown], pose.inverted()
        if shown[0].views[0].size != shown[0].views[1].size:
            return self._averaged(shown, pose), self._averaged(swapped, back)
        both = [first.joined(second) for first, second in zip(shown, swapped, strict=True)]
        return self._averaged(both, pose.joined(back)).halves()

    def _averaged(self, shown: list[Seen], pose: RelativePose) -> CompactOutput:
        """One order, from a pose; of the pair as it is and mirrored where there are both."""
        found = self._decoded(shown[0], pose)
        for seen in shown[1:]:
            found = found.averaged(self._decoded(seen, pose.mirrored()))
        return replace(found, settled_reference=found.points_reference, settled_other=found.points_other)

    def _unpacked(self, view: EncodedViews) -> list[EncodedViews]:
        """The view, and the mirrored one where it was encoded as well."""
        detail, width = detail_of(view), sum(self._detail_widths(view.size))
        if detail.shape[1] == width:
            return [view]
        own, mirrored, packed = detail.split([width, width, self.architecture.width // 4], dim=1)
        return [
            replace(view, detail=own),
            EncodedViews(view.size, cells_to_tokens(packed), view.positions, mirrored),
        ]

    def _seen(self, reference: EncodedViews, other: EncodedViews) -> Seen:
        """Soft matches and guessed depths."""
        with torch.autocast(reference.tokens.device.type, enabled=False):  # matches need all digits
            logits = self.match_logits(reference, other)
            matches = correspond(logits, cell_grid(reference), cell_grid(other))
            return Seen((reference, other), logits, matches, (self._log_depth(reference), self._log_depth(other)))

    def _decoded(self, seen: Seen, pose: RelativePose) -> CompactOutput:
        """From a pose."""
        reference, other = seen.views
        (match_1, match_2), logits = seen.matches, seen.logits
        with torch.autocast(logits.device.type, enabled=False):  # geometry needs all digits
            rays = cell_rays(*cell_grid(reference), logits), cell_rays(*cell_grid(other), logits)
            guess = first_guess(rays, (seen.log_depth[0].exp(), seen.log_depth[1].exp()), pose)
        cells_1, x = self._enter(reference, other, match_1, guess, 0)
        cells_2, y = self._enter(other, reference, match_2, guess, 1)
        x, y = self._converse(x, y, (reference.positions, other.positions), (match_1.guide, match_2.guide))
        points_1, confidence_1 = self._points(x, cells_1, reference, guess.points_reference)
        points_2, confidence_2 = self._points(y, cells_2, other, guess.points_other)
        cycle = torch.cat([match_1.cycle, match_2.cycle], dim=1)
        cycle = cycle.mean(1).detach() * (cycle.shape[1] / 2 / USUAL_CELLS) ** DILUTION
        decoded = Decoded(points_1, points_2, confidence_1, confidence_2)
        return CompactOutput.of(decoded, logits, seen.log_depth[0], cycle)

    def match_logits(self, reference: EncodedViews, other: EncodedViews) -> Tensor:
        """Scaled cosine similarity (B, N, M) in float32 between the stride-8 cells of two views."""
        return self._similarity(self._split(reference).match, self._split(other).match)

    def _similarity(self, reference: Tensor, other: Tensor) -> Tensor:
        """The same of match features (B, C, h, w) and (B, C, p, q)."""
        first, second = (F.normalize(each.flatten(2).float(), dim=1) for each in (reference, other))
        return self.match_sharpness.float().exp() * (first.transpose(1, 2) @ second)

    @torch.no_grad()
    def _finest(self, shown: list[Seen]) -> Matched:
        """The finest matches of a pair as it is and, where there are two, as it is mirrored; and its pose by them."""
        grids, depths, pictures, features = [], [], [], []
        for side, view in enumerate(shown[0].views):
            factor, grid = self._fineness(view.size), cell_grid(view)
            logs = [seen.log_depth[side].unflatten(1, (1, *grid)) for seen in shown]
            depth = torch.stack([_upright(log, turn) for turn, log in enumerate(logs)]).mean(0)
            depth = F.interpolate(depth, scale_factor=float(factor), mode="bilinear")
            grids.append((factor * grid[0], factor * grid[1]))
            depths.append(depth.flatten(1).exp())
            pictures.append(F.pixel_shuffle(self._split(view).grey.float(), 8))
            seen = [F.normalize(self._fine(each.views[side]).float(), dim=1) for each in shown]
            features.append(torch.cat([_upright(each, turn) for turn, each in enumerate(seen)], dim=1))
        if len(shown) == 1 and grids == [cell_grid(view) for view in shown[0].views]:
            windows = shown[0].matches[0].window, shown[0].matches[1].window
        else:
            windows = best_windows(self._similarity(features[0], features[1]), grids[0], grids[1])
        windows = sharpened(windows, (pictures[0], pictures[1]), (grids[0], grids[1]))
        focal = 2 * START_FOCAL
        points = [cell_rays(*grid, depth) * depth[..., None] for grid, depth in zip(grids, depths, strict=True)]
        lens = depths[0].new_full((1,), focal)
        first, second = (sightings(each, window, lens) for each, window in zip(points, windows, strict=True))
        pose = relative_pose(first, second, GUESSED)
        return Matched((grids[0], grids[1]), (depths[0], depths[1]), windows, focal, pose)

    def _fineness(self, size: tuple[int, int]) -> int:
        """How many times a picture of (H, W) pixels is enlarged for its finest matches.

        Not with an adapter: it learns from elsewhere where views stand, and so in less time."""
        return FINE if max(size) <= FINE_FROM and not hasattr(self, "peft_config") else 1

    def _fine(self, view: EncodedViews) -> Tensor:
        """Match features (B, C, h, w) of a view's finest cells."""
        detail = self._split(view)
        return F.pixel_shuffle(detail.fine, FINE) if self._fineness(view.size) > 1 else detail.match

    def _split(self, view: EncodedViews) -> Detail:
        """Unpack an encoded view."""
        return Detail(*detail_of(view).split(self._detail_widths(view.size), dim=1))

    def _detail_widths(self, size: tuple[int, int]) -> list[int]:
        """Channels of the parts of a `Detail`."""
        width = self.architecture.match_width
        fine = width * FINE**2 if self._fineness(size) > 1 else 0
        return [width, fine, CELL_WIDTH, 4 * SKIP_WIDTH, 1, 64]

    def _log_depth(self, view: EncodedViews) -> Tensor:
        """(B, N) bounded log of the guessed z-depth of each cell, float32."""
        return DEPTH_RANGE * torch.tanh(self._split(view).depth.flatten(1).float() / DEPTH_RANGE)

    def _enter(
        self, view: EncodedViews, other: EncodedViews, match: Correspondence, guess: FirstGuess, side: int
    ) -> tuple[Tensor, Tensor]:
        """Cells with match cues (B, C, h, w) and decoder input tokens (B, N, width) of one side."""
        own, theirs = self._split(view).cells, self._split(other).cells.flatten(2).transpose(1, 2)
        warped = match.probability.to(theirs.dtype) @ theirs
        cues = torch.cat([match.cues, guess.cues(side, match, cell_grid(other))], dim=-1).to(theirs.dtype)
        known = torch.cat([own.flatten(2).transpose(1, 2), warped, cues], dim=-1)
        cells = F.gelu(self.cell_cues(known)).unflatten(1, own.shape[-2:]).permute(0, 3, 1, 2)
        return cells, view.tokens + self.token_cues(cells_to_tokens(cells)) + self.view_embedding[side]

    def _converse(
        self, x: Tensor, y: Tensor, positions: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder, whose weights both sides share."""
        angles_x, angles_y = (self._angles(each, x.dtype) for each in positions)
        guide_x, guide_y = (each.to(x.dtype) for each in guides)
        for block in self.dec_blocks:
            x, y = block(x, y, angles_x, angles_y, guide_x), block(y, x, angles_y, angles_x, guide_y)
        return x, y

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rotary angles of a batch, all of whose images have the same size."""
        cos, sin = rotary_angles(
            positions[:1], self.architecture.width // self.architecture.heads, self.architecture.rope_base
        )
        return cos.to(dtype), sin.to(dtype)

    def _points(self, tokens: Tensor, cells: Tensor, view: EncodedViews, guess: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, H/2, W/2, 3) and confidence (B, H/2, W/2) of one side, float32; `guess` is (B, N, 3)."""
        raw = self.head(tokens, cells, F.pixel_shuffle(self._split(view).skip, 2)).permute(0, 2, 3, 1).float()
        start = guess.transpose(1, 2).unflatten(2, cell_grid(view))
        start = F.interpolate(start, scale_factor=4, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        distance = start.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        vectors = start * (torch.log1p(distance) / distance) + raw[..., :3]
        length = vectors.square().sum(-1, keepdim=True).add(1e-12).sqrt().clamp(max=FARTHEST)
        return vectors * (torch.expm1(length) / length), 1 + raw[..., 3].exp()


def overlap(cycle: Tensor) -> Tensor:
    """Share in [0, 1] of the confidence that a pair of this cycle consistency (B,) keeps."""
    return ((cycle - OVERLAP[0]) / (OVERLAP[1] - OVERLAP[0])).clamp(0.0, 1.0)


def detail_of(view: EncodedViews) -> Tensor:
    """The detail (B, C, h, w) of a view of this network, which is never absent."""
    assert view.detail is not None
    return view.detail


def token_grid(view: EncodedViews) -> tuple[int, int]:
    """(rows, columns) of the stride-16 tokens."""
    return view.size[0] // 16, view.size[1] // 16


def cell_grid(view: EncodedViews) -> tuple[int, int]:
    """(rows, columns) of the stride-8 cells."""
    return view.size[0] // 8, view.size[1] // 8


def _upright(maps: Tensor, turn: int) -> Tensor:
    """Maps (..., W) of a picture as it is (0) or mirrored (1), as they lie in the picture as it is."""
    return maps.flip(-1) if turn else maps


def cell_rays(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows * columns, 3) points at z = 1 on the rays of grid centres, for the focal length of the first guess."""
    return pixel_rays(rows, columns, like, 2 * START_FOCAL)


def enlarge(points: Tensor, confidence: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bilinear to image size (H, W)."""
    maps = torch.cat([points, confidence[..., None]], dim=-1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return maps[..., :3].contiguous(), maps[..., 3].contiguous()


def load_compact(path: Path | str | None = None) -> CompactNetwork:
    """The compact network with the packaged weights, or those of `path`, in float32 on the CPU, in eval mode."""
    file = Path(path) if path is not None else CHECKPOINT
    if not file.is_file():
        raise CheckpointError(
            f"no file {file}", "a compact checkpoint", "run `ns-lora3d pretrain` or pass another path"
        )
    try:
        with safe_open(str(file), framework="pt") as stored:
            metadata = stored.metadata() or {}
            weights = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}, which cannot be read ({error})",
            "a compact checkpoint",
            "reinstall the package",
        ) from error
    if "architecture" not in metadata:
        raise CheckpointError(
            f"{file} without architecture", "a compact checkpoint", "export it with `ns-lora3d pretrain`"
        )
    network = CompactNetwork(CompactArchitecture(**json.loads(metadata["architecture"])))
    network.long_side = int(metadata.get("long_side", CompactNetwork.long_side))
    wanted = set(network.state_dict())
    missing, unknown = sorted(wanted - set(weights)), sorted(set(weights) - wanted)
    if missing or unknown:
        raise CheckpointError(
            f"{file} with missing {missing[:3]} and unknown {unknown[:3]} tensors",
            f"the {len(wanted)} tensors of the architecture in its metadata",
            "export the checkpoint again with the version of lora3d-splat that trained it",
        )
    network.load_state_dict(weights)
    return network.eval()


def architecture_json(network: CompactNetwork) -> str:
    """The architecture as stored in checkpoint metadata."""
    return json.dumps(asdict(network.architecture))
