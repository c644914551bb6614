"""Held-out evaluation: point, rotation, translation and match errors, against two predictors that see no image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.geometry.procrustes import weighted_similarity
from lora3d_splat.networks.compact import CompactNetwork, cell_rays
from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.pretraining.data import PairBatch, ScenePool, SceneTensors, make_batch
from lora3d_splat.pretraining.losses import match_accuracy, mean_distance
from lora3d_splat.pretraining.trainer import forward_pairs
from lora3d_splat.synthetic.pairs import scene_pairs
from lora3d_splat.synthetic.render import render_scene
from lora3d_splat.synthetic.workers import Size

Predictor = Callable[[PairBatch], tuple[Tensor, Tensor, Tensor, Tensor]]
"""points and confidence of the reference, then of the other view, all in the reference frame, half resolution"""


@dataclass(frozen=True)
class Accuracy:
    """Medians over ordered pairs. Point errors: |s X - X_true| / |X_true| after the best scale s of the pair."""

    e1: float
    """points of the reference view, median over pixels"""
    e2: float
    """points of the other view in the reference frame, median over pixels"""
    rotation: float
    """angle between estimated and true relative rotation, degrees"""
    direction: float
    """angle between estimated and true translation, degrees, over pairs with baseline > 0.1 mean distances"""
    moved: float
    """true relative rotation: what predicting no motion would score, degrees"""
    confidence_rank: float
    """mean over pairs of Spearman's correlation between confidence and negative error"""
    matches: float
    """share of visible stride-8 matches found, nan where the predictor has none"""
    pairs: int
    """ordered pairs"""


@lru_cache(maxsize=4)
def heldout_pairs(scenes: int, size: Size) -> tuple[tuple[SceneTensors, int, int], ...]:
    """Two random usable pairs of each of `scenes` held-out scenes."""
    rng, found = np.random.default_rng(5), []
    for seed in range(scenes):
        scene = render_scene(seed, size, 6, "heldout")
        pairs = scene_pairs(scene)
        found += [(SceneTensors.of(scene), *pairs[k]) for k in rng.permutation(len(pairs))[:2]]
    return tuple(found)


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle (B,) of rotation matrices, degrees."""
    trace = rotation.diagonal(dim1=1, dim2=2).sum(-1)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


def direction_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle (B,) between vectors (B, 3), degrees."""
    return torch.rad2deg(torch.acos(F.cosine_similarity(first, second, dim=-1).clamp(-1, 1)))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of two 1D tensors; 0 where one of them is constant."""
    if first.numel() < 3 or first.max() == first.min() or second.max() == second.min():
        return 0.0
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def pair_errors(batch: PairBatch, prediction: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[dict[str, float]]:
    """Errors of each of the 2B ordered pairs of a batch."""
    points_1, confidence_1, points_2, confidence_2 = prediction
    truth_1, truth_2 = batch.points_own, batch.partner(batch.points_partner)
    valid_1, valid_2 = batch.valid, batch.partner(batch.valid)
    # The other view's own-frame points come from the swapped pair; the two maps give the relative pose.
    T_reference_other = batch.partner(batch.T_partner_own)
    weights = (confidence_2 * batch.partner(confidence_1)).clamp(min=1e-6) * valid_2
    own_2 = batch.partner(points_1).flatten(1, 2).double()
    _, rotation, shift = weighted_similarity(own_2, points_2.flatten(1, 2).double(), weights.flatten(1).double())
    turned = rotation_angle(rotation.transpose(1, 2) @ T_reference_other[:, :3, :3].double())
    moved = rotation_angle(T_reference_other[:, :3, :3].double())
    direction = direction_angle(shift, T_reference_other[:, :3, 3].double())
    baseline = T_reference_other[:, :3, 3].norm(dim=-1) / mean_distance(truth_1, truth_2, valid_1, valid_2).flatten()
    rows = []
    for k in range(len(truth_1)):
        guess = torch.cat([points_1[k][valid_1[k]], points_2[k][valid_2[k]]])
        truth = torch.cat([truth_1[k][valid_1[k]], truth_2[k][valid_2[k]]])
        scale = (truth.norm(dim=-1) / guess.norm(dim=-1).clamp(min=1e-6)).median()
        error = (scale * guess - truth).norm(dim=-1) / truth.norm(dim=-1)
        first = int(valid_1[k].sum())
        confidence = torch.cat([confidence_1[k][valid_1[k]], confidence_2[k][valid_2[k]]])
        rows.append(
            {
                "e1": float(error[:first].median()),
                "e2": float(error[first:].median()),
                "rotation": float(turned[k]),
                "direction": float(direction[k]) if baseline[k] > 0.1 else float("nan"),
                "moved": float(moved[k]),
                "confidence_rank": rank_correlation(confidence, -error),
            }
        )
    return rows


def summarise(rows: list[dict[str, float]], matches: list[float]) -> Accuracy:
    """Medians over pairs (mean for the rank correlation)."""
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    medians = {name: float(np.nanmedian(values)) for name, values in table.items() if name != "confidence_rank"}
    found = float(np.mean(matches)) if matches else float("nan")
    return Accuracy(**medians, confidence_rank=float(table["confidence_rank"].mean()), matches=found, pairs=len(rows))


def heldout_batches(scenes: int, size: Size) -> list[PairBatch]:
    """The held-out pairs in batches of eight."""
    pairs = heldout_pairs(scenes, size)
    return [make_batch(list(pairs[k : k + 8]), None) for k in range(0, len(pairs), 8)]


@torch.no_grad()
def evaluate(network: CompactNetwork, scenes: int = 32, size: Size = (96, 128)) -> Accuracy:
    """Accuracy of a network on both orders of two pairs of each of `scenes` held-out scenes of (H, W) pixels."""
    rows, matches = [], []
    device = next(network.parameters()).device
    for batch in heldout_batches(scenes, size):
        output = forward_pairs(network, batch.to(device))
        maps = (output.settled_reference, output.confidence_reference, output.settled_other, output.confidence_other)
        rows += pair_errors(batch, tuple(each.cpu() for each in maps))  # type: ignore[arg-type]
        matches.append(match_accuracy(output.match_logits.cpu(), batch))
    return summarise(rows, matches)


def evaluate_predictor(predictor: Predictor, scenes: int = 32, size: Size = (96, 128)) -> Accuracy:
    """Accuracy of any predictor on the same pairs."""
    return summarise(
        [row for batch in heldout_batches(scenes, size) for row in pair_errors(batch, predictor(batch))], []
    )


def constant_depth(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both views see the same plane from the same place."""
    count, rows, columns = batch.valid.shape
    points = cell_rays(rows, columns, batch.images).unflatten(0, (rows, columns)).expand(count, -1, -1, -1)
    confidence = torch.ones(count, rows, columns)
    return points, confidence, points, confidence


def training_mean(config: PretrainConfig, batches: int = 12, size: Size = (96, 128)) -> Predictor:
    """A predictor that repeats the mean normalised pointmaps of training pairs of one size, resized as needed."""
    usual = PretrainConfig(folder=config.folder, seed=config.seed, sizes=(size,), first_scenes=4 * batches)
    pool = ScenePool(replace(usual, scenes="plain"))  # as the held-out ones are
    rng = np.random.default_rng(config.seed)
    total = torch.zeros(2, size[0] // 2, size[1] // 2, 3)
    count = torch.zeros(2, size[0] // 2, size[1] // 2, 1)
    for batch in (pool.draw(rng) for _ in range(batches)):
        maps = (batch.points_own, batch.partner(batch.points_partner))
        valid = (batch.valid, batch.partner(batch.valid))
        unit = mean_distance(*maps, *valid)[..., None]
        for side in range(2):
            total[side] += torch.where(valid[side][..., None], maps[side] / unit, 0.0).sum(0)
            count[side] += valid[side][..., None].sum(0)
    mean = total / count.clamp(min=1)

    def predict(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        resized = F.interpolate(mean.permute(0, 3, 1, 2), size=batch.valid.shape[1:], mode="bilinear").permute(
            0, 2, 3, 1
        )
        first, second = (each.expand(len(batch.valid), -1, -1, -1) for each in resized)
        return first, torch.ones(batch.valid.shape), second, torch.ones(batch.valid.shape)

    return predict


def as_row(accuracy: Accuracy) -> dict[str, float]:
    """For tables and JSON, rounded."""
    return {name: round(float(value), 4) for name, value in asdict(accuracy).items()}
