"""The whole loop, and the only place that knows the order of its stages.

photographs -> pairs -> predictions -> plain and robust alignment -> pseudo labels (or triplets) -> LoRA fine-tuning
-> second predictions -> second alignment -> the better of the two scenes.

Each stage is kept in the cache under a digest of its inputs, its settings and the network's weights, so interrupted
work resumes and added photographs cost only their own pairs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

from lora3d_splat.alignment import AlignmentConfig, AlignmentStep, align, pair_residual, register_views
from lora3d_splat.alignment.tracks import (
    TrackMode,
    find_tracks,
    lens_radials,
    place_by_tracks,
    settle,
    straightened,
    unaligned,
)
from lora3d_splat.artifacts import StageCache, Stored, digest, file_digest
from lora3d_splat.calibration_files import SCENE_FILE, load_calibration, save_calibration
from lora3d_splat.confidence import trusted_fraction, trusted_threshold
from lora3d_splat.console import Advance, note, stage, stages, warn
from lora3d_splat.errors import AlignmentError, CheckpointError, InputError, Lora3DError
from lora3d_splat.files import default_cache_folder, ensure_writable_folder
from lora3d_splat.geometry.cameras import network_to_photograph_focal
from lora3d_splat.images.load import list_images, load_views
from lora3d_splat.images.masks import find_mask
from lora3d_splat.images.straighten import notable, straight_view
from lora3d_splat.images.video import photographs
from lora3d_splat.known_cameras import KnownCamerasConfig, anchored, camera_priors
from lora3d_splat.lora.adapter import load_adapter, remove, save_adapter
from lora3d_splat.lora.finetune import (
    USUAL_EPOCHS,
    FinetuneConfig,
    FinetuneResult,
    finetune,
    finetune_triplets,
    planned_epochs,
    settled,
    triplet_count,
)
from lora3d_splat.lora.triplet import can_form_triplets
from lora3d_splat.memory import peak_memory_bytes
from lora3d_splat.networks import image_shape, load_network, network_digest, network_files
from lora3d_splat.networks.base import PointmapNetwork
from lora3d_splat.networks.weights import tell_licence
from lora3d_splat.offline import offline
from lora3d_splat.pair_cache import cached_predictions
from lora3d_splat.pairs import PairConfig, select_pairs
from lora3d_splat.pairs.left_out import leave_out_pairs
from lora3d_splat.passes import in_frame_of, judge_reliability, summarise
from lora3d_splat.prediction import PredictionConfig, PredictionPass
from lora3d_splat.pseudo_labels import PseudoLabelConfig, degenerate, make_pseudo_labels
from lora3d_splat.records import (
    AlignedScene,
    CalibratedConfidence,
    Calibration,
    CalibrationPass,
    CalibrationRow,
    ImagePair,
    PairPrediction,
    PseudoLabels,
    RegisteredViews,
    Reliability,
    SparseScene,
    View,
)
from lora3d_splat.watch import watcher

CODE_VERSION = 9
"""Raised when the same inputs and settings give another result than before, so that old entries are not found."""
PLAIN, ROBUST, ADAPTED = "plain alignment", "robust alignment", "robust alignment + LoRA"
TRACKED, TRACKED_ROBUST = "robust + LoRA + tracks", "robust + tracks"
Adapt = Literal["pseudo-labels", "triplet", "none"]
FULL_HASH_BYTES = 1 << 28
"""Weights above this size are told apart by name, size and time of change; hashing them would take seconds."""


@dataclass(frozen=True)
class CalibrationConfig:
    """Photographs to an aligned scene, with the network fine-tuned on its own trusted predictions."""

    network: str = "auto"
    """compact, dust3r-512, dust3r-512-linear, dust3r-224, mast3r-512, the path of a checkpoint, owner/model on the hub,
    file.py:Class, or auto."""
    long_side: int | None = None
    """Long side of the images given to the network, pixels; None is the size it was trained for."""
    adapt: Adapt = "pseudo-labels"
    """What the network is fine-tuned on: its own trusted predictions (LoRA3D), triplets of views whose predictions must
    agree (Test3R), or none. The adapter is kept only where left-out pairs do not get worse."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Which pairs of views are predicted."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """How the network is run."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    """How pair predictions become one scene."""
    known: KnownCamerasConfig = field(default_factory=KnownCamerasConfig)
    """What is known of the cameras, and what sets the scene's unit."""
    video_frames: int = 16
    """Frames taken from a video: of as many stretches the sharpest one each."""
    masks: bool = True
    """Honour masks (folder masks/, or alpha): pixels that do not count take no part in anything."""
    tracks: TrackMode = "auto"
    """Cameras from feature tracks: auto (where they convince), on (wherever two views match), or off."""
    sharpen_depth: Literal["auto", "on", "off"] = "auto"
    """Search depth by photo-consistency once tracks have placed the cameras; auto: with the network compact."""
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    """Which aligned pixels the network is fine-tuned on."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """How the network is fine-tuned."""
    left_out_fraction: float = 0.18
    """Share of the unordered pairs that the fine-tuning never sees and is judged on."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    offline: bool = False
    """Never touch the network: weights that are not on this disk are refused."""
    cache: Path | None = None
    """Folder of finished stages; None is $LORA3D_SPLAT_CACHE, else ~/.cache/lora3d-splat."""
    recompute: bool = False
    """Compute every stage again, whatever the cache holds."""

    def __post_init__(self) -> None:
        if self.long_side is not None and self.long_side < 32:
            raise InputError(f"long_side={self.long_side}", "at least 32 pixels", "leave it out, or use 160 to 512")
        if not 0.0 <= self.left_out_fraction < 1.0:
            raise InputError(f"left_out_fraction={self.left_out_fraction}", "a share in [0, 1)", "start from 0.18")


def calibrate(
    images: Path | str | Sequence[Path | str], config: CalibrationConfig | None = None, folder: Path | None = None
) -> Calibration:
    """Cameras, depths and calibrated confidence of the photographs, from the cache where nothing has changed.

    With `folder`, the result is also written there (scene.safetensors, adapter/) and the returned paths point to it.
    Raises InputError for photographs, settings or folders that cannot be used, before any long work; AlignmentError
    where no scene can be built; CheckpointError and MissingPartError for the network.
    """
    config = config or CalibrationConfig()
    cache = StageCache(config.cache or default_cache_folder())
    paths = photographs(images, config.video_frames, cache.folder)
    if folder is not None:
        ensure_writable_folder(folder, "output folder")
    home = cache.folder / "calibrations" / _request_key(paths, config)
    calibration = None if config.recompute else _finished(home)
    if calibration is None:
        calibration = save_calibration(_Run(config, cache).calibrate(paths), home)
    tell_licence(calibration.network, calibration.licence)
    return calibration if folder is None else save_calibration(calibration, folder)


def register_heldout(
    images: Sequence[Path], calibration: Calibration, config: CalibrationConfig | None = None
) -> RegisteredViews:
    """Place further photographs in a finished scene, which stays as it is, with the network that made it.

    Files that cannot be read are named in `left_out`; views that fit nowhere carry their reason.
    """
    config = config or CalibrationConfig()
    cache = StageCache(config.cache or default_cache_folder())
    paths = list_images(images)
    key = digest(_request_key(paths, config), calibration.scene, [view.digest for view in calibration.views])
    run = _Run(config, cache)
    return cache.load_or_compute("heldout", key, lambda: run.register(paths, calibration), config.recompute).value


@dataclass(frozen=True)
class _Pass:
    """One alignment, judged: what a row of the report is made of."""

    name: str
    scene: AlignedScene
    confidence: CalibratedConfidence
    residual: float
    """of all pairs, against the scene"""
    judged_residual: float | None
    """of the left-out pairs, against a scene aligned without them; None where that scene cannot be built"""
    tracked_residual: float | None
    """of the left-out pairs, against the scene on tracks; None where there is none, or nothing to decide"""
    seconds: float
    """of this row with everything that led to it"""
    summary: CalibrationPass


@dataclass(frozen=True)
class _Skipped:
    """A row that could not be computed."""

    name: str
    reason: str


class _Run:
    """One run of the loop: the network, the views and what the stages have cost so far."""

    config: CalibrationConfig
    network: PointmapNetwork
    network_key: str
    views: tuple[View, ...]
    left_out: tuple[tuple[str, str], ...]
    training: tuple[ImagePair, ...]
    unseen: tuple[ImagePair, ...]

    def __init__(self, config: CalibrationConfig, cache: StageCache) -> None:
        self.config, self.cache = config, cache
        self.seconds: dict[str, float] = {}
        self.losses: tuple[float, ...] = ()

    def calibrate(self, paths: Sequence[Path]) -> Calibration:
        """All stages in their order."""
        with stages("Self-calibration", 8 if self.config.adapt != "none" else 5) as advance:
            self._timed("photographs", lambda: self._open(paths, None, 2))
            watcher().photographs(self.views)
            first = self._pass()
            pairs = self._select_pairs(first)
            self.training, self.unseen = leave_out_pairs(pairs, self.config.left_out_fraction)
            advance(1)
            predictions = self._predict(first, pairs, "prediction")
            advance(1)
            plain = self._attempt(PLAIN, lambda: self._align(PLAIN, predictions, robust=False))
            advance(1)
            robust = self._robust(predictions)
            advance(1)
            sparse = self._find_tracks(robust, predictions)
            robust, predictions = self._straighten(robust, predictions, sparse)
            tracked = self._settle(robust, predictions, sparse)
            advance(1)
            teacher = tracked if isinstance(tracked, _Pass) else robust
            labels = self._labels(teacher, sparse)
            adapter, adapted, again = None, self._refusal(teacher, labels, sparse), predictions
            if adapted is None:
                adapter = self._finetune(labels, self._schedule(teacher))
                advance(1)
                again = self._predict(self._pass(), pairs, "second prediction")
                advance(1)
                adapted = self._attempt(ADAPTED, lambda: self._align(ADAPTED, again))
                advance(1)
                if isinstance(adapted, _Pass) and isinstance(tracked, _Pass) and sparse is not None:
                    robust, adapted = (
                        self._judged_by(tracked, sparse, each, found)
                        for each, found in ((robust, predictions), (adapted, again))
                    )
            kept, decision = self._decide(robust, adapted)
            if kept and isinstance(adapted, _Pass):
                tracked = self._settle(adapted, again, sparse)
        return self._result((plain, robust, adapted, tracked), adapter if kept else None, decision, sparse)

    def register(self, paths: Sequence[Path], calibration: Calibration) -> RegisteredViews:
        """Predict every pair of a new and a registered view, and register the new ones."""
        with stages("Held-out views", 2) as advance:
            self._open(paths, _root(calibration.views), 0)
            if calibration.adapter is not None:
                self._use_adapter(calibration.adapter)
            radial = median(view.radial for view in calibration.views)
            new = tuple(straight_view(view, radial) if notable(view, radial) else view for view in self.views)
            known = calibration.views
            self.views = known + new
            tracked = {}
            if calibration.sparse is not None:
                tracked = place_by_tracks(new, known, calibration.scene, calibration.sparse)
            placed = [index for index, registered in enumerate(calibration.scene.registered) if registered]
            both = [(index, len(known) + k) for k in range(len(new)) if k not in tracked for index in placed]
            pairs = [pair for a, b in both for pair in (ImagePair(a, b), ImagePair(b, a))]
            predictions = self._predict(self._pass(), pairs, "held-out prediction")
            advance(1)
            found = register_views(
                new, calibration.scene, known, predictions, self.config.alignment, self.network.confidence_floor
            )
            advance(1)
        registered, reasons, T_world_camera, focal, principal_point = found
        registered = tuple(flag or k in tracked for k, flag in enumerate(registered))
        reasons = tuple(None if flag else reason for flag, reason in zip(registered, reasons, strict=True))
        for k, pose in tracked.items():
            T_world_camera[k] = pose
        return RegisteredViews(new, registered, reasons, T_world_camera, focal, principal_point, self.left_out)

    def _open(self, paths: Sequence[Path], root: Path | None, minimum: int) -> None:
        """Load the network and the photographs at its size."""
        if not network_files(self.config.network):  # gigabytes are to be downloaded: look at the photographs first
            load_views(paths, 64, 16, root, minimum, masked=self.config.masks)
        with offline(self.config.offline):
            self.network = load_network(self.config.network, self.config.device)
        self.network_key = network_digest(self.network)
        long_side = self.config.long_side or self.network.long_side
        shape = image_shape(self.network)
        loaded = load_views(paths, long_side, self.network.patch_size, root, minimum, shape, self.config.masks)
        self.views, self.left_out = loaded.views, loaded.left_out
        for file, reason in self.left_out:
            warn(f"left out {file}: {reason}")

    def _pass(self) -> PredictionPass:
        """A pass of the network as it is now; what it encodes serves the scene graph and all pairs."""
        return PredictionPass(self.network, self.views, self.config.prediction)

    def _select_pairs(self, run: PredictionPass) -> tuple[ImagePair, ...]:
        """The scene graph; kept, because a measured budget would come out a little different each time."""
        views = [_view_identity(view) for view in self.views]
        key = digest(self.network_key, run.precision, self.config.pairs, views)

        def select() -> tuple[ImagePair, ...]:
            return select_pairs(len(self.views), self.config.pairs, run.similarity, run.cost)

        return self.cache.load_or_compute("graph", key, select, self.config.recompute).value

    def _predict(self, run: PredictionPass, pairs: Sequence[ImagePair], title: str) -> tuple[PairPrediction, ...]:
        stored = cached_predictions(self.cache, self.network_key, run, pairs, title, self.config.recompute)
        self.seconds[title] = stored.seconds
        return stored.value

    def _align(self, name: str, predictions: tuple[PairPrediction, ...], robust: bool = True) -> _Pass:
        """Align all pairs; judge by pairs that a second alignment, of the training pairs alone, has not seen."""
        config = self.config.alignment if robust else replace(self.config.alignment, robust="none")
        floor = self.network.confidence_floor
        key = digest(
            CODE_VERSION, self.network_key, self._pass().precision, config, floor, self.unseen, self._known_key(),
            [item.pair for item in predictions], [_view_identity(view) for view in self.views],
        )  # fmt: skip

        def compute() -> tuple[AlignedScene, CalibratedConfidence, float, float | None, Reliability | None]:
            parts = 2 if self.unseen else 1
            with stage(name, parts * config.steps) as advance:
                scene, confidence = self._aligned(predictions, config, advance, partial(_tell_step, name))
                judged, reliability = self._judge(predictions, config, advance)
            if reliability is None:
                reliability = judge_reliability(scene, confidence, predictions, unseen=False)
            return scene, confidence, pair_residual(scene, predictions), judged, reliability

        stored = self.cache.load_or_compute("alignment", key, compute, self.config.recompute)
        self.seconds[name] = stored.seconds
        scene, confidence, residual, judged, reliability = stored.value
        summary = summarise(name, self.views, scene, confidence, predictions, reliability)
        watcher().aligned(summary)
        return _Pass(name, scene, confidence, residual, judged, None, self._cost(name), summary)

    def _robust(self, predictions: tuple[PairPrediction, ...]) -> _Pass:
        """The robust alignment; where there is none, the views that tracks alone can place."""
        try:
            return self._align(ROBUST, predictions)
        except AlignmentError as error:
            config, floor, blank = (
                self.config.alignment,
                self.network.confidence_floor,
                unaligned(self.views, predictions),
            )
            sparse = find_tracks(self.views, blank, predictions, config, self.config.tracks)
            if sparse is None:
                raise
            warn(f"the pointmaps cannot be aligned ({error.found}); features place the cameras")
            scene, confidence = settle(self.views, blank, predictions, sparse, config, floor)
        summary = summarise(ROBUST, self.views, scene, confidence, predictions, None)
        return _Pass(
            ROBUST, scene, confidence, pair_residual(scene, predictions), None, None, self._cost(ROBUST), summary
        )

    def _find_tracks(self, robust: _Pass, predictions: tuple[PairPrediction, ...]) -> SparseScene | None:
        """What features say; the network suggests the focal length, and how far apart views are that share no point."""
        # Tracks would move cameras that are known.
        config, mode = self.config.alignment, "off" if self.config.known.file is not None else self.config.tracks
        views = [(view.digest, view.focal_hint) for view in self.views]
        key = digest(CODE_VERSION, views, robust.scene, config, mode)

        def find() -> SparseScene | None:
            return find_tracks(self.views, robust.scene, predictions, config, mode)

        stored = self.cache.load_or_compute("tracks", key, find, self.config.recompute)
        self.seconds["tracks"] = stored.seconds
        return stored.value

    def _straighten(
        self, robust: _Pass, predictions: tuple[PairPrediction, ...], sparse: SparseScene | None
    ) -> tuple[_Pass, tuple[PairPrediction, ...]]:
        """From here on the views are free of the lens distortion that tracks found, and all cameras pinholes."""
        radials = lens_radials(self.views, sparse) if sparse is not None else ()
        if not any(radials):
            return robust, predictions
        self.views, scene, predictions = straightened(self.views, robust.scene, predictions, radials)
        return replace(robust, scene=scene), predictions

    def _settle(
        self, base: _Pass, predictions: tuple[PairPrediction, ...], sparse: SparseScene | None
    ) -> _Pass | _Skipped:
        """The dense scene of `base` on the cameras that tracks found."""
        if sparse is None:
            asked = self.config.tracks != "off" and self.config.known.file is None
            off = "too few features match" if asked else "switched off by the settings"
            return _Skipped(TRACKED, f"{off}: the scene is the pointmap alignment's")
        config, floor = self.config.alignment, self.network.confidence_floor
        wanted = self.config.sharpen_depth
        sharp = wanted == "on" or (wanted == "auto" and self.network.name == "compact")
        key = digest(CODE_VERSION, base.scene, sparse, config, floor, sharp, self._known_key())

        def compute() -> tuple[AlignedScene, CalibratedConfidence]:
            scene, confidence = settle(self.views, base.scene, predictions, sparse, config, floor, sharp)
            return anchored(scene, self.views, self.config.known), confidence

        stored = self.cache.load_or_compute("settled", key, compute, self.config.recompute)
        self.seconds["scene on tracks"] = stored.seconds
        scene, confidence = stored.value
        name = TRACKED if base.name == ADAPTED else TRACKED_ROBUST
        summary = summarise(name, self.views, scene, confidence, predictions, None)
        watcher().aligned(summary)
        residual = pair_residual(scene, predictions)
        return _Pass(name, scene, confidence, residual, None, None, self._cost(name), summary)

    def _aligned(
        self,
        predictions: Sequence[PairPrediction],
        config: AlignmentConfig,
        advance: Advance,
        on_step: Callable[[AlignmentStep], None] | None = None,
    ) -> tuple[AlignedScene, CalibratedConfidence]:
        floor = self.network.confidence_floor
        priors = camera_priors(self.views, self.config.known)
        scene, confidence = align(
            predictions,
            config,
            views=self.views,
            priors=priors,
            confidence_floor=floor,
            advance=advance,
            on_step=on_step,
        )
        return anchored(scene, self.views, self.config.known), confidence

    def _known_key(self) -> str:
        known = self.config.known
        return digest(camera_priors(self.views, known), known.distance, [_content(path) for path in known.files])

    def _judge(
        self, predictions: tuple[PairPrediction, ...], config: AlignmentConfig, advance: Advance
    ) -> tuple[float | None, Reliability | None]:
        """Residual and reliability on the unseen pairs, against a scene aligned without them."""
        if not self.unseen:
            return None, None
        training = [item for item in predictions if item.pair in set(self.training)]
        unseen = [item for item in predictions if item.pair in set(self.unseen)]
        try:
            scene, confidence = self._aligned(training, config, advance)
            return pair_residual(scene, unseen), judge_reliability(scene, confidence, unseen, unseen=True)
        except Lora3DError:  # without those pairs the scene falls apart; the full one then has to do
            return None, None

    def _labels(self, teacher: _Pass, sparse: SparseScene | None) -> tuple[PseudoLabels, ...]:
        """Of all pairs with enough trusted pixels; none where no fine-tuning on them is asked for.

        A view that features do not place among others that they do was placed by the network, and teaches it nothing.
        """
        if self.config.adapt != "pseudo-labels":
            return ()
        config, cutoff = self.config.pseudo_labels, self.network.confidence_cutoff
        labels = make_pseudo_labels(self.views, teacher.scene, teacher.confidence, config, cutoff)
        return tuple(label for label in labels if sparse is None or sparse.places(label.pair))

    def _schedule(self, teacher: _Pass) -> FinetuneConfig:
        """More passes over few pairs only where the teacher knows more than the network (docs/adaptation.md)."""
        settings = settled(self.config.finetune, self.network)
        on_tracks = self.config.adapt == "pseudo-labels" and teacher.name == TRACKED_ROBUST
        return settings if on_tracks else replace(settings, epochs=settings.epochs or USUAL_EPOCHS)

    def _refusal(self, teacher: _Pass, labels: tuple[PseudoLabels, ...], sparse: SparseScene | None) -> _Skipped | None:
        """Why the network is not fine-tuned, None where nothing speaks against it."""
        if self.config.adapt == "none":
            return _Skipped(ADAPTED, "fine-tuning is switched off by the settings")
        if not self.network.lora_targets:
            return _Skipped(ADAPTED, f"{self.network.name} names no layers to adapt")
        if self.config.adapt == "triplet":
            alone = "no view is the reference of two training pairs, so there is nothing to compare"
            return None if can_form_triplets(self.training) else _Skipped(ADAPTED, alone)
        missing = self._missing_tracks(sparse) if getattr(self.network, "adaptation_needs_tracks", False) else None
        if missing is not None:
            alone = f"its pairs share their errors, so it learns from feature tracks alone, and {missing}"
            return _Skipped(ADAPTED, f"{self.network.name} is not fine-tuned: {alone}")
        reason = degenerate(labels, len(teacher.scene.pairs), self.config.pseudo_labels)
        if reason is None and not any(label.pair in self.training for label in labels):
            reason = "only pairs left out of the fine-tuning have enough trusted pixels"
        return None if reason is None else _Skipped(ADAPTED, reason)

    def _missing_tracks(self, sparse: SparseScene | None) -> str | None:
        """What a fine-tuning that tracks alone may teach and judge would lack."""
        if sparse is None:
            return "there are none"
        if self.unseen and not any(sparse.places(pair) for pair in self.unseen):
            return "none of the pairs left out to judge it connects two cameras that features place"
        return None

    def _finetune(self, labels: tuple[PseudoLabels, ...], settings: FinetuneConfig) -> Path:
        """Put an adapter into the network, trained on the training pairs now or before, and return its folder."""
        config = self.config
        labels = tuple(label for label in labels if label.pair in self.training)
        lesson = labels if config.adapt == "pseudo-labels" else (config.adapt, self.training)
        views = [_view_identity(view) for view in self.views]
        key = digest(self.network_key, views, settings, lesson)
        folder = self.cache.folder / "adapters" / key
        if self._stored_adapter(folder, key):
            return folder
        checkpoint = self.cache.folder / "finetuning" / f"{key}.pt"
        per_epoch = len(labels) or triplet_count(self.training)
        epochs = planned_epochs(self.network, per_epoch, settings)
        with stage("fine-tuning", per_epoch * epochs) as advance:
            result = self._taught(labels, settings, advance, checkpoint)
        save_adapter(self.network, folder)
        self.cache.store("finetuning", key, result.losses, result.seconds)
        checkpoint.unlink(missing_ok=True)
        self.seconds["fine-tuning"], self.losses = result.seconds, result.losses
        self.network_key = network_digest(self.network)
        return folder

    def _taught(
        self, labels: tuple[PseudoLabels, ...], settings: FinetuneConfig, advance: Advance, checkpoint: Path
    ) -> FinetuneResult:
        """The fine-tuning that was asked for."""
        if self.config.adapt == "triplet":
            return finetune_triplets(self.network, self.views, self.training, settings, advance, checkpoint)
        return finetune(self.network, self.views, labels, settings, advance, checkpoint)

    def _stored_adapter(self, folder: Path, key: str) -> bool:
        """Use the adapter of an earlier run if there is a whole one."""
        stored: Stored[tuple[float, ...]] | None = self.cache.load("finetuning", key)
        if self.config.recompute or stored is None or not folder.is_dir():
            return False
        try:
            self._use_adapter(folder)
        except CheckpointError as error:
            warn(f"cache entry adapters/{key} is corrupt ({error.found}); it is computed again")
            remove(self.network)
            shutil.rmtree(folder)
            return False
        self.seconds["fine-tuning"], self.losses = stored.seconds, stored.value
        return True

    def _use_adapter(self, folder: Path) -> None:
        load_adapter(self.network, folder)
        self.network_key = network_digest(self.network)

    def _result(
        self, steps: Sequence[_Pass | _Skipped], adapter: Path | None, decision: str, sparse: SparseScene | None
    ) -> Calibration:
        """The best scene with the four rows: plain, robust, adapted and tracked."""
        rows = [self._row(each) for each in steps]
        _, robust, adapted, tracked = steps
        if isinstance(adapted, _Pass) and adapter is None:
            rows[2] = replace(rows[2], reason="not kept: " + decision.removeprefix("The base network was kept: "))
        best = tracked if isinstance(tracked, _Pass) else robust if adapter is None else adapted
        assert isinstance(best, _Pass)
        done = [each for each in steps if isinstance(each, _Pass)]
        unregistered = tuple(
            (view.file, reason or "not registered")
            for view, registered, reason in zip(self.views, best.scene.registered, best.scene.reasons, strict=True)
            if not registered
        )
        for file, reason in unregistered:
            warn(f"left out {file}: {reason}")
        base = ROBUST if adapter is None else ADAPTED
        source = source_sentence(base, None if isinstance(tracked, _Pass) else tracked.reason, sparse)
        decision = f"{source} {decision}"
        note(decision)
        return Calibration(
            network=self.network.name,
            licence=self.network.licence,
            views=self.views,
            scene=best.scene,
            confidence=best.confidence,
            rows=tuple(rows),
            adapter=adapter,
            decision=decision,
            left_out=self.left_out + unregistered,
            seconds=self.seconds,
            folder=self.cache.folder,
            passes=tuple(in_frame_of(each.summary, best.summary) for each in done),
            peak_memory_bytes=peak_memory_bytes(),
            finetune_losses=self.losses,
            sparse=sparse,
        )

    def _judged_by(
        self, tracked: _Pass, sparse: SparseScene, each: _Pass, predictions: Sequence[PairPrediction]
    ) -> _Pass:
        """With its residual on the left-out pairs of views that features place, against the scene on tracks.

        There features know better than either network, whose agreement with itself says nothing of errors that all its
        pairs share.
        """
        unseen = [item for item in predictions if item.pair in set(self.unseen) and sparse.places(item.pair)]
        try:
            return replace(each, tracked_residual=pair_residual(tracked.scene, unseen))
        except InputError:  # no left-out pair of views that both are placed
            return each

    def _decide(self, robust: _Pass, adapted: _Pass | _Skipped) -> tuple[bool, str]:
        """Whether the adapter is kept, and the sentence that says why."""
        if isinstance(adapted, _Skipped):
            return False, f"The base network was kept: {adapted.reason}."
        before, after = robust.tracked_residual, adapted.tracked_residual
        where = f"on {len(self.unseen)} pairs left out of the fine-tuning"
        against = " against the scene on tracks"
        if before is None or after is None:
            before, after, against = robust.judged_residual, adapted.judged_residual, ""
        if before is None or after is None:
            before, after = robust.residual, adapted.residual
            where = f"on all pairs ({len(self.views)} views spare none to be left out)"
        lost = sum(robust.scene.registered) - sum(adapted.scene.registered)
        kept = after <= before and lost <= 0
        verdict = "The adapter was kept" if kept else "The base network was kept"
        change = f"{where} the robust residual{against} went from {before:.3%} to {after:.3%} of the median depth"
        return kept, f"{verdict}: {change}" + (f", and {lost} fewer views could be registered." if lost > 0 else ".")

    def _row(self, done: _Pass | _Skipped) -> CalibrationRow:
        if isinstance(done, _Skipped):
            return CalibrationRow(done.name, None, None, None, None, 0, 0.0, (), done.reason)
        scene = done.scene
        first = scene.registered.index(True)
        return CalibrationRow(
            name=done.name,
            residual=done.residual,
            heldout_residual=done.judged_residual,
            focal=network_to_photograph_focal(float(scene.focal[first]), self.views[first].affine),
            trusted_fraction=self._trusted_fraction(done.confidence),
            registered=sum(scene.registered),
            seconds=done.seconds,
            T_world_camera=tuple(tuple(pose.flatten().tolist()) for pose in scene.T_world_camera),
        )

    def _trusted_fraction(self, confidence: CalibratedConfidence) -> float:
        """Share of pair predictions above the threshold that pseudo labels use."""
        chosen = self.config.pseudo_labels
        cutoff = chosen.cutoff if chosen.cutoff is not None else self.network.confidence_cutoff
        return trusted_fraction(confidence, trusted_threshold(confidence, cutoff, chosen.keep))

    def _attempt(self, name: str, compute: Callable[[], _Pass]) -> _Pass | _Skipped:
        """A row that the result can do without: its failure is a reason, not an end."""
        try:
            return compute()
        except Lora3DError as error:
            return _Skipped(name, error.found)

    def _cost(self, name: str) -> float:
        """Seconds of a row: everything so far except the other alignments that it does not build on."""
        others = {PLAIN} if name != PLAIN else set[str]()
        return sum(seconds for stage_name, seconds in self.seconds.items() if stage_name not in others)

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.seconds[name] = time.perf_counter() - start


def source_sentence(base: str, no_tracks: str | None, sparse: SparseScene | None) -> str:
    """Which alignment the result is, and what tracks had to do with it; `no_tracks` says why they took no part."""
    if no_tracks is not None or sparse is None:
        return f"The scene used is the {base}; no tracks: {no_tracks or 'none were looked for'}."
    tracks = f"{len(sparse.points_world):,} feature tracks place {sum(sparse.placed)} of {len(sparse.placed)} cameras"
    return f"The scene used is the one with tracks: {tracks}, and the depths of the {base} follow them."


def _tell_step(name: str, step: AlignmentStep) -> None:
    watcher().moved(name, step.T_world_camera, step.focal, step.loss)


def _finished(home: Path) -> Calibration | None:
    """A calibration of an earlier run, None where there is none or it is damaged (said in a line)."""
    if not (home / SCENE_FILE).exists():
        return None
    try:
        calibration = load_calibration(home)
    except InputError as error:
        warn(f"cache entry calibrations/{home.name} is corrupt ({error.found}); it is computed again")
        shutil.rmtree(home)
        return None
    note(f"Self-calibration of {len(calibration.views)} photographs reused from the cache. {calibration.decision}")
    return calibration


def _request_key(paths: Sequence[Path], config: CalibrationConfig) -> str:
    """What is asked for, told without building the network: photographs, settings, weights."""
    settings = replace(config, device="", cache=None, recompute=False, offline=False)
    photographs = [(path.absolute(), _content(path)) for path in paths]
    masks = [find_mask(path) if config.masks else None for path in paths]
    beside = [_content(path) for path in (*network_files(config.network), *config.known.files, *filter(None, masks))]
    return digest(CODE_VERSION, photographs, settings, beside)


def _content(path: Path) -> str:
    try:
        facts = path.stat()
        if facts.st_size <= FULL_HASH_BYTES:
            return file_digest(path)
        return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"
    except OSError:  # the loader will say what is wrong with it
        return "unreadable"


def _view_identity(view: View) -> str:
    """What alignment and fine-tuning know of a view; its name and place do not count."""
    mask = None if view.mask is None else view.mask.astype("uint8")
    return digest(view.image, view.affine, view.width, view.height, view.focal_hint, view.camera, mask)


def _root(views: Sequence[View]) -> Path:
    """The folder that the names of the views are relative to."""
    first = views[0]
    return first.path.absolute().parents[len(Path(first.file).parts) - 1]
