"""What the stages hand to each other: frozen records with named axes.

Frames: OpenCV axes (x right, y down, z forward) everywhere. `T_a_b` maps coordinates in frame b to frame a.
Pixels: corner-based continuous coordinates, so the centre of the top-left pixel is (0.5, 0.5).
"Network pixels" are those of the resized, cropped image; "photograph pixels" those of the original, upright image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class PixelAffine:
    """Exact map from photograph pixels to network pixels: u_net = scale_x * u_photo + offset_x, same in v."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


@dataclass(frozen=True)
class View:
    """One input image: its network-resolution pixels and the way back to the photograph."""

    file: str
    """Path relative to the data folder (or the bare name); identifies the view for the user."""
    path: Path
    """Where the photograph lies."""
    width: int
    """Photograph width after EXIF orientation."""
    height: int
    """Photograph height after EXIF orientation."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB at network resolution; H and W are multiples of the patch."""
    affine: PixelAffine
    """Photograph pixels -> network pixels."""
    digest: str
    """Digest of the file's bytes; names cached artefacts."""
    focal_hint: float | None = None
    """Focal length from EXIF in photograph pixels, None where EXIF says nothing."""
    camera: str = ""
    """Make, model and lens setting from EXIF; photographs of one camera share it."""
    mask: np.ndarray | None = None
    """(H, W) bool at network resolution: pixels that take part; None where all do."""
    radial: float = 0.0
    """Lens distortion of the photograph (`geometry/lens.py`) that `image` and `mask` have been freed of."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) at network resolution."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class ImagePair:
    """An ordered pair: indices of the reference view and the other view."""

    reference: int
    other: int


@dataclass(frozen=True)
class PairPrediction:
    """What the network says about one ordered pair; both pointmaps are in the reference camera's frame.

    Scale is the network's own and differs from pair to pair. Confidence is raw (DUSt3R: 1 + exp(.), > 1).
    """

    pair: ImagePair
    points_reference: Tensor
    """(H_ref, W_ref, 3) points of the reference view, reference camera frame."""
    confidence_reference: Tensor
    """(H_ref, W_ref)"""
    points_other: Tensor
    """(H_other, W_other, 3) points of the other view, reference camera frame."""
    confidence_other: Tensor
    """(H_other, W_other)"""


@dataclass(frozen=True)
class AlignedScene:
    """Poses, intrinsics and depths in one world frame. Lists are indexed by view, or by position in `pairs`.

    The unit of length is the scene's own (monocular); `registered[v]` False means that view v was left out, its pose
    is the identity, its depth zero and `reasons[v]` a sentence.
    """

    registered: tuple[bool, ...]
    reasons: tuple[str | None, ...]
    T_world_camera: Tensor
    """(V, 4, 4) float64"""
    focal: Tensor
    """(V,) float64, network pixels (square pixels)"""
    principal_point: Tensor
    """(V, 2) float64, network pixels (u, v)"""
    depth: tuple[Tensor, ...]
    """per view (H, W) float32 z-depth, scene units"""
    pairs: tuple[ImagePair, ...]
    """ordered pairs that took part"""
    T_world_pair: Tensor
    """(P, 4, 4) float64: pose of each pair's reference frame"""
    pair_scale: Tensor
    """(P,) float64: network units of the pair -> scene units"""
    mu: float
    """residual (scene units) at which a pixel keeps a quarter of its confidence"""
    residual: float
    """confidence-weighted mean unsquared residual over the pairs, divided by the median depth"""


@dataclass(frozen=True)
class CalibratedConfidence:
    """Converged robust weights, on the scale of the log-confidence they started from."""

    pair_weights: tuple[tuple[Tensor, Tensor], ...]
    """per pair of the scene: (H_ref, W_ref) and (H_other, W_other) weights w = C / (1 + |e|/mu)^2"""
    view_confidence: tuple[Tensor, ...]
    """per view (H, W): mean weight over the pairs that see the view"""
    view_raw_confidence: tuple[Tensor, ...]
    """per view (H, W): mean log-confidence over the same pairs, before calibration"""


@dataclass(frozen=True)
class SparseScene:
    """What feature tracks say: cameras and points in a world frame and unit of their own; N points, M marks of them."""

    placed: tuple[bool, ...]
    """per view: whether features place it; the others have the identity as pose"""
    T_world_camera: Tensor
    """(V, 4, 4) float64"""
    focal: Tensor
    """(V,) float64, photograph pixels"""
    radial: Tensor
    """(V,) float64: k of u = focal * s * (1 + k |s|^2) + centre, s being the slopes (X / Z, Y / Z)"""
    points_world: Tensor
    """(N, 3) float64"""
    mark_point: Tensor
    """(M,) the point that each mark shows"""
    mark_view: Tensor
    """(M,)"""
    mark_pixels: Tensor
    """(M, 2) float64 photograph pixels"""
    explained: float = 1.0
    """share of the verified marks of placed views that belong to points that hold"""

    def places(self, pair: ImagePair) -> bool:
        """Whether features place both views of a pair."""
        return self.placed[pair.reference] and self.placed[pair.other]


@dataclass(frozen=True)
class PseudoLabels:
    """Trusted targets of one ordered pair: the aligned scene re-expressed in the pair's reference camera frame."""

    pair: ImagePair
    points_reference: Tensor
    """(H_ref, W_ref, 3) scene units, reference camera frame"""
    valid_reference: Tensor
    """(H_ref, W_ref) bool"""
    points_other: Tensor
    """(H_other, W_other, 3) scene units, reference camera frame"""
    valid_other: Tensor
    """(H_other, W_other) bool"""


@dataclass(frozen=True)
class CalibrationRow:
    """One of the three rows of every report: plain alignment, robust alignment, robust alignment + LoRA."""

    name: str
    residual: float | None
    """robust residual / median depth on all pairs, None when the row could not be computed"""
    heldout_residual: float | None
    """the same on the pairs left out of the fine-tuning"""
    focal: float | None
    """mean focal in photograph pixels of the first view"""
    trusted_fraction: float | None
    """share of pixels whose calibrated confidence passes the pseudo-label threshold"""
    registered: int
    seconds: float
    T_world_camera: tuple[tuple[float, ...], ...]
    """per view, 16 numbers row-major; lets a benchmark score every row against ground truth"""
    reason: str | None = None
    """why the row is missing or was not kept"""


@dataclass(frozen=True)
class Reliability:
    """How far pair predictions miss a scene, over bins of rising confidence that hold equally many pixels.

    A useful confidence falls from left to right. Errors are fractions of the median depth.
    """

    unseen: bool
    """judged by pairs that took no part in the alignment that stated the confidence; False: by the same pairs"""
    confidence: Tensor
    """(B,) the network's log-confidence"""
    confidence_error: Tensor
    """(B,)"""
    calibrated: Tensor
    """(B,) calibrated confidence"""
    calibrated_error: Tensor
    """(B,)"""


@dataclass(frozen=True)
class CalibrationPass:
    """One alignment, kept to be looked at: what a row of the report summarises, on a coarse grid of pixels.

    World frame and unit of length are those of the calibration's scene. Pixel (r, c) of a view's grid is the network
    pixel (r, c) * step + step // 2. Views that are not registered have depth zero.
    """

    name: str
    registered: tuple[bool, ...]
    T_world_camera: Tensor
    """(V, 4, 4) float64"""
    focal: Tensor
    """(V,) float64, network pixels"""
    principal_point: Tensor
    """(V, 2) float64, network pixels"""
    step: int
    depth: tuple[Tensor, ...]
    """per view (h, w) float32 z-depth, scene units"""
    confidence: tuple[Tensor, ...]
    """per view (h, w) float16: the network's log-confidence"""
    calibrated: tuple[Tensor, ...]
    """per view (h, w) float16: calibrated confidence"""
    residual: tuple[Tensor, ...]
    """per view (h, w) float16: mean distance of the pairs' points from the scene's, fraction of the median depth"""
    pairs: tuple[ImagePair, ...]
    pair_residual: Tensor
    """(P,) float32: median over the pair's pixels of that distance"""
    residual_share: Tensor
    """share of all pair pixels in each bin of `passes.RESIDUAL_EDGES`; what lies beyond counts in the outer bins"""
    reliability: Reliability | None
    """None where no pair of registered views is left to judge by"""


@dataclass(frozen=True)
class Calibration:
    """The result of self-calibration: what Gaussians, exports and reports start from."""

    network: str
    """network name"""
    licence: str
    """licence of the network's weights"""
    views: tuple[View, ...]
    scene: AlignedScene
    confidence: CalibratedConfidence
    rows: tuple[CalibrationRow, ...]
    adapter: Path | None
    """folder of the kept LoRA adapter, None when the base network was kept"""
    decision: str
    """one sentence: whether the adapter was kept, and why"""
    left_out: tuple[tuple[str, str], ...]
    """(file, reason) of inputs that could not be read or registered"""
    seconds: dict[str, float]
    """wall seconds per stage"""
    folder: Path
    """where the artefacts of this calibration lie"""
    passes: tuple[CalibrationPass, ...] = ()
    """one per row that could be computed, for viewer and report"""
    peak_memory_bytes: dict[str, int] = field(default_factory=dict[str, int])
    """largest memory of the process that calibrated, by kind of device; empty where it was not recorded"""
    finetune_losses: tuple[float, ...] = ()
    """mean loss of each epoch of the fine-tuning"""
    sparse: SparseScene | None = None
    """the feature tracks that `scene` was settled on; None where it is the pointmap alignment's alone"""


@dataclass(frozen=True)
class RegisteredViews:
    """Held-out views placed in a finished scene, which stays as it is."""

    views: tuple[View, ...]
    registered: tuple[bool, ...]
    reasons: tuple[str | None, ...]
    T_world_camera: Tensor
    """(H, 4, 4) float64"""
    focal: Tensor
    """(H,) float64, network pixels"""
    principal_point: Tensor
    """(H, 2) float64, network pixels"""
    left_out: tuple[tuple[str, str], ...]
    """(file, reason) of files that could not be read"""
