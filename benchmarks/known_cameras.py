"""Gaussians alone: train with known cameras and depth, so that no network's quality plays a part.

A scene is a folder with images/, scene.json (frames with file, split, intrinsics, c2w in OpenCV axes) and depth maps.

python benchmarks/known_cameras.py SCENE ...                      ours and Splatfacto's defaults, 1000 steps, 320 pixels
python benchmarks/known_cameras.py SCENE --only ours --perturb 1  poses off by 1 degree and 1 %: do they come back?
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora3d_splat.console import note
from lora3d_splat.export.cameras import PhotographCamera, photograph_cameras
from lora3d_splat.gaussians.seeds import SeedConfig, seed_points
from lora3d_splat.geometry.transforms import se3_exp
from lora3d_splat.images.load import load_views
from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig
from lora3d_splat.metrics.image import psnr, ssim
from lora3d_splat.plugin.dataparser import Lora3DDataParser, Lora3DDataParserConfig, PlacedScene, PlacedView
from lora3d_splat.plugin.normalise import normalisation
from lora3d_splat.plugin.photographs import prepare_photograph
from lora3d_splat.records import AlignedScene, CalibratedConfidence, Calibration, RegisteredViews
from lora3d_splat.self_calibration import CalibrationConfig

GROUPS = {
    "rasteriser": ("lora3d_splat/rasterize", "_thread.lock", "SimpleQueue"),
    "loss": ("lora3d_splat/photometric", "conv2d"),
    "optimiser": ("torch/optim", "adam", "addcdiv", "addcmul", "lerp", "sqrt"),
    "nerfstudio": ("nerfstudio", "tensorboard"),
    "compiling and loading": ("numba", "llvmlite", "importlib", "marshal", "ast"),
}
"""Where a training's time goes: marks of files and functions."""

TRUSTED = 2.0
"""Log-confidence of every pixel that has a depth."""


@dataclass
class KnownConfig(Lora3DDataParserConfig):
    """A scene with known cameras."""

    _target: Any = field(default_factory=lambda: KnownScene)
    rotation_deg: float = 0.0
    translation: float = 0.0
    """of the perturbation of the training cameras, as a share of the median depth"""


class KnownScene(Lora3DDataParser):
    """The dataparser with known cameras in place of calibrated ones."""

    @property
    def scene(self) -> PlacedScene:
        if self._scene is None:
            self._scene = known_scene(self.config)
        return self._scene


@dataclass(frozen=True)
class Outcome:
    """Held-out scores of one training."""

    name: str
    psnr: float
    ssim: float
    psnr_aligned: float
    seconds: float
    gaussians: int


def known_scene(config: Any) -> PlacedScene:
    """Views, cameras, seeds of a scene, split as its scene.json says."""
    frames = json.loads((config.data / "scene.json").read_text())["frames"]
    parts = {}
    for split in ("train", "test"):
        chosen = [frame for frame in frames if frame["split"] == split]
        views = load_views([config.data / frame["file"] for frame in chosen], config.long_side, 4).views
        parts[split] = (views, chosen)
    views, chosen = parts["train"]
    calibration = known_calibration(views, chosen, config)
    cameras = photograph_cameras(views, calibration.scene)
    test_views, test_frames = parts["test"]
    registered = known_registration(test_views, test_frames)
    folder = config.calibration.cache / "photographs"
    frame = normalisation(calibration.scene.T_world_camera, median_depth(calibration.scene))
    return PlacedScene(
        calibration=calibration,
        settings=config.calibration,
        train=placed(views, cameras, config.long_side, folder),
        heldout=placed(test_views, photograph_cameras(test_views, registered), config.long_side, folder),
        left_out=(),
        no_heldout=None,
        normalisation=frame,
        seeds=seed_points(calibration, config.seeds),
        seconds={},
        calibration_wall=0.0,
    )


def placed(views: tuple, cameras: tuple[PhotographCamera, ...], long_side: int, folder: Path) -> tuple[PlacedView, ...]:
    """Prepared photographs with their cameras."""
    return tuple(
        PlacedView(camera, prepare_photograph(view, long_side, folder))
        for view, camera in zip(views, cameras, strict=True)
    )


def known_calibration(views: tuple, frames: list[dict], config: Any) -> Calibration:
    """What a perfect network and alignment would have found; the poses perhaps perturbed."""
    depths = tuple(network_depth(view, config.data / frame["depth"]) for view, frame in zip(views, frames, strict=True))
    poses, focal, centres = intrinsics_and_poses(views, frames)
    scale = float(torch.cat([depth[depth > 0] for depth in depths]).median())
    generator = torch.Generator().manual_seed(1)
    for index in range(len(poses)):
        direction = torch.nn.functional.normalize(
            torch.randn(2, 3, generator=generator, dtype=torch.float64), dim=1
        ) * torch.tensor([[config.translation * scale], [np.deg2rad(config.rotation_deg)]], dtype=torch.float64)
        poses[index] = poses[index] @ se3_exp(direction.flatten())
    confidence = tuple(torch.where(depth > 0, TRUSTED, 0.0) for depth in depths)
    scene = AlignedScene(
        registered=(True,) * len(views),
        reasons=(None,) * len(views),
        T_world_camera=poses,
        focal=focal,
        principal_point=centres,
        depth=depths,
        pairs=(),
        T_world_pair=torch.zeros(0, 4, 4, dtype=torch.float64),
        pair_scale=torch.zeros(0, dtype=torch.float64),
        mu=0.01,
        residual=0.0,
    )
    return Calibration(
        network="known", licence="none", views=views, scene=scene,
        confidence=CalibratedConfidence((), confidence, confidence), rows=(), adapter=None, decision="known cameras",
        left_out=(), seconds={}, folder=config.calibration.cache,
    )  # fmt: skip


def known_registration(views: tuple, frames: list[dict]) -> RegisteredViews:
    """Held-out views at their true cameras."""
    poses, focal, centres = intrinsics_and_poses(views, frames)
    return RegisteredViews(views, (True,) * len(views), (None,) * len(views), poses, focal, centres, ())


def intrinsics_and_poses(views: tuple, frames: list[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (V, 4, 4), focals (V,) and principal points (V, 2) in network pixels."""
    poses = torch.tensor([frame["c2w"] for frame in frames], dtype=torch.float64)
    focal = torch.tensor([f["fx"] * v.affine.scale_x for f, v in zip(frames, views, strict=True)], dtype=torch.float64)
    # The files put the centre of the first pixel at 0; here it lies at 0.5.
    centres = [
        (
            (frame["cx"] + 0.5) * view.affine.scale_x + view.affine.offset_x,
            (frame["cy"] + 0.5) * view.affine.scale_y + view.affine.offset_y,
        )
        for frame, view in zip(frames, views, strict=True)
    ]
    return poses, focal, torch.tensor(centres, dtype=torch.float64)


def network_depth(view: Any, path: Path) -> Tensor:
    """(H, W) metres at network resolution, the nearest pixel's."""
    with Image.open(path) as picture:
        depth = torch.from_numpy(np.asarray(picture).astype(np.float32)) / 1000.0
    height, width = view.size
    u = ((torch.arange(width) + 0.5 - view.affine.offset_x) / view.affine.scale_x).long().clamp(0, view.width - 1)
    v = ((torch.arange(height) + 0.5 - view.affine.offset_y) / view.affine.scale_y).long().clamp(0, view.height - 1)
    return depth[v][:, u]


def median_depth(scene: AlignedScene) -> float:
    """Of all pixels that have one."""
    return float(torch.cat([depth[depth > 0] for depth in scene.depth]).median())


def our_config(data: KnownConfig, options: argparse.Namespace) -> Any:
    """The method `lora3d-splat` on a known scene."""
    from method_configs.lora3d_splat import lora3d_splat

    config = lora3d_splat.config
    pipeline = replace(
        config.pipeline,
        datamanager=replace(config.pipeline.datamanager, dataparser=data, data=data.data),
        heldout_pose=PoseAlignmentConfig(steps=options.alignment_steps, levels=(2, 1)),
    )
    pipeline.model = replace(pipeline.model, lpips="off")
    config = replace(config, pipeline=pipeline, resume=False)
    for setting in options.set:
        name, value = setting.split("=", 1)
        assign(config, name, eval(value, {"SeedConfig": SeedConfig}))
    return config


def assign(config: Any, path: str, value: Any) -> None:
    """Set a field given by its dotted path; numbers in it index dictionaries of optimisers by name."""
    *parents, last = path.split(".")
    for name in parents:
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr(config, last, value)


def splatfacto_config(data: KnownConfig) -> Any:
    """nerfstudio's Splatfacto as it comes, on the same data, on this machine's rasteriser."""
    from nerfstudio.configs.method_configs import method_configs

    from lora3d_splat.plugin.datamanager import Lora3DDatamanagerConfig
    from lora3d_splat.plugin.optimisation import ExponentialConfig

    stock_splatfacto_on_this_device()
    config = method_configs["splatfacto"]
    manager = Lora3DDatamanagerConfig(dataparser=data, data=data.data, cache_images_type="uint8")
    for group in config.optimizers.values():
        # The same decays; nerfstudio's put numpy numbers into checkpoints that torch then refuses to read.
        if (decay := group["scheduler"]) is not None:
            group["scheduler"] = ExponentialConfig(lr_final=decay.lr_final, max_steps=decay.max_steps)
    return replace(config, pipeline=replace(config.pipeline, datamanager=manager))


def stock_splatfacto_on_this_device() -> None:
    """Let nerfstudio's own model run without CUDA and without a download, in this process only."""
    import nerfstudio.models.splatfacto as stock
    import torchmetrics.image.lpip

    from lora3d_splat.plugin.model import view_matrix
    from lora3d_splat.rasterize import rasterization

    if torch.cuda.is_available():
        return
    stock.rasterization = rasterization
    stock.get_viewmat = view_matrix
    torch.Tensor.cuda = lambda self, *_, **__: self
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: torch.nn.Identity()


def run(config: Any, name: str, folder: Path, options: argparse.Namespace) -> Outcome:
    """Train and score the held-out views, raw and with each pose aligned."""
    config = replace(
        config, output_dir=folder, experiment_name=name, timestamp="run", vis="tensorboard",
        max_num_iterations=options.steps, steps_per_save=10**9, steps_per_eval_image=0, steps_per_eval_batch=0,
        steps_per_eval_all_images=0,
    )  # fmt: skip
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.logging.local_writer.enable = False
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    start = time.perf_counter()
    if options.trace:
        trace(trainer)
    profile = cProfile.Profile()
    if options.profile:
        profile.runcall(training_loop, trainer)
        print_shares(profile)
    else:
        training_loop(trainer)
    seconds = time.perf_counter() - start
    return score(trainer, name, seconds, options)


def print_shares(profile: cProfile.Profile) -> None:
    """Seconds of the main thread by what it did; it waits for its helpers inside the rasteriser and the loss."""
    seconds: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        group = next((group for group, marks in GROUPS.items() if any(mark in file + name for mark in marks)), "other")
        seconds[group] = seconds.get(group, 0.0) + own
    total = sum(seconds.values())
    for group, value in sorted(seconds.items(), key=lambda item: -item[1]):
        note(f"  {value:7.1f} s  {value / total:5.1%}  {group}")


def training_loop(trainer: Any) -> None:
    """nerfstudio's training without what follows it."""
    trainer._after_train = lambda: None
    trainer.train()


def trace(trainer: Any) -> None:
    """Print what the early stop sees, beside the held-out views, whenever it looks."""
    crops, model = trainer.pipeline.model.held_crops, trainer.pipeline.model
    look = crops.look

    def looked(step: int, loss: float, module: Any) -> bool:
        model.eval()
        values, similar = heldout_scores(trainer)
        model.train()
        note(f"  step {step + 1:>5}  crops {loss:.4f}  held-out PSNR {values:6.2f}  SSIM {similar:.4f}")
        return look(step, loss, module)

    crops.look = looked


@torch.no_grad()
def heldout_scores(trainer: Any) -> tuple[float, float]:
    """Mean PSNR and SSIM of the held-out views at their true poses."""
    model, values, similar = trainer.pipeline.model, [], []
    for camera, batch in trainer.pipeline.datamanager.fixed_indices_eval_dataloader:
        rendered = model.get_outputs(camera.to(model.device))["rgb"]
        photo = model.get_gt_img(batch["image"])
        values.append(psnr(rendered, photo))
        similar.append(ssim(rendered, photo).number or 0.0)
    return statistics.mean(values), statistics.mean(similar)


def score(trainer: Any, name: str, seconds: float, options: argparse.Namespace) -> Outcome:
    """Mean PSNR and SSIM of the held-out views at their true poses; PSNR after alignment for our model."""
    from lora3d_splat.plugin.evaluation import score_views
    from lora3d_splat.plugin.model import Lora3DSplatModel

    model = trainer.pipeline.model.eval()
    raw, similar = heldout_scores(trainer)
    aligned = [float("nan")]
    if isinstance(model, Lora3DSplatModel) and options.alignment_steps:
        views = trainer.pipeline.datamanager.fixed_indices_eval_dataloader
        scores = score_views(model, views, trainer.pipeline.config.heldout_pose)
        aligned = [entry.aligned["psnr"].number for entry in scores]
    return Outcome(name, raw, similar, statistics.mean(aligned), seconds, model.num_points)


def main() -> None:
    """Print one line per scene and training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+", help="folders with images/, depth/ and scene.json")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--long-side", type=int, default=320)
    parser.add_argument("--only", choices=("ours", "splatfacto"), help="one of the two trainings")
    parser.add_argument("--perturb", type=float, default=0.0, help="degrees and %% of the depth, training poses off by")
    parser.add_argument("--seeds", type=int, default=40_000, help="most seed points, of both trainings")
    parser.add_argument("--trace", action="store_true", help="print what the early stop sees")
    parser.add_argument("--alignment-steps", type=int, default=0, help="steps of the held-out pose alignment")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of ours, such as pipeline.model.depth_weight=0.1"
    )
    options = parser.parse_args()
    note(f"{'scene':<16} {'training':<22} {'PSNR':>6} {'SSIM':>6} {'aligned':>8} {'s':>6} {'s/1000':>7}  Gaussians")
    for scene in options.scenes:
        with tempfile.TemporaryDirectory() as folder:
            for name in (options.only,) if options.only else ("ours", "splatfacto"):
                data = KnownConfig(
                    data=scene,
                    long_side=options.long_side,
                    seeds=SeedConfig(max_points=options.seeds),
                    calibration=CalibrationConfig(cache=Path(folder) / "cache"),
                )
                if options.perturb:
                    data = replace(data, rotation_deg=options.perturb, translation=0.01 * options.perturb)
                config = our_config(data, options) if name == "ours" else splatfacto_config(data)
                found = run(config, name, Path(folder), options)
                note(
                    f"{scene.name:<16} {found.name:<22} {found.psnr:6.2f} {found.ssim:6.3f} {found.psnr_aligned:8.2f} "
                    f"{found.seconds:6.1f} {1000 * found.seconds / options.steps:7.1f}  {found.gaussians}"
                )
            shutil.rmtree(Path(folder), ignore_errors=True)
            Path(folder).mkdir(exist_ok=True)


if __name__ == "__main__":
    main()
