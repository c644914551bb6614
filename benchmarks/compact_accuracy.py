"""Accuracy of the compact network on held-out synthetic scenes and on real posed photographs.

    python benchmarks/compact_accuracy.py [--checkpoint FILE] [--data FOLDER] [--long-side 128]

Real scenes are folders with `scene.json` (`frames` with `file`, `split`, `fx`, `c2w` and, where there is one, `depth`);
they are skipped where absent. Point errors (where depth is known) take the principal point for the picture's centre.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora3d_splat.console import note, warn
from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.networks.compact import CompactNetwork, load_compact
from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.pretraining.data import SceneTensors, make_batch
from lora3d_splat.pretraining.evaluation import (
    as_row,
    constant_depth,
    direction_angle,
    evaluate,
    evaluate_predictor,
    pair_errors,
    rotation_angle,
    training_mean,
)
from lora3d_splat.pretraining.trainer import forward_pairs
from lora3d_splat.synthetic.render import SyntheticScene

PAIRS_PER_SCENE = 12


def load_frame(path: Path, focal: float, long_side: int) -> tuple[torch.Tensor, float]:
    """Photograph resized to `long_side`, centre-cropped to multiples of 16: (3, H, W) in [-1, 1], focal in pixels."""
    photo = Image.open(path).convert("RGB")
    scale = long_side / max(photo.size)
    photo_small = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(photo_small)).permute(2, 0, 1).float() / 127.5 - 1
    top, left = pixels.shape[1] % 16 // 2, pixels.shape[2] % 16 // 2
    height, width = pixels.shape[1] // 16 * 16, pixels.shape[2] // 16 * 16
    return pixels[:, top : top + height, left : left + width], focal * scale


def weiszfeld_focal(points: torch.Tensor, rounds: int = 10) -> float:
    """Focal length in pixels of a pointmap (H, W, 3) with the principal point at the centre (DUSt3R's estimate)."""
    height, width = points.shape[:2]
    v, u = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    pixels = torch.stack([u, v], -1).reshape(-1, 2)
    flat = points.reshape(-1, 3)
    rays = flat[:, :2] / flat[:, 2:].clamp(min=1e-3)
    weights = torch.ones(len(rays))
    for _ in range(rounds):
        focal = (weights * (pixels * rays).sum(-1)).sum() / (weights * rays.square().sum(-1)).sum()
        weights = 1 / (pixels - focal * rays).norm(dim=-1).clamp(min=1e-6)
    return float(focal)


def scene_rows(folder: Path, network: CompactNetwork, long_side: int) -> list[dict[str, float]]:
    """Errors of ordered pairs of neighbouring train frames."""
    frames = [
        f for f in json.loads((folder / "scene.json").read_text())["frames"] if f["split"] == "train" and f["c2w"]
    ]
    loaded = [load_frame(folder / f["file"], f["fx"], long_side) for f in frames]
    rows = []
    for i, j in neighbours(len(frames)):
        with torch.no_grad():
            views = [network.encode(loaded[k][0][None]) for k in (i, j)]
            there, back = network.decode_both(views[0], views[1])
        T = torch.linalg.inv(torch.tensor(frames[i]["c2w"])) @ torch.tensor(frames[j]["c2w"])
        weights = (there.confidence_other * back.confidence_reference).flatten(1).double()
        source, target = back.points_reference.flatten(1, 2).double(), there.points_other.flatten(1, 2).double()
        _, rotation, shift = weighted_similarity(source, target, weights)
        true_rotation, true_shift = T[None, :3, :3].double(), T[None, :3, 3].double()
        focal = weiszfeld_focal(there.points_reference[0])
        rows.append(
            {
                "rotation": float(rotation_angle(rotation.transpose(1, 2) @ true_rotation)),
                "moved": float(rotation_angle(true_rotation)),
                "direction": float(direction_angle(shift, true_shift)),
                "focal_error": abs(focal / loaded[i][1] - 1),
            }
        )
    return rows


def load_depth(path: Path, metres: float, size: tuple[int, int]) -> np.ndarray:
    """A 16-bit z-depth picture on the pixels of `load_frame`'s crop of size (H, W): metres, 0 where unknown."""
    depth = np.asarray(Image.open(path)).astype(np.float32) * metres
    scale = min(np.array(depth.shape) / size)  # the crop removes less than 16 of the reduced pixels
    rows, columns = (
        ((np.arange(n) - (n - 1) / 2) * scale + (whole - 1) / 2).round().astype(int)
        for n, whole in zip(size, depth.shape, strict=True)
    )
    return depth[rows.clip(0, depth.shape[0] - 1)][:, columns.clip(0, depth.shape[1] - 1)]


def point_rows(folder: Path, network: CompactNetwork, long_side: int) -> list[dict[str, float]]:
    """Point errors of the same pairs in both orders, beside a constant depth's; empty where depth is unknown."""
    scene = json.loads((folder / "scene.json").read_text())
    frames = [f for f in scene["frames"] if f["split"] == "train" and f["c2w"]]
    if not frames or not all(f.get("depth") for f in frames):
        return []
    loaded = [load_frame(folder / f["file"], f["fx"], long_side) for f in frames]
    size = (loaded[0][0].shape[1], loaded[0][0].shape[2])
    metres = scene["depth"]["scale_to_metres"]
    known = SyntheticScene(
        images=np.stack([((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for pixels, _ in loaded]),
        depth=np.stack([load_depth(folder / f["depth"], metres, size) for f in frames]),
        T_world_camera=np.array([f["c2w"] for f in frames], np.float64),
        focal=np.array([focal for _, focal in loaded], np.float64),
        kind="photographs",
    )
    rows = []
    for i, j in neighbours(len(frames)):
        batch = make_batch([(SceneTensors.of(known), i, j)], None)
        with torch.no_grad():
            out = forward_pairs(network, batch)
        maps = (out.settled_reference, out.confidence_reference, out.settled_other, out.confidence_other)
        blind = pair_errors(batch, constant_depth(batch))
        for row, plane in zip(pair_errors(batch, maps), blind, strict=True):
            rows.append(
                {"e1": row["e1"], "e2": row["e2"], "e1_plane": plane["e1"], "confidence_rank": row["confidence_rank"]}
            )
    return rows


def neighbours(frames: int) -> list[tuple[int, int]]:
    """Pairs of frames at most two apart, at most PAIRS_PER_SCENE."""
    return [(i, j) for i, j in combinations(range(frames), 2) if j - i <= 2][:PAIRS_PER_SCENE]


def show(name: str, row: dict[str, float]) -> None:
    """One line."""
    note(f"{name:<28}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))


def synthetic(network: CompactNetwork, scenes: int) -> None:
    """Held-out scenes at several sizes, and the blind predictors."""
    for size in ((96, 128), (128, 96), (112, 160), (144, 192)):
        show(f"synthetic {size[1]}x{size[0]}", as_row(evaluate(network, scenes, size)))
    show("constant depth 128x96", as_row(evaluate_predictor(constant_depth, scenes)))
    show("training mean 128x96", as_row(evaluate_predictor(training_mean(PretrainConfig(), 6), scenes)))


def main() -> None:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=None, help="exported network; the packaged one by default")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data", help="posed scenes")
    parser.add_argument("--long-side", type=int, default=128, help="long side of the photographs, pixels")
    parser.add_argument("--scenes", type=int, default=32, help="held-out synthetic scenes; 0 leaves them out")
    options = parser.parse_args()
    network = load_compact(options.checkpoint)
    if options.scenes:
        synthetic(network, options.scenes)
    folders = sorted(path.parent for path in options.data.glob("*/scene.json"))
    if not folders:
        warn(f"no posed scenes under {options.data}: real photographs skipped")
    for folder in folders:
        medians: dict[str, float] = {}
        for rows in (scene_rows(folder, network, options.long_side), point_rows(folder, network, options.long_side)):
            medians |= {key: float(np.median([row[key] for row in rows])) for key in (rows[0] if rows else ())}
        if medians:
            show(folder.name, medians)


if __name__ == "__main__":
    main()
