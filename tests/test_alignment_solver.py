"""The solver's parts: derivatives, the best depth, sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from analytic_scene import make_scene, predict

from lora3d_splat.alignment.align import log_confidences
from lora3d_splat.alignment.config import AlignmentConfig
from lora3d_splat.alignment.initialise import grow_tree, initial_variables, score_edges
from lora3d_splat.alignment.normal_equations import gauss_newton_step
from lora3d_splat.alignment.observations import Observations, observe, sample_grid
from lora3d_splat.alignment.residuals import DESIGN, best_depth, error_map, errors, features, world_geometry
from lora3d_splat.alignment.variables import FocalModes, Variables, focal_modes
from lora3d_splat.errors import InputError


@pytest.fixture(scope="module")
def started() -> tuple[Observations, Variables, torch.Tensor]:
    """Observations and the start of a small noisy scene with one portrait view."""
    scene = make_scene(3, size=(32, 48), portrait=(1,))
    predictions = predict(scene, noise=0.05)
    observations = observe(scene.views, predictions, log_confidences(predictions, 0.5), samples=60)
    pairs = [item.pair for item in predictions]
    modes = focal_modes(scene.views, AlignmentConfig(focal="per-view"))
    tree = grow_tree(score_edges(observations, pairs))
    return observations, *initial_variables(observations, pairs, tree, modes, 0.5)


def test_the_derivative_is_that_of_the_residual(started):
    """Central differences of e over every parameter of view 1 and pair 0 agree with the design applied to features."""
    observations, variables, depth = started
    geometry = world_geometry(variables, observations)
    values = features(geometry, observations, depth)
    analytic = torch.einsum("xik,bsk->bsxi", DESIGN, values)
    torch.testing.assert_close(values @ error_map(geometry).transpose(1, 2), errors(geometry, observations, depth))
    step = 1e-6

    def moved(parameter: int, by: float) -> torch.Tensor:
        view, focal, pair = torch.zeros(3, 6).double(), torch.zeros(3).double(), torch.zeros(6, 7).double()
        if parameter < 6:
            view[1, parameter] = by
        elif parameter == 6:
            focal[1] = by
        else:
            pair[0, parameter - 7] = by
        geometry = world_geometry(variables.moved(view, focal, pair), observations)
        return errors(geometry, observations, depth)

    for parameter in range(14):
        numeric = (moved(parameter, step) - moved(parameter, -step)) / (2 * step)
        touched = observations.view == 1 if parameter < 7 else observations.pair == 0
        torch.testing.assert_close(numeric[touched], analytic[touched][..., parameter], atol=1e-7, rtol=1e-6)
        assert float(numeric[~touched].abs().max()) == 0.0


def test_the_reduced_step_is_the_step_of_the_full_system(started):
    """Eliminating the depths changes nothing: against dense least squares over all parameters and all depths."""
    observations, variables, _ = started
    geometry = world_geometry(variables, observations)
    weights = observations.confidence
    depth = best_depth(geometry, observations, weights)
    modes = FocalModes(torch.ones(3).double(), torch.arange(3), torch.full((3,), torch.nan).double())
    view_step, focal_step, pair_step = gauss_newton_step(geometry, observations, depth, weights, modes, 1e-12)

    blocks, samples = weights.shape
    jacobian = torch.zeros(blocks, samples, 3, 18 + 3 + 42 + 3 * samples, dtype=torch.float64)
    local = torch.einsum("xik,bsk->bsxi", DESIGN, features(geometry, observations, depth))
    for block in range(blocks):
        view, pair = int(observations.view[block]), block // 2
        jacobian[block, :, :, 6 * view : 6 * view + 6] = local[block, ..., :6]
        jacobian[block, :, :, 18 + view] = local[block, ..., 6]
        jacobian[block, :, :, 21 + 7 * pair : 28 + 7 * pair] = local[block, ..., 7:]
        for sample in range(samples):
            jacobian[block, sample, :, 63 + samples * view + sample] = geometry.rays[view, sample]
    root = weights.sqrt()[..., None]
    system = (jacobian * root[..., None]).flatten(0, 2)
    pin = torch.zeros(1, system.shape[1], dtype=torch.float64)
    pin[0, 27:63:7] = 1e3
    error = torch.cat([(errors(geometry, observations, depth) * root).flatten(), torch.zeros(1).double()])
    full = torch.linalg.lstsq(torch.cat([system, pin]), -error[:, None], driver="gelsd").solution[:, 0]
    predicted = torch.einsum(
        "bsxi,bi->bsx",
        local,
        torch.cat([view_step[observations.view], focal_step[observations.view, None], pair_step[observations.pair]], 1),
    )
    # Depths take up what happens along the rays; the world's own frame is all but free, hence the tolerance.
    wanted = torch.einsum("bsxi,i->bsx", jacobian[..., :63], full[:63])
    rays = torch.nn.functional.normalize(geometry.rays, dim=-1)[observations.view]
    across = [item - (item * rays).sum(-1, keepdim=True) * rays for item in (predicted, wanted)]
    voting = weights > 0
    gap = (across[0] - across[1])[voting].abs().max()
    assert float(gap) < 1e-3 * float(across[1][voting].abs().max())


def test_no_other_depth_has_a_smaller_weighted_error(started):
    observations, variables, _ = started
    geometry = world_geometry(variables, observations)
    weights = observations.confidence * torch.rand(
        observations.confidence.shape, generator=torch.Generator().manual_seed(1)
    )
    depth = best_depth(geometry, observations, weights)

    def cost(candidate: torch.Tensor) -> torch.Tensor:
        squared = weights * errors(geometry, observations, candidate).square().sum(-1)
        return torch.zeros_like(depth).index_add_(0, observations.view, squared)

    seen = torch.zeros_like(depth).index_add_(0, observations.view, weights) > 0
    for factor in (0.999, 1.001):
        assert bool((cost(depth) < cost(factor * depth))[seen].all())


def test_pinning_changes_the_unit_and_nothing_else(started):
    observations, variables, depth = started
    pinned = variables.pinned(0.5)
    assert pinned.log_scale.mean().exp().item() == pytest.approx(0.5)
    factor = float((pinned.log_scale - variables.log_scale).mean().exp())
    before = errors(world_geometry(variables, observations), observations, depth)
    after = errors(world_geometry(pinned, observations), observations, factor * depth)
    torch.testing.assert_close(after, factor * before)


def test_the_grid_covers_the_image_evenly_with_about_as_many_samples_as_asked():
    grid = sample_grid((112, 160), 800)
    assert 400 < len(grid) <= 1000
    rows, columns = grid // 160, grid % 160
    assert rows.float().mean().item() == pytest.approx(56, abs=4)
    assert columns.float().mean().item() == pytest.approx(80, abs=4)
    assert len(sample_grid((3, 2), 800)) == 6


def test_the_tree_reaches_every_view_of_a_connected_graph(started):
    observations, _, _ = started
    scene = make_scene(5)
    predictions = [item for item in predict(scene) if abs(item.pair.reference - item.pair.other) == 1]
    observations = observe(scene.views, predictions, log_confidences(predictions, 0.5), samples=60)
    tree = grow_tree(score_edges(observations, [item.pair for item in predictions]))
    assert {new for _, _, new in tree} | {tree[0][1]} == set(range(5))
    assert len(tree) == 4


@pytest.mark.parametrize(
    ("setting", "value"), [("focal", "wide"), ("focal", "-3"), ("steps", 0), ("mu_relative", 0.0), ("robust", "l2")]
)
def test_a_wrong_setting_is_refused_with_what_is_accepted(setting: str, value: object):
    with pytest.raises(InputError, match=setting) as caught:
        AlignmentConfig(**{setting: value})
    assert caught.value.accepted
    assert caught.value.remedy


def test_exif_focals_are_fixed_and_missing_ones_shared():
    views = list(make_scene(3).views)
    views[1] = replace(views[1], focal_hint=700.0)
    modes = focal_modes(views, AlignmentConfig(focal="exif"))
    assert modes.mode.tolist() == [0, -1, 0]
    assert modes.fixed[1].item() == pytest.approx(700.0 * views[1].affine.scale_x)
    with pytest.raises(InputError, match="EXIF"):
        focal_modes(make_scene(3).views, AlignmentConfig(focal="exif"))
