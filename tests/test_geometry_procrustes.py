"""Registration of corresponding points."""

from __future__ import annotations

import torch

from lora3d_splat.geometry.procrustes import (
    Similarity,
    align_trajectories,
    robust_similarity,
    weighted_mean,
    weighted_similarity,
)
from lora3d_splat.geometry.transforms import so3_exp

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def random_map(*batch: int) -> Similarity:
    return Similarity(
        torch.rand(batch, generator=GENERATOR).double() + 0.3, so3_exp(randn(*batch, 3)), randn(*batch, 3)
    )


def test_an_exact_similarity_is_recovered_in_a_batch():
    true, source = random_map(4), randn(4, 30, 3)
    found = weighted_similarity(source, true.apply(source), torch.ones(4, 30).double())
    torch.testing.assert_close(found.matrix, true.matrix)


def test_without_scale_the_fit_is_rigid():
    source = randn(20, 3)
    found = weighted_similarity(source, 2.0 * source, torch.ones(20).double(), with_scale=False)
    assert found.scale.item() == 1.0
    torch.testing.assert_close(found.rotation, torch.eye(3).double())


def test_points_without_weight_do_not_count():
    true, source = random_map(), randn(30, 3)
    target, weights = true.apply(source), torch.ones(30).double()
    target[:10], weights[:10] = randn(10, 3), 0.0
    torch.testing.assert_close(weighted_similarity(source, target, weights).matrix, true.matrix)


def test_the_fit_minimises_its_weighted_cost():
    """Any small change of scale, rotation or translation costs more."""
    source, target = randn(25, 3), randn(25, 3)
    weights = torch.rand(25, generator=GENERATOR).double()
    found = weighted_similarity(source, target, weights)

    def cost(fit: Similarity) -> float:
        return float((weights * (fit.apply(source) - target).square().sum(-1)).sum())

    for step in randn(8, 7) * 1e-3:
        moved = Similarity(
            found.scale * step[0].exp(), so3_exp(step[1:4]) @ found.rotation, found.translation + step[4:]
        )
        assert cost(found) < cost(moved)


def test_a_third_of_gross_outliers_does_not_move_the_robust_fit():
    true, source = random_map(6), randn(6, 200, 3)
    target = true.apply(source)
    wrong = torch.rand(6, 200, 1, generator=GENERATOR) < 0.33
    target = torch.where(wrong, target + 3.0 * randn(6, 200, 3), target)
    found, residual = robust_similarity(source, target, torch.ones(6, 200).double(), tolerance=0.01)
    torch.testing.assert_close(found.matrix, true.matrix, atol=1e-3, rtol=0)
    assert float(residual[~wrong[..., 0]].max()) < 5e-3
    plain = weighted_similarity(source, target, torch.ones(6, 200).double())
    assert float((plain.matrix - true.matrix).abs().max()) > 0.05


def test_a_batch_without_any_weight_stays_finite():
    found, residual = robust_similarity(randn(2, 10, 3), randn(2, 10, 3), torch.zeros(2, 10).double(), tolerance=0.1)
    assert bool(torch.isfinite(found.matrix).all() and torch.isfinite(residual).all())


def test_trajectories_align_up_to_a_similarity():
    true, centres = random_map(), randn(5, 3)
    found = align_trajectories(centres.float(), true.apply(centres))
    torch.testing.assert_close(found.matrix, true.matrix, atol=1e-5, rtol=1e-5)


def test_the_weighted_mean_of_nothing_is_zero():
    assert weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0])).item() == 3.5
    assert weighted_mean(torch.tensor([2.0, 4.0]), torch.zeros(2)).item() == 0.0
