"""What self-calibration does to the network's own errors: plain, robust, robust + LoRA, and LoRA on ground truth.

    OMP_NUM_THREADS=1 python benchmarks/adaptation.py                        # the reporting half, shipped settings
    OMP_NUM_THREADS=1 python benchmarks/adaptation.py --tune                 # the other half, all of SETTINGS
    OMP_NUM_THREADS=1 python benchmarks/adaptation.py --data SCENES          # with posed photographs (shared/data)
    OMP_NUM_THREADS=2 python benchmarks/adaptation.py --cost                 # seconds for 12 views of 224x176

Scenes: procedural ones of the style `foreign` (patterns and light that training never saw; even seeds tune, odd ones
report), and folders with scene.json, sorted by name (every second one reports). e1, e2: point error of the reference
and of the other view over distance, after the best scale of the pair, median over pixels, mean over ordered pairs; only
where depth is known, and so is the upper bound, whose labels it makes. Rotation and direction of translation: mean
over view pairs, degrees. ATE: RMSE of camera centres after Sim(3) over their largest distance. Focal: mean relative
error. "kept" follows the acceptance rule of self-calibration on left-out pairs; the row "result" is what a user gets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from lora3d_splat.alignment import AlignmentConfig, align, pair_residual
from lora3d_splat.alignment.tracks import find_tracks, settle
from lora3d_splat.console import CONSOLE, note
from lora3d_splat.errors import InputError, Lora3DError
from lora3d_splat.geometry.projection import unproject
from lora3d_splat.geometry.transforms import invert_rigid, transform_points
from lora3d_splat.images.load import load_views
from lora3d_splat.lora.adapter import remove
from lora3d_splat.lora.finetune import FinetuneConfig, finetune, finetune_triplets, planned_epochs
from lora3d_splat.memory import keep_freed_memory
from lora3d_splat.metrics.pose import (
    ate_rmse,
    focal_error,
    relative_rotation_error_deg,
    relative_translation_direction_error_deg,
)
from lora3d_splat.networks.compact import CompactNetwork, load_compact
from lora3d_splat.pairs import complete_pairs
from lora3d_splat.pairs.left_out import leave_out_pairs
from lora3d_splat.prediction import predict_pairs
from lora3d_splat.pseudo_labels import PseudoLabelConfig, degenerate, make_pseudo_labels
from lora3d_splat.records import (
    AlignedScene,
    CalibratedConfidence,
    ImagePair,
    PairPrediction,
    PixelAffine,
    PseudoLabels,
    SparseScene,
    View,
)
from lora3d_splat.synthetic.pairs import scene_pairs
from lora3d_splat.synthetic.render import render_scene

Result = TypeVar("Result")
ENLARGED = 3
PLAIN, ROBUST, ADAPTED, RESULT, UPPER = "plain", "robust", "robust + LoRA", "result", "LoRA on ground truth"
COLUMNS = ("e1", "e2", "rotation", "direction", "ATE", "focal", "heldout")
LEFT_OUT = 0.18


@dataclass(frozen=True)
class Settings:
    """How the network is adapted."""

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    adapt: str = "pseudo-labels"
    tracks: bool = True
    """learn from the scene on tracks where there is one, as self-calibration does"""


SHIPPED = Settings()
SETTINGS = {
    "shipped": SHIPPED,
    "without tracks": replace(SHIPPED, tracks=False, finetune=FinetuneConfig(epochs=10)),
    "alpha 0.2": replace(SHIPPED, finetune=FinetuneConfig(alpha=0.2)),
    "rate 3e-4": replace(SHIPPED, finetune=FinetuneConfig(learning_rate=3e-4)),
    "rank 4": replace(SHIPPED, finetune=FinetuneConfig(rank=4, lora_alpha=4)),
    "qkv alone": replace(SHIPPED, finetune=FinetuneConfig(targets=("qkv",))),
    "10 epochs": replace(SHIPPED, finetune=FinetuneConfig(epochs=10)),
    "30 epochs": replace(SHIPPED, finetune=FinetuneConfig(epochs=30)),
    "keep 0.4": replace(SHIPPED, labels=PseudoLabelConfig(keep=0.4)),
    "agreement 0.6": replace(SHIPPED, labels=PseudoLabelConfig(agreement=0.6)),
    "triplet": replace(SHIPPED, adapt="triplet", finetune=FinetuneConfig(epochs=10)),
}


@dataclass(frozen=True)
class Scene:
    """Views with what is known about them, in network pixels."""

    name: str
    views: tuple[View, ...]
    T_world_camera: Tensor
    """(V, 4, 4) float64"""
    focal: Tensor
    """(V,) float64"""
    centre: Tensor
    """(V, 2) float64"""
    depth: tuple[Tensor, ...] | None
    """per view (H, W) float32, 0 = unknown; None where no view has any"""

    def truth(self, reference: int, view: int) -> tuple[Tensor, Tensor]:
        """True points (H, W, 3) of a view in the camera of another, and where they are known."""
        assert self.depth is not None
        points = unproject(self.depth[view].double(), self.focal[view], self.centre[view])
        T_reference_view = invert_rigid(self.T_world_camera[reference]) @ self.T_world_camera[view]
        return transform_points(T_reference_view, points.flatten(0, 1)).view_as(points), self.depth[view] > 0


def procedural(seed: int, folder: Path, views: int, long_side: int) -> Scene | None:
    """A scene of the third style with exact depth; None where its views hardly see each other.

    Photographs of `ENLARGED` times the network's size are written to `folder` and read like anybody's.
    """
    height, width = ENLARGED * (long_side * 3 // 4), ENLARGED * long_side
    rendered = render_scene(seed, (height, width), views, "foreign", (0.15, 0.6))
    if len(scene_pairs(rendered)) < views * (views - 1) // 3:
        return None
    files = [folder / f"{seed}_{k}.png" for k in range(views)]
    for file, image in zip(files, rendered.images, strict=True):
        Image.fromarray(image).save(file)
    cameras = [(focal, focal, width / 2, height / 2) for focal in rendered.focal]
    name = f"{rendered.kind} {seed}"
    return _scene(name, files, torch.from_numpy(rendered.T_world_camera), cameras, list(rendered.depth), long_side)


def photographs(folder: Path, views: int, long_side: int) -> Scene | None:
    """Evenly chosen posed training frames of a folder with scene.json; None where there are too few."""
    description = json.loads((folder / "scene.json").read_text())
    frames = [frame for frame in description["frames"] if frame["split"] == "train" and frame["c2w"]]
    if len(frames) < 4:
        return None
    frames = [frames[k] for k in sorted({round(k) for k in np.linspace(0, len(frames) - 1, views)})]
    # The files' pixel centres lie at integers, this program's at halves.
    cameras = [(frame["fx"], frame["fy"], frame["cx"] + 0.5, frame["cy"] + 0.5) for frame in frames]
    depth = None
    if all("depth" in frame for frame in frames):
        scale = description["depth"]["scale_to_metres"]
        depth = [np.asarray(Image.open(folder / frame["depth"])).astype(np.float32) * scale for frame in frames]
    poses = torch.tensor([frame["c2w"] for frame in frames], dtype=torch.float64)
    return _scene(folder.name, [folder / frame["file"] for frame in frames], poses, cameras, depth, long_side)


def _scene(
    name: str,
    files: Sequence[Path],
    T_world_camera: Tensor,
    cameras: Sequence[tuple[float, ...]],
    depth: Sequence[np.ndarray] | None,
    long_side: int,
) -> Scene:
    """Views at the network's size; `cameras` are (fx, fy, cx, cy) in photograph pixels; `depth` has its own size."""
    views = load_views(files, long_side, 16, masked=False).views
    order = [list(files).index(view.path) for view in views]
    both = [(view.affine, cameras[k]) for view, k in zip(views, order, strict=True)]
    focal = [(a.scale_x * fx * a.scale_y * fy) ** 0.5 for a, (fx, fy, _, _) in both]
    centre = [[a.scale_x * cx + a.offset_x, a.scale_y * cy + a.offset_y] for a, (_, _, cx, cy) in both]
    maps = None if depth is None else tuple(_depth(depth[k], view) for k, view in zip(order, views, strict=True))
    focal, centre = (torch.tensor(each, dtype=torch.float64) for each in (focal, centre))
    return Scene(name, views, T_world_camera[order], focal, centre, maps)


def _depth(stored: np.ndarray, view: View) -> Tensor:
    """The nearest stored depth at the centre of every network pixel."""
    (height, width), affine = view.size, view.affine
    ratio_x, ratio_y = stored.shape[1] / view.width, stored.shape[0] / view.height
    columns = ((np.arange(width) + 0.5 - affine.offset_x) / affine.scale_x * ratio_x).astype(int)
    rows = ((np.arange(height) + 0.5 - affine.offset_y) / affine.scale_y * ratio_y).astype(int)
    rows, columns = rows.clip(0, stored.shape[0] - 1), columns.clip(0, stored.shape[1] - 1)
    return torch.from_numpy(stored[rows[:, None], columns[None]])


@dataclass(frozen=True)
class Pass:
    """Predictions, the scene aligned from them, and how they agree with pairs that a second alignment did not see."""

    predictions: tuple[PairPrediction, ...]
    scene: AlignedScene
    confidence: CalibratedConfidence
    heldout: float


class Study:
    """One scene under the network, whose base answers are computed once."""

    def __init__(self, network: CompactNetwork, scene: Scene) -> None:
        self.network, self.scene = network, scene
        self.pairs = list(complete_pairs(len(scene.views)))
        self.training, self.unseen = leave_out_pairs(self.pairs, LEFT_OUT)
        predictions = predict_pairs(network, scene.views, self.pairs)
        self.plain = self.aligned(predictions, AlignmentConfig(robust="none"))
        self.robust = self.aligned(predictions)
        self.sparse = find_tracks(scene.views, self.robust.scene, predictions, AlignmentConfig())
        self.tracked = None if self.sparse is None else self._settled(self.sparse)

    def _settled(self, sparse: SparseScene) -> tuple[AlignedScene, CalibratedConfidence]:
        """The scene on tracks, sharpened: what self-calibration learns from where tracks convince."""
        views, base, floor = self.scene.views, self.robust, self.network.confidence_floor
        return settle(views, base.scene, base.predictions, sparse, AlignmentConfig(), floor, sharp=True)

    def _placed(self, pair: ImagePair) -> bool:
        """Whether features place both views; true where they place none."""
        return self.sparse is None or self.sparse.places(pair)

    def aligned(self, predictions: tuple[PairPrediction, ...], config: AlignmentConfig | None = None) -> Pass:
        """Align all pairs, and the training pairs alone to judge the others."""
        config, floor = config or AlignmentConfig(), self.network.confidence_floor
        scene, confidence = align(predictions, config, views=self.scene.views, confidence_floor=floor)
        training = [each for each in predictions if each.pair in set(self.training)]
        unseen = [each for each in predictions if each.pair in set(self.unseen)]
        try:
            without, _ = align(training, config, views=self.scene.views, confidence_floor=floor)
            heldout = pair_residual(without, unseen)
        except Lora3DError:
            heldout = float("nan")
        return Pass(predictions, scene, confidence, heldout)

    def adapted(self, teach: Callable[[], object]) -> Pass:
        """The network adapted by `teach`, predicting and aligned again; afterwards it is the base network once more."""
        try:
            teach()
            return self.aligned(predict_pairs(self.network, self.scene.views, self.pairs))
        finally:
            remove(self.network)

    def self_taught(self, settings: Settings) -> Pass | str:
        """Robust + LoRA, or the reason why there is none."""
        if settings.adapt == "triplet":
            views, training = self.scene.views, self.training
            return self.adapted(lambda: finetune_triplets(self.network, views, training, settings.finetune))
        own = self.robust.scene, self.robust.confidence
        teacher, confidence = self.tracked if self.tracked and settings.tracks else own
        if teacher is self.robust.scene and settings.tracks:
            return "no tracks to learn from"
        labels = make_pseudo_labels(self.scene.views, teacher, confidence, settings.labels)
        if settings.tracks:
            labels = [label for label in labels if self._placed(label.pair)]
            if not any(self._placed(pair) for pair in self.unseen):
                return "no left-out pair of views that features place"
        reason = degenerate(labels, len(teacher.pairs), settings.labels)
        labels = [label for label in labels if label.pair in self.training]
        if reason or not labels:
            return reason or "no training pair has labels"
        return self.adapted(lambda: finetune(self.network, self.scene.views, labels, settings.finetune))

    def taught_the_truth(self, settings: Settings) -> Pass:
        """LoRA on true points of the training pairs."""
        labels = [self._true_label(pair) for pair in self.training]
        return self.adapted(lambda: finetune(self.network, self.scene.views, labels, settings.finetune))

    def _true_label(self, pair: ImagePair) -> PseudoLabels:
        reference, known = self.scene.truth(pair.reference, pair.reference)
        other, known_other = self.scene.truth(pair.reference, pair.other)
        return PseudoLabels(pair, reference.float(), known, other.float(), known_other)

    def kept(self, adapted: Pass) -> bool:
        """The acceptance rule of self-calibration: left-out pairs against the scene on tracks, or against their own."""
        lost = sum(self.robust.scene.registered) - sum(adapted.scene.registered)
        before, after = self.robust.heldout, adapted.heldout
        if self.tracked is not None:
            with suppress(InputError):  # no left-out pair of views that features place
                before, after = (self._against_tracks(each) for each in (self.robust, adapted))
        return after <= before and lost <= 0

    def _against_tracks(self, each: Pass) -> float:
        assert self.tracked is not None
        unseen = [item for item in each.predictions if item.pair in set(self.unseen) and self._placed(item.pair)]
        return pair_residual(self.tracked[0], unseen)

    def errors(self, each: Pass) -> dict[str, float]:
        """One row of the table."""
        placed = torch.tensor(each.scene.registered)
        found, true = each.scene.T_world_camera[placed], self.scene.T_world_camera[placed]
        centres = self.scene.T_world_camera[:, :3, 3]
        extent = float(torch.cdist(centres, centres).max())
        row = dict.fromkeys(COLUMNS, float("nan")) | {"heldout": each.heldout}
        if int(placed.sum()) >= 3:
            row["ATE"] = ate_rmse(found[:, :3, 3], true[:, :3, 3]) / extent
            row["rotation"] = float(relative_rotation_error_deg(found, true).mean())
            row["direction"] = float(relative_translation_direction_error_deg(found, true).nanmean())
            row["focal"] = focal_error(each.scene.focal[placed], self.scene.focal[placed])[0]
        if self.scene.depth is not None:
            both = [self._point_errors(item) for item in each.predictions]
            row["e1"], row["e2"] = (float(np.nanmean(side)) for side in zip(*both, strict=True))
        return row

    def _point_errors(self, item: PairPrediction) -> tuple[float, float]:
        sides = ((item.pair.reference, item.points_reference), (item.pair.other, item.points_other))
        guess, truth, count = [], [], []
        for view, points in sides:
            true, known = self.scene.truth(item.pair.reference, view)
            guess.append(points[known].double())
            truth.append(true[known])
            count.append(int(known.sum()))
        guess, truth = torch.cat(guess), torch.cat(truth)
        scale = (truth.norm(dim=-1) / guess.norm(dim=-1).clamp(min=1e-6)).median()
        error = (scale * guess - truth).norm(dim=-1) / truth.norm(dim=-1)
        return float(error[: count[0]].median()), float(error[count[0] :].median())


def scenes(options: argparse.Namespace, parity: int, folder: Path) -> list[Scene]:
    """Those of the half that was asked for; photographs of the procedural ones go to `folder`."""
    found, seed = [], parity + options.beyond // 2 * 2
    while len(found) < options.scenes:
        scene = procedural(seed, folder, options.views, options.long_side)
        found += [scene] if scene else []
        seed += 2
    folders = sorted(path.parent for path in options.data.glob("*/scene.json")) if options.data else []
    posed = [photographs(each, options.views, options.long_side) for each in folders]
    return found + [scene for scene in posed if scene][parity::2]


def timed(work: Callable[[], Result]) -> tuple[Result, str]:
    """The result, and CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, f"{time.process_time() - cpu:.0f} / {time.perf_counter() - wall:.0f}"


def report(network: CompactNetwork, found: Sequence[Scene], upper_bound: bool) -> None:
    """All rows of every scene, then what acceptance criterion 3 of the network asks for."""
    table = Table("scene", "row", *COLUMNS, "CPU / wall s", "remark")
    gains: list[dict[str, float]] = []
    for scene in found:
        study, seconds = timed(lambda scene=scene: Study(network, scene))
        rows: list[tuple[str, Pass, str, str]] = [(PLAIN, study.plain, "", ""), (ROBUST, study.robust, seconds, "")]
        adapted, seconds = timed(lambda study=study: study.self_taught(SHIPPED))
        result, remark = study.robust, adapted if isinstance(adapted, str) else "not kept"
        if isinstance(adapted, Pass):
            result, remark = (adapted, "kept") if study.kept(adapted) else (study.robust, "not kept")
            rows.append((ADAPTED, adapted, seconds, remark))
        rows.append((RESULT, result, "", remark))
        if upper_bound and scene.depth is not None:
            upper, seconds = timed(lambda study=study: study.taught_the_truth(SHIPPED))
            rows.append((UPPER, upper, seconds, ""))
        for name, each, seconds, remark in rows:
            errors = study.errors(each)
            line = (scene.name, name, *(shown(errors, column) for column in COLUMNS), seconds, remark)
            CONSOLE.print(" | ".join(line))
            table.add_row(*line)
        gains.append(gain(study.errors(study.robust), study.errors(result)))
    CONSOLE.print(table)
    conclude(gains)


def gain(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Relative change of every column; below zero is better."""
    return {name: after[name] / before[name] - 1 for name in COLUMNS}


def conclude(gains: Sequence[dict[str, float]]) -> None:
    """How many scenes got better and by how much, over those where the column is known."""
    for column in ("ATE", "e2", "rotation"):
        values = np.array([each[column] for each in gains])
        values = values[np.isfinite(values)]
        if len(values):
            note(
                f"{column}: better on {int((values < 0).sum())} of {len(values)}, median {np.median(values):+.1%}, "
                f"worst {values.max():+.1%}"
            )


def tune(network: CompactNetwork, found: Sequence[Scene], names: Sequence[str]) -> None:
    """Median change against the robust alignment for each of the settings, before the acceptance rule."""
    studies = [Study(network, scene) for scene in found]
    table = Table("setting", "kept", *(f"{column} change" for column in COLUMNS), "CPU / wall s")
    for name in names:
        passes, seconds = timed(lambda name=name: [study.self_taught(SETTINGS[name]) for study in studies])
        done = [(study, each) for study, each in zip(studies, passes, strict=True) if isinstance(each, Pass)]
        gains = [gain(study.errors(study.robust), study.errors(each)) for study, each in done]
        medians = [np.nanmedian([each[column] for each in gains]) if gains else np.nan for column in COLUMNS]
        kept = f"{sum(study.kept(each) for study, each in done)} of {len(studies)}"
        line = (name, kept, *(f"{value:+.1%}" for value in medians), seconds)
        CONSOLE.print(" | ".join(line))
        table.add_row(*line)
    CONSOLE.print(table)


def cost(network: CompactNetwork, views: int, size: tuple[int, int]) -> None:
    """Seconds of predicting a complete graph, and of one epoch of the fine-tuning on it, times the epochs."""
    rendered = render_scene(1, size, views, "foreign", (0.1, 0.3))
    height, width = size
    found = [
        View(f"{k}", Path(f"{k}"), width, height, image, PixelAffine(1, 1, 0, 0), f"cost {k}")
        for k, image in enumerate(rendered.images)
    ]
    pairs = list(complete_pairs(views))
    predict_pairs(network, found, pairs[:4])
    predictions, seconds = timed(lambda: predict_pairs(network, found, pairs))
    note(
        f"{len(pairs)} ordered pairs of {width}x{height} with {torch.get_num_threads()} threads: {seconds} s CPU / wall"
    )
    scene, confidence = align(predictions, views=found, confidence_floor=network.confidence_floor)
    training, _ = leave_out_pairs(pairs, LEFT_OUT)
    labels = [each for each in make_pseudo_labels(found, scene, confidence) if each.pair in training]
    once = replace(SHIPPED.finetune, epochs=1)
    result = finetune(network, found, labels, once)
    remove(network)
    whole = result.seconds * planned_epochs(network, len(labels), SHIPPED.finetune)
    note(f"LoRA on {len(labels)} pairs: {result.seconds:.0f} s wall an epoch, so {whole:.0f} s for all")


def shown(errors: dict[str, float], column: str) -> str:
    value = errors[column]
    if not np.isfinite(value):
        return "-"
    return f"{value:.1f}" if column in ("rotation", "direction") else f"{value:.3f}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="exported network; the packaged one by default")
    parser.add_argument("--data", type=Path, help="folder of posed scenes; none by default")
    parser.add_argument("--scenes", type=int, default=8, help="procedural scenes")
    parser.add_argument("--beyond", type=int, default=0, help="leave out the procedural scenes below this seed")
    parser.add_argument("--views", type=int, default=6, help="views per scene, photographs too")
    parser.add_argument("--long-side", type=int, default=160, help="long side of the images, pixels")
    parser.add_argument(
        "--upper-bound", action=argparse.BooleanOptionalAction, default=True, help="also LoRA on ground truth"
    )
    parser.add_argument("--tune", action="store_true", help="compare settings on the tuning half")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--cost", action="store_true", help="seconds for twelve views of 224x176")
    options = parser.parse_args()
    keep_freed_memory()
    network = load_compact(options.checkpoint)
    if options.cost:
        cost(network, 12, (176, 224))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.tune:
            tune(network, scenes(options, 0, Path(folder)), options.settings)
        else:
            report(network, scenes(options, 1, Path(folder)), options.upper_bound)


if __name__ == "__main__":
    main()
