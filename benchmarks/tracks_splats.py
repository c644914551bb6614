"""Held-out PSNR of trainings from photographs: with feature tracks, without, and Splatfacto from COLMAP's mapper.

    OMP_NUM_THREADS=1 python benchmarks/tracks_splats.py ../shared/data --scenes fountain_p11 fox redkitchen_a
    OMP_NUM_THREADS=1 python benchmarks/tracks_splats.py ../shared/data --trainings tracks --train-views 3

Training and held-out photographs are those of scene.json; 1000 steps, 320 pixels wide, `compact`, on this machine's
rasteriser. Ours calibrates the training photographs and registers the held-out ones, as `ns-train lora3d-splat` does.
Splatfacto trains with its defaults, at full size from the start, from the mapper's poses and sparse points. The mapper
sees the held-out photographs as well, which tells it their poses, more of its own, and points that only they show
together with one other; `fair` leaves these points out: at least two training photographs must show a point. PSNR is
raw, at the registered poses; for ours also after each held-out pose was aligned to its photograph. Views: those that
are scored.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_cameras import Outcome, our_config, run, splatfacto_config
from mapper_baseline import MappedScene, map_photographs
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from tracks import spaced

from lora3d_splat.console import note
from lora3d_splat.export.cameras import PhotographCamera
from lora3d_splat.geometry.lens import radial_of_slopes
from lora3d_splat.images.load import load_views
from lora3d_splat.plugin.dataparser import Lora3DDataParser, Lora3DDataParserConfig, PlacedView, nerfstudio_cameras
from lora3d_splat.plugin.normalise import normalisation
from lora3d_splat.plugin.photographs import prepare_photograph
from lora3d_splat.records import View
from lora3d_splat.self_calibration import CalibrationConfig


@dataclass
class MappedConfig(Lora3DDataParserConfig):
    """A scene whose cameras and points the mapper has found."""

    _target: Any = field(default_factory=lambda: MappedDataParser)
    fair: bool = False
    """leave out points that fewer than two training photographs show"""


class MappedDataParser(Lora3DDataParser):
    """The mapper's cameras and sparse points; photographs named `eval` are held out."""

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        paths = sorted(self.config.data.iterdir())
        found = mapped(tuple(paths))
        views = [view for view in load_views(paths, 64, 16).views if view.path.name in found.T_world_camera]
        wanted = [view for view in views if view.path.name.startswith("eval") == (split != "train")]
        train = np.stack([found.T_world_camera[view.path.name] for view in views if "eval" not in view.path.name])
        frame = normalisation(torch.from_numpy(train), _median_depth(found, train))
        placed = tuple(_placed(view, found, self.config) for view in wanted)
        least = 2 if self.config.fair else 0
        use = [sum(not name.startswith("eval") for name in names) >= least for names in found.seen_by]
        points = torch.from_numpy(found.points_world[use]).float()
        seeds = {"points3D_xyz": frame.points(points), "points3D_rgb": torch.from_numpy(found.rgb[use])}
        return DataparserOutputs(
            image_filenames=[item.photograph.path for item in placed],
            cameras=nerfstudio_cameras(placed, frame, indexed=split == "train"),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            metadata=seeds if split == "train" else {},
            dataparser_transform=frame.transform,
            dataparser_scale=frame.scale,
        )


_MAPPED: dict[tuple[Path, ...], MappedScene] = {}


def mapped(paths: tuple[Path, ...]) -> MappedScene:
    """The mapper's scene of these photographs, found once."""
    if paths not in _MAPPED:
        _MAPPED[paths] = map_photographs(paths)
    return _MAPPED[paths]


def _placed(view: View, found: MappedScene, config: Any) -> PlacedView:
    """A photograph freed of the mapper's distortion, with its pinhole camera."""
    view = replace(view, radial=radial_of_slopes(found.radial, found.focal, view))
    camera = PhotographCamera(
        view.file, view.width, view.height, found.focal, found.focal, view.width / 2, view.height / 2,
        found.T_world_camera[view.path.name],
    )  # fmt: skip
    return PlacedView(camera, prepare_photograph(view, config.long_side, config.calibration.cache / "photographs"))


def _median_depth(found: MappedScene, T_world_camera: np.ndarray) -> float:
    inside = np.einsum("vji,vnj->vni", T_world_camera[:, :3, :3], found.points_world - T_world_camera[:, None, :3, 3])
    return float(np.median(inside[..., 2][inside[..., 2] > 0]))


def photographs(scene: Path, folder: Path, train_views: int = 0) -> Path:
    """A folder of links: held-out photographs, named `eval`, and `train_views` evenly spaced others (0: all)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames = json.loads((scene / "scene.json").read_text())["frames"]
    training = [frame for frame in frames if frame["split"] != "test"]
    for frame in [*spaced(training, train_views), *(frame for frame in frames if frame["split"] == "test")]:
        file = scene.absolute() / frame["file"]
        (folder / f"{'eval' if frame['split'] == 'test' else 'train'}_{file.name}").symlink_to(file)
    return folder


def trained(name: str, data: Path, folder: Path, options: argparse.Namespace) -> tuple[Outcome, int, int]:
    """The outcome of a training, and how many of the held-out photographs it could score."""
    kind = {"mapper": MappedConfig, "fair": partial(MappedConfig, fair=True)}.get(name, Lora3DDataParserConfig)
    calibration = CalibrationConfig(
        network="compact", cache=folder.absolute() / "cache", tracks="off" if name == "without" else "auto"
    )
    parser = kind(data=data, long_side=options.long_side, eval_mode="filename", calibration=calibration)
    config = full_size(splatfacto_config(parser)) if name in ("mapper", "fair") else our_config(parser, options)
    outcome = run(config, name, folder, options)
    return outcome, len(parser.setup().get_dataparser_outputs("test").image_filenames), len(list(data.glob("eval*")))


def full_size(config: Any) -> Any:
    """Without the first 3000 steps on smaller pictures, which a short training would never leave."""
    config.pipeline.model = replace(config.pipeline.model, num_downscales=0)
    return config


def main() -> None:
    """Print one line per scene and training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes, each with scene.json")
    parser.add_argument("--scenes", nargs="+", default=["fountain_p11", "fox", "redkitchen_a"])
    parser.add_argument("--trainings", nargs="+", default=["tracks", "without", "mapper", "fair"])
    parser.add_argument("--output", type=Path, default=Path("outputs/tracks_splats"))
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of ours, such as pipeline.model.depth_weight=0.1"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--long-side", type=int, default=320)
    parser.add_argument("--train-views", type=int, default=0, help="evenly spaced training photographs; 0 is all")
    options = parser.parse_args()
    plain = argparse.Namespace(**vars(options), alignment_steps=30, trace=False, profile=False)
    note(f"{'scene':<14} {'training':<9} {'views':>5} {'PSNR':>6} {'aligned':>8} {'SSIM':>6} {'s':>6}  Gaussians")
    for scene in options.scenes:
        folder = options.output / scene
        data = photographs(options.data / scene, folder / "photographs", options.train_views)
        for name in options.trainings:
            found, scored, of = trained(name, data, folder, plain)
            note(
                f"{scene:<14} {name:<9} {scored:>2}/{of:<2} {found.psnr:6.2f} {found.psnr_aligned:8.2f} "
                f"{found.ssim:6.3f} {found.seconds:6.1f}  {found.gaussians}"
            )


if __name__ == "__main__":
    main()
