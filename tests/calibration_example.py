"""A small calibration made by hand, for tests of what comes after it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora3d_splat.alignment.judge import world_points
from lora3d_splat.geometry.transforms import se3_exp
from lora3d_splat.passes import judge_reliability, summarise
from lora3d_splat.records import (
    AlignedScene,
    CalibratedConfidence,
    Calibration,
    CalibrationRow,
    ImagePair,
    PairPrediction,
    PixelAffine,
    View,
)
from lora3d_splat.report.run_results import comparison_path

HEIGHT, WIDTH = 24, 32
SCALE = 4
"""Photograph pixels per network pixel."""


def make_calibration(
    folder: Path, count: int = 3, lost: int | None = None, orientation: int | None = None
) -> Calibration:
    """`count` views of a wavy wall with photographs on disk; view `lost` is unregistered, view 0 turned by EXIF."""
    views = tuple(_view(folder / "photos", index, orientation if index == 0 else None) for index in range(count))
    registered = tuple(index != lost for index in range(count))
    twists = 0.05 * torch.arange(6 * count, dtype=torch.float64).reshape(count, 6).sin()
    pairs = tuple(ImagePair(i, j) for i in range(count) for j in range(count) if i != j)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    depth = 2.0 + 0.1 * torch.sin(rows / 3) + 0.1 * torch.cos(columns / 4)
    scene = AlignedScene(
        registered=registered,
        reasons=tuple(None if ok else "it fits no other view" for ok in registered),
        T_world_camera=se3_exp(twists),
        focal=torch.full((count,), 30.0, dtype=torch.float64),
        principal_point=torch.tensor([[WIDTH / 2, HEIGHT / 2]], dtype=torch.float64).repeat(count, 1),
        depth=tuple(depth + 0.01 * index if ok else torch.zeros(HEIGHT, WIDTH) for index, ok in enumerate(registered)),
        pairs=pairs,
        T_world_pair=torch.eye(4, dtype=torch.float64).repeat(len(pairs), 1, 1),
        pair_scale=torch.ones(len(pairs), dtype=torch.float64),
        mu=0.02,
        residual=0.01,
    )
    trust = tuple(
        torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(index)) + 0.5 for index in range(count)
    )
    confidence = CalibratedConfidence(
        tuple((trust[pair.reference], trust[pair.other]) for pair in pairs), trust, tuple(each + 0.5 for each in trust)
    )
    maps = [world_points(scene, index) for index in range(count)]
    noisy = [points + 0.02 * torch.randn(points.shape, generator=torch.Generator().manual_seed(7)) for points in maps]
    placed = tuple(pair for pair in pairs if lost not in (pair.reference, pair.other))
    positions = [pairs.index(pair) for pair in placed]
    taking_part = replace(
        scene, pairs=placed, T_world_pair=scene.T_world_pair[positions], pair_scale=scene.pair_scale[positions]
    )
    predictions = [PairPrediction(p, noisy[p.reference], trust[0] + 1, maps[p.other], trust[0] + 1) for p in placed]
    passes = tuple(
        summarise(
            name,
            views,
            taking_part,
            confidence,
            predictions,
            judge_reliability(taking_part, confidence, predictions, unseen=False),
        )
        for name in ("plain alignment", "robust alignment")
    )
    poses = tuple(tuple(pose.flatten().tolist()) for pose in scene.T_world_camera)
    calibration_rows = (
        CalibrationRow("plain alignment", 0.03, 0.04, 120.0, 0.7, sum(registered), 1.5, poses),
        CalibrationRow("robust alignment", 0.02, 0.03, 121.0, 0.7, sum(registered), 1.6, poses),
        CalibrationRow("robust alignment + LoRA", None, None, None, None, 0, 0.0, (), "switched off <by> the settings"),
    )
    return Calibration(
        network="compact",
        licence="Apache-2.0",
        views=views,
        scene=scene,
        confidence=confidence,
        rows=calibration_rows,
        adapter=None,
        decision="The base network was kept: switched off <by> the settings.",
        left_out=(("notes.jpg", "notes.jpg: not an image, whatever its name says"),),
        seconds={"prediction": 1.0, "plain alignment": 0.5},
        folder=folder,
        passes=passes,
    )


def write_finished_run(run: Path, files: tuple[str, ...]) -> None:
    """What a training leaves beside its calibration: scores, a curve of 40 steps, comparison pictures of noise."""
    scores = {
        "psnr": 20.0, "ssim": 0.5, "lpips_alex": None, "lpips_alex_reason": "no backbone",
        "lpips_vgg": None, "lpips_vgg_reason": "no backbone",
    }  # fmt: skip
    views = [{"file": file, "raw": scores, "aligned": scores, "pose_change": {"rotation_deg": 0.5}} for file in files]
    content = {
        "protocol": {"scored": "held-out views", "reason": None, "gaussians": 1000, "picture_size": [[512, 384]]},
        "mean": scores, "mean_aligned": scores, "views": views, "seconds": {"prediction": 1.0, "training": 2.0},
        "peak_memory_bytes": {"cpu": 10**9, "cuda": None, "cuda_reason": "no CUDA device"},
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(content))
    curve = [f"{step},{0.1 * step},{15 + 0.1 * step}," for step in range(40)]
    (run / "training.csv").write_text("\n".join(["step,seconds,psnr,heldout_psnr", *curve, "39,4.0,,16.5"]) + "\n")
    for index, file in enumerate(files):
        path = run / comparison_path(file)
        path.parent.mkdir(exist_ok=True)
        coarse = np.random.default_rng(index).integers(0, 255, (96, 4 * 128, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((4 * 512, 384), Image.Resampling.BICUBIC).save(path)


def _view(folder: Path, index: int, orientation: int | None) -> View:
    """A photograph of 128x96 upright pixels; with EXIF orientation 6 or 8 its stored pixels lie on their side."""
    pixels = np.random.default_rng(index).integers(0, 255, (HEIGHT * SCALE, WIDTH * SCALE, 3), dtype=np.uint8)
    path = folder / f"{index}.png"
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    stored = pixels
    if orientation == 6:  # stored turned by 90 degrees against the clock, to be turned back with it
        stored, exif[0x0112] = np.ascontiguousarray(np.rot90(pixels)), 6
    Image.fromarray(stored).save(path, exif=exif)
    image = np.ascontiguousarray(pixels[::SCALE, ::SCALE])
    affine = PixelAffine(1 / SCALE, 1 / SCALE, 0.0, 0.0)
    return View(f"{index}.png", path, WIDTH * SCALE, HEIGHT * SCALE, image, affine, f"digest{index}")
