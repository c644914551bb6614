"""`lora3d-data`: a folder of photographs becomes a nerfstudio dataset through self-calibration."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Type  # noqa: UP035

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from lora3d_splat.calibration_files import load_calibration
from lora3d_splat.console import note, warn
from lora3d_splat.errors import InputError
from lora3d_splat.export.cameras import PhotographCamera, photograph_cameras
from lora3d_splat.files import default_cache_folder
from lora3d_splat.gaussians.seeds import SeedConfig, SeedPoints, seed_points
from lora3d_splat.geometry.lens import radial_of_slopes
from lora3d_splat.images.video import photographs
from lora3d_splat.outputs import find_calibration
from lora3d_splat.plugin.context import run_context
from lora3d_splat.plugin.depth_prior import DepthPrior, depth_prior
from lora3d_splat.plugin.given_cameras import read_cameras, with_cameras
from lora3d_splat.plugin.normalise import Normalisation, normalisation
from lora3d_splat.plugin.photographs import PreparedPhotograph, prepare_mask, prepare_photograph
from lora3d_splat.plugin.split import EvalMode, Split, split_photographs
from lora3d_splat.records import Calibration, View
from lora3d_splat.self_calibration import CalibrationConfig

LONG_SIDE = {"cuda": 1600, "cpu": 512}
"""Default size of the training pictures by device."""


@dataclass
class Lora3DDataParserConfig(DataParserConfig):
    """A folder of photographs with no cameras; they are self-calibrated first (once: the result is cached)."""

    _target: Type = field(default_factory=lambda: Lora3DDataParser)  # noqa: UP006
    """target class to instantiate"""
    data: Path = Path()
    """Folder of photographs, or a video."""
    long_side: int | Literal["auto"] = "auto"
    """Longer side, in pixels, of the pictures to train and score on; auto: 1600 on CUDA, 512 elsewhere, never more
    than the photographs have."""
    eval_mode: EvalMode = "interval"
    """Which photographs are held out to score the result: every `eval_interval`-th, a fraction, those with `eval` in
    their name, none (all: every photograph trains and is scored), or InstantSplat's 12 of 24."""
    eval_interval: int = 8
    """Hold out every so many photographs, the first one included (eval mode interval)."""
    train_split_fraction: float = 0.9
    """Share of the photographs that trains (eval mode fraction)."""
    train_views: int = 3
    """Photographs that train (eval mode instantsplat: 3, 6 or 12)."""
    cameras: Path | None = None
    """A cameras.json or scene.json: these cameras, instead of the calibrated ones, train and score. All photographs are
    then calibrated together, which gives the depth."""
    calibrated: Path | None = None
    """Folder of a finished calibration of the training photographs (of `ns-lora3d calibrate`, or a run), used as it is.
    A finished run's config.yml names its own: what later tools show does not depend on the cache."""
    recalibrate: bool = False
    """Calibrate again in this training run even if a cached result exists; later tools use the new result."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Self-calibration: network, alignment, fine-tuning."""
    seeds: SeedConfig = field(default_factory=SeedConfig)
    """Which aligned pixels become Gaussians."""


@dataclass(frozen=True)
class PlacedView:
    """One registered photograph: its camera as calibrated, and the file to train on."""

    camera: PhotographCamera
    photograph: PreparedPhotograph
    mask: Path | None = None
    """file of the photograph's size, white where pixels count; None where no photograph of the set has a mask"""


@dataclass(frozen=True)
class PlacedScene:
    """Everything the dataset outputs are made of."""

    calibration: Calibration
    settings: CalibrationConfig
    """of the calibration"""
    train: tuple[PlacedView, ...]
    heldout: tuple[PlacedView, ...]
    left_out: tuple[tuple[str, str], ...]
    """(file, reason) of held-out photographs that cannot be scored"""
    no_heldout: str | None
    """why no view is held out"""
    normalisation: Normalisation
    seeds: SeedPoints
    seconds: dict[str, float]
    """what the calibration stages cost when they were computed, and what followed"""
    calibration_wall: float
    """seconds that the calibration took this time; little where it came from the cache"""


@dataclass
class Lora3DDataParser(DataParser):
    """Photographs -> self-calibration -> cameras and seed points."""

    config: Lora3DDataParserConfig
    downscale_factor: int | None = None

    def __post_init__(self) -> None:
        self.includes_time = False
        self._scene: PlacedScene | None = None

    @property
    def scene(self) -> PlacedScene:
        """The placed scene, calibrated at the first use."""
        if self._scene is None:
            self._scene = place_scene(self.config)
        return self._scene

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        scene = self.scene
        # Without held-out views the training views stand in, and the scores say so.
        train = split == "train" or not scene.heldout
        views = scene.train if train else scene.heldout
        return DataparserOutputs(
            image_filenames=[view.photograph.path for view in views],
            cameras=nerfstudio_cameras(views, scene.normalisation, indexed=train),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            mask_filenames=_masks(views),
            metadata=_seed_metadata(scene) if split == "train" else {},
            dataparser_transform=scene.normalisation.transform,
            dataparser_scale=scene.normalisation.scale,
        )


def place_scene(config: Lora3DDataParserConfig) -> PlacedScene:
    """Split, calibrate the training photographs, register the held-out ones, seed."""
    cache = config.calibration.cache or default_cache_folder()
    paths = photographs(config.data, config.calibration.video_frames, cache)
    split = split_photographs(
        paths, config.eval_mode, config.eval_interval, config.train_split_fraction, config.train_views
    )
    if split.reason:
        note(f"no held-out views: {split.reason}")
    settings, device_type, wall = _calibration_settings(config), _device_type(), {}
    known = config.cameras is not None
    calibration = _timed(
        wall, "calibration", lambda: _calibration(config, tuple(paths) if known else split.train, settings)
    )
    seconds = dict(calibration.seconds)
    long_side = LONG_SIDE[device_type] if config.long_side == "auto" else config.long_side
    studio = _Studio(long_side, cache / "photographs")
    if config.cameras is not None:
        cameras = read_cameras(config.cameras, calibration.views)
        heldout, left_out = _place(calibration.views, cameras, studio, split.heldout), ()
        train = _place(calibration.views, cameras, studio, split.train)
        calibration = with_cameras(calibration, cameras, split.heldout)
    else:
        train = studio.place(calibration.views, photograph_cameras(calibration.views, calibration.scene))
        heldout, left_out = _timed(seconds, "held-out views", lambda: _heldout(split, calibration, settings, studio))
    return PlacedScene(
        calibration=calibration,
        settings=config.calibration,
        train=train,
        heldout=heldout,
        left_out=left_out,
        no_heldout=None if heldout else split.reason or "no held-out view could be registered",
        normalisation=normalisation(_poses(train), _depth(calibration)),
        seeds=_timed(seconds, "seed points", lambda: seed_points(calibration, config.seeds, device_type)),
        seconds=seconds,
        calibration_wall=wall["calibration"],
    )


def nerfstudio_cameras(views: tuple[PlacedView, ...], frame: Normalisation, indexed: bool) -> Cameras:
    """Pinhole cameras of the prepared photographs in the normalised frame.

    `metadata["train_view"]` (V, 1) is the view's index among the training views, or -1: with it the model finds the
    optimised pose of a training view whichever way the camera reaches it.
    """
    index = torch.arange(len(views)) if indexed else torch.full((len(views),), -1)

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    photographs = [view.photograph for view in views]
    return Cameras(
        camera_to_worlds=frame.camera_to_worlds(_poses(views)),
        fx=column([view.camera.fx * view.photograph.scale_x for view in views]),
        fy=column([view.camera.fy * view.photograph.scale_y for view in views]),
        cx=column([view.camera.cx * view.photograph.scale_x for view in views]),
        cy=column([view.camera.cy * view.photograph.scale_y for view in views]),
        width=torch.tensor([photograph.width for photograph in photographs]),
        height=torch.tensor([photograph.height for photograph in photographs]),
        camera_type=CameraType.PERSPECTIVE,
        metadata={"train_view": index[:, None]},
    )


def _masks(views: tuple[PlacedView, ...]) -> list[Path] | None:
    """nerfstudio takes a mask for every photograph, or none at all."""
    masks = [view.mask for view in views if view.mask is not None]
    return masks if len(masks) == len(views) else None


def _calibration_settings(config: Lora3DDataParserConfig) -> CalibrationConfig:
    """The calibration's settings; a fresh one is asked for only while a training run is being set up."""
    if not config.recalibrate:
        return config.calibration
    if not run_context().training:
        return config.calibration
    return replace(config.calibration, recompute=True)


def _calibration(config: Lora3DDataParserConfig, paths: tuple[Path, ...], settings: CalibrationConfig) -> Calibration:
    """The finished one that is named, else what the cache has or the photographs give.

    Raises InputError where a training names a folder that holds no calibration, or one of other photographs; tools that
    load a finished run go on with the cache.
    """
    from lora3d_splat import self_calibration

    if config.calibrated is None or settings.recompute:
        return self_calibration.calibrate(paths, settings)
    try:
        found = load_calibration(find_calibration(config.calibrated))
        strange = sorted({view.path.name for view in found.views} - {path.name for path in paths})
        if strange:
            raise InputError(
                f"{config.calibrated}, a calibration with {strange[0]}, which is no training photograph here",
                "a calibration of the training photographs alone",
                "calibrate those alone, train on all photographs (--eval-mode all), or leave --calibrated out",
            )
    except InputError as error:
        if run_context().training:
            raise
        warn(f"{error.found}: the photographs are calibrated again")
        return self_calibration.calibrate(paths, settings)
    note(f"calibration of {config.calibrated}: {found.decision}")
    return found


def _heldout(
    split: Split, calibration: Calibration, settings: CalibrationConfig, studio: _Studio
) -> tuple[tuple[PlacedView, ...], tuple[tuple[str, str], ...]]:
    """The held-out views that could be registered, and (file, reason) of the others."""
    from lora3d_splat import self_calibration

    if not split.heldout:
        return (), ()
    registered = self_calibration.register_heldout(split.heldout, calibration, settings)
    cameras = photograph_cameras(registered.views, registered)
    unplaced = tuple((camera.file, camera.reason or "not registered") for camera in cameras if not camera.registered)
    left_out = registered.left_out + unplaced
    for file, reason in left_out:
        warn(f"held-out view {file} is not scored: {reason}")
    return studio.place(registered.views, cameras), left_out


def _place(
    views: tuple[View, ...], cameras: dict[str, PhotographCamera], studio: _Studio, paths: tuple[Path, ...]
) -> tuple[PlacedView, ...]:
    """The views of these photographs that have a camera."""
    chosen = tuple(view for view in views if view.path in paths and view.file in cameras)
    return studio.place(chosen, tuple(cameras[view.file] for view in chosen))


@dataclass(frozen=True)
class _Studio:
    """Where photographs are made ready."""

    long_side: int
    folder: Path

    def place(self, views: tuple[View, ...], cameras: tuple[PhotographCamera, ...]) -> tuple[PlacedView, ...]:
        """The registered views with their prepared photographs."""
        chosen = [(view, camera) for view, camera in zip(views, cameras, strict=True) if camera.registered]
        masked = any(view.mask is not None for view, _ in chosen)
        placed = []
        for view, camera in chosen:
            view = replace(view, radial=radial_of_slopes(camera.k1, camera.fx, view))
            photograph = prepare_photograph(view, self.long_side, self.folder)
            placed.append(
                PlacedView(camera, photograph, prepare_mask(view, photograph, self.folder) if masked else None)
            )
        return tuple(placed)


def _poses(views: tuple[PlacedView, ...]) -> torch.Tensor:
    """(V, 4, 4) float64"""
    return torch.stack([torch.from_numpy(view.camera.T_world_camera) for view in views])


def _depth(calibration: Calibration) -> float:
    """Median depth of the registered views, scene units."""
    scene = calibration.scene
    depths = [depth[depth > 0].flatten() for depth, use in zip(scene.depth, scene.registered, strict=True) if use]
    if not depths or sum(map(len, depths)) == 0:
        raise InputError(
            "no registered view", "photographs that overlap", "add photographs taken between the ones you have"
        )
    return float(torch.cat(depths).median())


def _seed_metadata(scene: PlacedScene) -> dict[str, Any]:
    seeds, frame = scene.seeds, scene.normalisation
    return {
        "points3D_xyz": frame.points(seeds.points_world),
        "points3D_rgb": seeds.rgb,
        "points3D_conf": seeds.confidence,
        "points3D_scale": seeds.scale * frame.scale,
        "train_camera_to_worlds": frame.camera_to_worlds(_poses(scene.train)),
        "train_camera_tracked": _tracked(scene),
        "depth_priors": _depth_priors(scene),
    }


def _tracked(scene: PlacedScene) -> torch.Tensor:
    """(V,) bool: training views whose cameras feature tracks placed."""
    calibration = scene.calibration
    placed = calibration.sparse.placed if calibration.sparse is not None else [False] * len(calibration.views)
    by_file = {view.file: bool(flag) for view, flag in zip(calibration.views, placed, strict=True)}
    return torch.tensor([by_file[view.camera.file] for view in scene.train])


def _depth_priors(scene: PlacedScene) -> tuple[DepthPrior, ...]:
    """Of every training view."""
    calibration = scene.calibration
    maps = zip(calibration.views, calibration.scene.depth, calibration.confidence.view_confidence, strict=True)
    by_file = {view.file: (view, depth, confidence) for view, depth, confidence in maps}
    return tuple(
        depth_prior(view, placed.photograph, depth, confidence, scene.normalisation.scale)
        for placed in scene.train
        for view, depth, confidence in [by_file[placed.camera.file]]
    )


def _device_type() -> str:
    chosen = run_context().device_type
    return chosen if chosen in LONG_SIDE else ("cuda" if torch.cuda.is_available() else "cpu")


def _timed(seconds: dict[str, float], name: str, work: Any) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - start
    return result
