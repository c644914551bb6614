"""The solver's parts: derivatives, the best depth, sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from analytic_scene import make_scene, predict

from lora3d_splat.alignment import reprojection, residuals
from lora3d_splat.alignment.config import AlignmentConfig
from lora3d_splat.alignment.initialise import grow_tree, initial_variables, prepare
from lora3d_splat.alignment.normal_equations import System, gauss_newton_step
from lora3d_splat.alignment.observations import Observations, observe, sample_grid
from lora3d_splat.alignment.priors import no_priors
from lora3d_splat.alignment.residuals import DESIGN, best_depth, error_map, errors, features, world_geometry
from lora3d_splat.alignment.variables import SCALE_REACH, FocalModes, Layout, Variables, focal_modes
from lora3d_splat.errors import InputError
from lora3d_splat.geometry.procrustes import Similarity
from lora3d_splat.geometry.transforms import so3_exp


@pytest.fixture(scope="module")
def started() -> tuple[Observations, Variables, torch.Tensor]:
    """Observations and the start of a small noisy scene with one portrait view."""
    scene = make_scene(3, size=(32, 48), portrait=(1,))
    predictions = predict(scene, noise=0.05)
    priors = no_priors(scene.views)
    observations, _ = observe(scene.views, predictions, priors, 0.5, samples=60)
    pairs = [item.pair for item in predictions]
    modes = focal_modes(scene.views, AlignmentConfig(focal="per-view"), priors)
    start = prepare(observations, pairs, modes)
    return observations, *initial_variables(observations, pairs, start, grow_tree(start.edges), 0.5)


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
    depth = best_depth(geometry, observations, weights, started[2])
    modes = FocalModes(torch.ones(3).double(), torch.arange(3), torch.full((3,), torch.nan).double())
    layout = Layout(3, 6, modes, torch.zeros(3, dtype=torch.bool), True, observations.view[::2])
    blocks = residuals.linearised(geometry, observations, depth, weights, layout.block_places(observations), 1.0)
    nothing = torch.zeros(layout.size).double()
    system = System(blocks, layout.size, layout.land, layout.own, nothing, nothing, layout.pin(torch.ones(6).double()))
    view_step, focal_step, pair_step = layout.split(gauss_newton_step(system, 1e-12, 1e-10, 500))

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
    depth = best_depth(geometry, observations, weights, started[2])

    def cost(candidate: torch.Tensor) -> torch.Tensor:
        squared = weights * errors(geometry, observations, candidate).square().sum(-1)
        return torch.zeros_like(depth).index_add_(0, observations.view, squared)

    seen = torch.zeros_like(depth).index_add_(0, observations.view, weights) > 0
    for factor in (0.999, 1.001):
        assert bool((cost(depth) < cost(factor * depth))[seen].all())


def test_another_frame_and_unit_change_the_residuals_by_the_unit_alone(started):
    observations, variables, depth = started
    rotation = so3_exp(torch.tensor([0.3, -0.2, 0.5]).double())
    frame = Similarity(torch.tensor(3.0).double(), rotation, torch.tensor([1.0, 2.0, 3.0]).double())
    moved = variables.moved_to(frame)
    before = errors(world_geometry(variables, observations), observations, depth).norm(dim=-1)
    after = errors(world_geometry(moved, observations), observations, 3.0 * depth).norm(dim=-1)
    torch.testing.assert_close(after, 3.0 * before)


def test_the_derivative_of_the_reprojection_is_that_of_its_residual(started):
    """Central differences over the cameras of view 1, as own view and as reference view, and over the depths."""
    observations, variables, depth = started
    geometry = reprojection.world_geometry(variables, observations)
    modes = FocalModes(torch.ones(3).double(), torch.arange(3), torch.full((3,), torch.nan).double())
    layout = Layout(3, 6, modes, torch.zeros(3, dtype=torch.bool), free_unit=True, lead=observations.view[::2], own=0)
    weights = observations.confidence
    places = layout.block_places(observations)
    blocks = reprojection.linearised(geometry, observations, depth, weights, places, 1.0)

    def cost(parameter: int, by: float) -> torch.Tensor:
        step = torch.zeros(layout.size).double()
        step[parameter] = by
        moved = variables.moved(*layout.split(step))
        squared = reprojection.squared_errors(
            reprojection.world_geometry(moved, observations), observations, depth, 1.0
        )
        return 0.5 * (weights * squared).sum()

    total = torch.zeros(layout.size + 1).double().index_add(0, places.flatten(), blocks.gradient.flatten())
    for parameter in range(6, 12):
        numeric = (cost(parameter, 1e-6) - cost(parameter, -1e-6)) / 2e-6
        assert float(numeric) == pytest.approx(float(total[parameter]), rel=1e-4, abs=1e-6)
    best = reprojection.best_depth(geometry, observations, weights, depth)
    before, after = (reprojection.squared_errors(geometry, observations, each, 1.0) for each in (depth, best))
    assert float((weights * after).sum()) < float((weights * before).sum())


@pytest.mark.parametrize("depth_weight", [1.0, 0.25])
def test_the_gradient_is_that_of_the_squared_errors(started, depth_weight: float):
    """Central differences of half the weighted squares over view 1 and pair 0, depths held."""
    observations, variables, depth = started
    modes = FocalModes(torch.ones(3).double(), torch.arange(3), torch.full((3,), torch.nan).double())
    layout = Layout(3, 6, modes, torch.zeros(3, dtype=torch.bool), True, observations.view[::2])
    weights, places = observations.confidence, layout.block_places(observations)
    geometry = world_geometry(variables, observations)
    blocks = residuals.linearised(geometry, observations, depth, weights, places, depth_weight)
    total = torch.zeros(layout.size + 1).double().index_add(0, places.flatten(), blocks.gradient.flatten())

    def cost(parameter: int, by: float) -> torch.Tensor:
        step = torch.zeros(layout.size).double()
        step[parameter] = by
        moved = world_geometry(variables.moved(*layout.split(step)), observations)
        return 0.5 * (weights * residuals.squared_errors(moved, observations, depth, depth_weight)).sum()

    for parameter in [*range(6, 12), 19, *range(21, 28)]:
        numeric = (cost(parameter, 1e-6) - cost(parameter, -1e-6)) / 2e-6
        # The ray itself is held while it turns: what changes through it is of the order of the residual.
        slack = 0.0 if depth_weight == 1 else 0.05 * float(total.abs().max())
        assert float(numeric) == pytest.approx(float(total[parameter]), rel=1e-4, abs=1e-6 + slack)


def test_a_pair_that_runs_away_is_held_and_takes_no_unit_along(started):
    """A step that sends one pair's scale off: it ends a factor of 100 from the median, and the mean stays pinned."""
    _, variables, *_ = started
    count = len(variables.log_scale)
    step = torch.zeros(count, 7, dtype=torch.float64)
    step[0, 6] = 300.0
    still = torch.zeros(len(variables.log_focal), 6, dtype=torch.float64)
    trust = torch.linspace(0.1, 1.0, count, dtype=torch.float64)
    moved = variables.moved(still, torch.zeros_like(variables.log_focal), step).in_unit_of(variables, trust)
    assert float(moved.log_scale[0] - moved.log_scale.median()) == pytest.approx(SCALE_REACH)
    torch.testing.assert_close(trust @ moved.log_scale, trust @ variables.log_scale)
    centres, before = (each.T_world_view[:, :3, 3] for each in (moved, variables))
    torch.testing.assert_close(
        torch.cdist(centres, centres) * torch.cdist(before, before).max(),
        torch.cdist(before, before) * torch.cdist(centres, centres).max(),
    )


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
    priors = no_priors(scene.views)
    observations, _ = observe(scene.views, predictions, priors, 0.5, samples=60)
    modes = focal_modes(scene.views, AlignmentConfig(), priors)
    tree = grow_tree(prepare(observations, [item.pair for item in predictions], modes).edges)
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
    modes = focal_modes(views, AlignmentConfig(focal="exif"), no_priors(views))
    assert modes.mode.tolist() == [0, -1, 0]
    assert modes.fixed[1].item() == pytest.approx(700.0 * views[1].affine.scale_x)
    with pytest.raises(InputError, match="EXIF"):
        focal_modes(make_scene(3).views, AlignmentConfig(focal="exif"), no_priors(make_scene(3).views))
