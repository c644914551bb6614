"""`ns-lora3d`: the command line. Heavy modules are imported by the command that needs them, so help is immediate."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lora3d_splat.console import interrupted, note, warn
from lora3d_splat.errors import Lora3DError
from lora3d_splat.memory import keep_freed_memory

if TYPE_CHECKING:
    from lora3d_splat.known_cameras import KnownCamerasConfig
    from lora3d_splat.self_calibration import CalibrationConfig

Format = Literal["ply", "splat", "spz", "colmap", "transforms", "glb", "mp4", "cameras"]
Graph = Literal["auto", "complete", "window", "retrieval", "budget"]
Precision = Literal["auto", "float32", "bfloat16"]
PREVIEW_SCENES = 8
"""Rows of a contact sheet where no number is given."""


@dataclass(frozen=True)
class Calibrate:
    """Photographs to cameras and depth: align, fine-tune the network on its own trusted predictions, align again."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """A folder of photographs, a glob in quotes, several files, or a video."""
    output: Path
    """Folder for scene.json, scene.safetensors, adapter/, transforms.json, seed.ply, colmap/ and report.html."""
    network: str = "auto"
    """compact, dust3r-512, dust3r-512-linear, dust3r-224, mast3r-512, the path of a checkpoint, owner/model on the hub,
    file.py:Class, or auto."""
    focal: str = "shared"
    """shared (one unknown focal length), per-camera, per-view, exif, or a value in pixels of the photograph."""
    robust: Literal["geman-mcclure", "huber", "none"] = "geman-mcclure"
    """Kernel of the alignment: geman-mcclure calibrates the confidence (LoRA3D), none is the plain alignment."""
    residual: Literal["pointmap", "reprojection"] = "pointmap"
    """What the alignment measures: distances of points, or of their projections in the reference photograph."""
    cameras: Path | None = None
    """Known cameras: transforms.json, scene.json, or the folder of a COLMAP model; need not name every photograph."""
    known: Literal["intrinsics", "poses", "both"] = "both"
    """What to take from those cameras."""
    principal_point: bool = False
    """Take the principal point from those cameras too, instead of the middle of the photograph."""
    pose_sigma: tuple[float, float] | None = None
    """POSITION DEGREES: how far known poses may be off (their unit); they are held fixed where not given."""
    distance: tuple[str, str, float] | None = None
    """FILE FILE LENGTH: the cameras of two photographs are that far apart, which sets the unit."""
    positions: Path | None = None
    """Text file with lines FILE X Y Z: move and scale the scene onto these camera positions."""
    video_frames: int = 16
    """Frames taken from a video: of as many stretches the sharpest one each."""
    masks: bool = True
    """Honour masks: white counts, in a folder masks/ in or beside that of the photographs, or their alpha channel."""
    long_side: int | None = None
    """Long side of the images given to the network, in pixels; the network's own where not given."""
    adapt: Literal["pseudo-labels", "triplet", "none"] = "pseudo-labels"
    """Fine-tune the network on its own trusted predictions (LoRA3D), on triplets of photographs that must agree
    (Test3R), or not at all; the adapter is kept only where left-out pairs do not get worse."""
    lora: bool = True
    """--no-lora says the same as --adapt none."""
    tracks: Literal["auto", "on", "off"] = "auto"
    """Cameras from feature tracks: auto (where they convince), on (wherever two views match), or off."""
    sharpen_depth: Literal["auto", "on", "off"] = "auto"
    """Search depth by photo-consistency once tracks have placed the cameras; auto: with the network compact."""
    steps: int | None = None
    """At most so many solver steps in each alignment."""
    epochs: int | None = None
    """Epochs of the fine-tuning; by default ten, and more where the pairs are few and the network is compact."""
    rank: int | None = None
    """Rank of the LoRA adapter."""
    graph: Graph = "auto"
    """Which pairs of photographs are predicted: all, neighbours in their order, those that look alike, or as many as
    4 GiB hold; auto is all of up to 12 photographs and neighbours of more."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto is bfloat16 for large networks on hardware that is faster with it."""
    compile: bool = False
    """Compile the network first, which takes minutes and pays for many pairs on a GPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    offline: bool = False
    """Never touch the network; the environment variable LORA3D_SPLAT_OFFLINE=1 says the same."""
    cache: Path | None = None
    """Folder of finished stages; $LORA3D_SPLAT_CACHE or ~/.cache/lora3d-splat where not given."""
    preview: bool = False
    """Show pointmaps, cameras and losses in the browser while they come (needs viser, which nerfstudio brings)."""
    preview_port: int = 7007
    """Port of that page; the next free one where it is taken."""

    def run(self) -> int:
        from lora3d_splat.files import ensure_writable_folder
        from lora3d_splat.outputs import calibration_tree, write_outputs
        from lora3d_splat.report.table import print_rows
        from lora3d_splat.self_calibration import calibrate

        config = self.config()
        ensure_writable_folder(self.output, "output folder")
        with self._watched():
            calibration = calibrate(self.photos if len(self.photos) != 1 else self.photos[0], config, self.output)
        write_outputs(calibration, self.output, config)
        print_rows(calibration)
        note(calibration_tree(self.output))
        return 0

    def _watched(self) -> AbstractContextManager[object]:
        if not self.preview:
            return nullcontext()
        from lora3d_splat.preview.server import previewing

        return previewing(self.preview_port)

    def config(self) -> CalibrationConfig:
        """The settings of the calibration, those not given left at their defaults."""
        from lora3d_splat.self_calibration import CalibrationConfig

        adapt = self.adapt if self.lora else "none"
        base = CalibrationConfig(
            self.network, self.long_side, adapt, device=self.device, offline=self.offline, cache=self.cache
        )
        alignment = replace(
            base.alignment, focal=self.focal, robust=self.robust, residual=self.residual, **_given(steps=self.steps)
        )
        finetune = replace(base.finetune, **_given(epochs=self.epochs, rank=self.rank))
        pairs = replace(base.pairs, graph=self.graph)
        prediction = replace(base.prediction, precision=self.precision, compile=self.compile)
        changed = {"alignment": alignment, "finetune": finetune, "pairs": pairs, "prediction": prediction}
        changed |= {"known": self._known(), "masks": self.masks, "video_frames": self.video_frames}
        return replace(base, **changed, tracks=self.tracks, sharpen_depth=self.sharpen_depth)

    def _known(self) -> KnownCamerasConfig:
        from lora3d_splat.known_cameras import KnownCamerasConfig

        position, degrees = self.pose_sigma or (None, 1.0)
        return KnownCamerasConfig(
            self.cameras, self.known, self.principal_point, position, degrees, self.distance, self.positions
        )


@dataclass(frozen=True)
class Align:
    """Pair predictions of any network to cameras, depths and calibrated confidences."""

    pairs: tyro.conf.Positional[Path]
    """An .npz with edges (E, 2), pts_i, pts_j (E, H, W, 3) in the frame of camera i, conf_i, conf_j (E, H, W), raw;
    optional size_wh, masks, focals, cam2world (NaN where unknown)."""
    output: Path
    """The .npz to write: cam2world, focals, pts3d, depth, calibrated_i, calibrated_j, registered, reasons."""
    robust: Literal["geman-mcclure", "huber", "none"] = "geman-mcclure"
    """Kernel: geman-mcclure calibrates the confidence (LoRA3D), none is the plain alignment."""
    residual: Literal["pointmap", "reprojection"] = "pointmap"
    """Distances between points, or between their projections in the reference view."""
    focal: str = "shared"
    """shared, per-view, or a value in pixels; focals in the file come first."""
    confidence_floor: float = 0.5
    """Log-confidence below which a pixel never votes; 0: the confidences say nothing, all pixels count alike."""
    steps: int | None = None
    """At most so many solver steps."""

    def run(self) -> int:
        from lora3d_splat.alignment import AlignmentConfig, align
        from lora3d_splat.alignment.pairs_file import read_pairs, write_aligned
        from lora3d_splat.console import stage
        from lora3d_splat.files import ensure_writable_folder

        config = AlignmentConfig(self.robust, self.residual, focal=self.focal, **_given(steps=self.steps))
        ensure_writable_folder(self.output.absolute().parent, "output folder")
        source = read_pairs(self.pairs)
        with stage("alignment", config.steps) as advance:
            found = align(
                source.predictions,
                config,
                views=source.views,
                priors=source.priors,
                confidence_floor=self.confidence_floor,
                advance=advance,
            )
        write_aligned(self.output, source, found)
        for view, reason in zip(source.views, found.scene.reasons, strict=True):
            if reason:
                warn(f"left out {view.file}: {reason}")
        note(f"{sum(found.scene.registered)} of {len(source.views)} views in {self.output}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a finished run or calibration in another program's format, in the frame and scale it was found in."""

    source: tyro.conf.Positional[Path]
    """A run folder of `ns-train lora3d-splat`, or an output folder of `ns-lora3d calibrate`."""
    output: Path | None = None
    """Folder to write into; export/ in the source where not given."""
    format: tuple[Format, ...] = ("ply", "colmap", "transforms", "cameras")
    """One or several of the formats; splat, spz and mp4 (a flight along the photographs and one in a circle) need a
    trained run."""
    seconds: float = 6.0
    """Length of a flight."""
    fps: int = 24
    """Its pictures a second."""
    long_side: int = 640
    """Its longest side in pixels."""

    def run(self) -> int:
        from lora3d_splat.export.video import VideoConfig
        from lora3d_splat.files import ensure_writable_folder
        from lora3d_splat.run_export import export_source

        folder = ensure_writable_folder(self.output or self.source / "export", "output folder")
        video = VideoConfig(self.seconds, self.fps, self.long_side)
        for path in export_source(self.source, folder, self.format, video):
            note(str(path))
        return 0


@dataclass(frozen=True)
class Report:
    """Build report.html and report.json again, of a calibration or a run, also of one that did not reach its end."""

    source: tyro.conf.Positional[Path]
    """An output folder of `ns-lora3d calibrate`, or a run folder of `ns-train lora3d-splat`."""

    def run(self) -> int:
        from lora3d_splat.outputs import write_report

        note(str(write_report(self.source)))
        return 0


@dataclass(frozen=True)
class Demo:
    """Train, evaluate and export the example scene, then score its cameras against the known ones."""

    output: Path = Path("outputs/demo")
    """Folder for metrics.json, splat.ply and a comparison picture per held-out view."""
    scene: Path | None = None
    """A folder with images/ and scene.json (known cameras); the example `tabletop` where not given."""
    iterations: int | None = None
    """Training steps; the method's own number where not given."""
    long_side: int | None = None
    """Longest side of the trained and scored pictures in pixels; the method's own choice where not given."""

    def run(self) -> int:
        from lora3d_splat.demo import run_demo

        run_demo(self.output, self.scene, self.iterations, self.long_side)
        return 0


@dataclass(frozen=True)
class PoseTest:
    """Does joint optimisation help? Train, export the cameras, train again with them fixed, compare held-out views."""

    photos: tyro.conf.Positional[Path]
    """Folder of photographs."""
    output: Path = Path("outputs/pose-test")
    """Folder for pose_test.json and the three runs."""
    iterations: int | None = None
    """Training steps; the method's own number where not given."""
    long_side: int | None = None
    """Longest side of the trained and scored pictures in pixels."""

    def run(self) -> int:
        from lora3d_splat.pose_test import run_pose_test

        run_pose_test(self.photos, self.output, self.iterations, self.long_side)
        return 0


@dataclass(frozen=True)
class Doctor:
    """List what this machine has and lacks for the program, with the remedy for each."""

    def run(self) -> int:
        from lora3d_splat.doctor import examine

        checks = examine()
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = {"ok": "+", "optional": "-", "missing": "!"}[check.state]
            note(f"{mark} {check.name:<{width}}  {check.found}" + (f"\n    -> {check.remedy}" if check.remedy else ""))
        return int(any(check.state == "missing" for check in checks))


@dataclass(frozen=True)
class Pretrain:
    """Train the bundled network `compact` on procedural scenes; its options: `ns-lora3d pretrain --help`."""


COMMANDS = {
    "calibrate": Calibrate,
    "align": Align,
    "demo": Demo,
    "export": Export,
    "report": Report,
    "pose-test": PoseTest,
    "doctor": Doctor,
    "pretrain": Pretrain,
}


def _given(**options: int | None) -> dict[str, int]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def entrypoint() -> None:
    """The console script: runs one command and turns failures into one sentence and an exit status."""
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command; 0 = done, 1 = an error that was explained, 130 = ended by Ctrl-C."""
    try:
        if arguments[:1] == ["pretrain"]:
            return _pretrain(arguments[1:])
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="ns-lora3d", args=arguments).run()
    except Lora3DError as error:
        warn(str(error))
        return 1
    except KeyboardInterrupt:
        return interrupted()


def _pretrain(arguments: list[str]) -> int:
    """Its settings lie beside its code, which imports torch; hence no class of this file."""
    from lora3d_splat.pretraining import PretrainConfig, pretrain, write_preview

    arguments = _with_number(arguments, "--preview", PREVIEW_SCENES)
    config = tyro.cli(PretrainConfig, prog="ns-lora3d pretrain", args=arguments)
    if config.preview:
        write_preview(config)
    else:
        pretrain(config)
    return 0


def _with_number(arguments: list[str], option: str, number: int) -> list[str]:
    """The arguments, with the number put after an option that stands alone."""
    found = list(arguments)
    if option in found:
        after = found.index(option) + 1
        if after == len(found) or found[after].startswith("--"):
            found.insert(after, str(number))
    return found
