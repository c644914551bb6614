"""Joint optimisation in parts: gauge, shared focal length, clock, held-out crops, densification, depth, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.cameras import Cameras, CameraType
from plugin_scene import FOCAL, HEIGHT, WIDTH, camera_pose, look
from torch.nn import Parameter, ParameterDict

from lora3d_splat.errors import InputError
from lora3d_splat.gaussians.mcmc import draw_by_opacity, exploration_noise, share_between_copies
from lora3d_splat.geometry.transforms import opencv_to_opengl, se3_exp
from lora3d_splat.plugin.averaging import RunningAverage
from lora3d_splat.plugin.camera_poses import BAKED, CameraPosesConfig, bake, common_twists
from lora3d_splat.plugin.crops import Crop, crop_camera
from lora3d_splat.plugin.densify import explore, grow, relocate
from lora3d_splat.plugin.depth_prior import depth_loss, depth_prior
from lora3d_splat.plugin.dropout import some_left_out, usual_share
from lora3d_splat.plugin.held_crops import EarlyStopConfig, HeldCrops, place_crop
from lora3d_splat.plugin.model import initial_opacity
from lora3d_splat.plugin.optimisation import Exponential, ExponentialConfig, Progress, seconds_of
from lora3d_splat.plugin.photographs import PreparedPhotograph
from lora3d_splat.plugin.pipeline import Lora3DPipeline
from lora3d_splat.plugin.resume import unfinished_checkpoint
from lora3d_splat.plugin.split import instantsplat_split
from lora3d_splat.plugin.trainer import ending_on_interrupt
from lora3d_splat.records import PixelAffine, View


def poses(count: int = 5) -> torch.Tensor:
    """(V, 3, 4) OpenGL."""
    return torch.stack([opencv_to_opengl(camera_pose(index))[:3] for index in range(count)]).float()


def cameras(count: int = 5) -> Cameras:
    """Numbered as training views."""
    return Cameras(
        camera_to_worlds=poses(count), fx=FOCAL, fy=FOCAL, cx=WIDTH / 2, cy=HEIGHT / 2, width=WIDTH, height=HEIGHT,
        camera_type=CameraType.PERSPECTIVE, metadata={"train_view": torch.arange(count)[:, None]},
    )  # fmt: skip


def optimiser(count: int = 5, **settings):
    """Camera poses with random corrections."""
    found = CameraPosesConfig(**settings).setup(num_cameras=count, device="cpu")
    found.fix_gauge(poses(count))
    with torch.no_grad():
        found.pose_adjustment.copy_(0.02 * torch.randn(count, 6, generator=torch.Generator().manual_seed(3)))
    return found


def test_common_motions_are_taken_out():
    """A similarity of all cameras is a combination of the seven common twists, and corrections hold none of it."""
    before = torch.eye(4).repeat(5, 1, 1).double()
    before[:, :3] = poses().double()
    step = 1e-6
    motion = se3_exp(step * torch.tensor([0.3, -0.2, 0.5, 0.4, 0.1, -0.6], dtype=torch.float64))
    after = motion @ before
    after[:, :3, 3] *= 1 + 0.7 * step
    relative = torch.linalg.inv(before) @ after
    twist = torch.cat(
        [relative[:, :3, 3], torch.stack([relative[:, 2, 1], relative[:, 0, 2], relative[:, 1, 0]], 1)], 1
    )
    basis = common_twists(poses().double())
    assert basis.shape == (30, 7)
    flat = twist.flatten() / step
    assert (flat - basis @ (basis.T @ flat)).norm() < 1e-4 * flat.norm()
    moved = optimiser()
    assert (basis.float().T @ moved.twists().flatten()).abs().max() < 1e-6
    assert moved.twists().abs().max() > 1e-3


def test_the_first_camera_can_be_held():
    """gauge `first`: its correction is none; `free`: every one counts."""
    held, free = optimiser(gauge="first"), optimiser(gauge="free")
    assert not held.twists()[0].any()
    assert torch.equal(held.twists()[1:], held.pose_adjustment[1:])
    assert torch.equal(free.twists(), free.pose_adjustment)


def test_cameras_that_tracks_placed_hardly_move():
    """The same steps of the optimiser move them by `tracked_rate` of what they move the others."""
    moved = optimiser(gauge="free", tracked_rate=0.1)
    moved.hold_tracked(torch.tensor([True, False, True, False, False]))
    share = moved.twists() / moved.pose_adjustment
    assert torch.allclose(share[:, 0], torch.tensor([0.1, 1.0, 0.1, 1.0, 1.0]))


def test_cameras_move_in_their_own_frame():
    """T exp(twist), as nerfstudio's viewer draws it; nothing for baked cameras and others."""
    moved = optimiser(gauge="free")
    camera = cameras()[2:3]
    wanted = torch.eye(4)
    wanted[:3] = camera.camera_to_worlds[0]
    wanted = wanted @ se3_exp(moved.pose_adjustment[2].detach())
    assert torch.allclose(moved.apply_to_camera(camera)[0], wanted[:3], atol=1e-6)
    before = cameras()
    bake(moved, before)
    assert before.metadata["train_view"].unique().tolist() == [BAKED]
    assert torch.allclose(before.camera_to_worlds[2], wanted[:3], atol=1e-6)
    assert torch.equal(moved.apply_to_camera(before[2:3]), before[2:3].camera_to_worlds)


def test_a_shared_focal_length_is_that_of_the_camera():
    """Rendering with a focal factor equals rendering with the longer focal length, and gets a gradient."""
    from lora3d_splat.plugin.model import view_matrix
    from lora3d_splat.rasterize import rasterization

    generator = torch.Generator().manual_seed(0)
    camera = cameras()[1:2]
    points = 0.3 * torch.rand(60, 3, generator=generator)
    shared = {
        "means": points, "quats": torch.randn(60, 4, generator=generator), "scales": torch.full((60, 3), 0.05),
        "opacities": torch.full((60,), 0.7), "colors": torch.rand(60, 3, generator=generator), "width": WIDTH,
        "height": HEIGHT,
    }  # fmt: skip
    poses_ = CameraPosesConfig(focal=True).setup(num_cameras=5, device="cpu")
    poses_.fix_gauge(poses())
    with torch.no_grad():
        poses_.log_focal.fill_(0.1)
    factor = poses_.focal_factor(camera)
    view = view_matrix(camera.camera_to_worlds)
    longer = camera.get_intrinsics_matrices().clone()
    longer[:, [0, 1], [0, 1]] *= float(factor)
    wanted, _, _ = rasterization(**shared, viewmats=view, Ks=longer)
    scaled = torch.cat([view[:, :2] * factor, view[:, 2:]], dim=1)
    got, _, _ = rasterization(**shared, viewmats=scaled, Ks=camera.get_intrinsics_matrices())
    assert wanted.max() > 0.3
    assert torch.allclose(got, wanted, atol=1e-4)
    got.sum().backward()
    assert poses_.log_focal.grad.abs() > 0
    bake(poses_, baked := cameras())
    assert torch.allclose(baked.fx, torch.tensor(FOCAL) * factor.detach())
    assert poses_.focal_factor(baked[:1]) is None


def test_durations():
    """Seconds, minutes, hours; anything else is explained."""
    assert [seconds_of(text) for text in ("90", "60s", "5m", "1.5h")] == [90.0, 60.0, 300.0, 5400.0]
    for wrong in ("", "fast", "-3s", "0"):
        with pytest.raises(InputError, match="budget"):
            seconds_of(wrong)


def test_rates_follow_the_clock(monkeypatch: pytest.MonkeyPatch):
    """With a budget the decay is complete when the time is up, however few steps were made."""
    now = [0.0]
    monkeypatch.setattr("lora3d_splat.plugin.optimisation.time.perf_counter", lambda: now[0])
    progress = Progress(1000, budget=60.0)
    scheduler = Exponential(ExponentialConfig(lr_final=1e-5))
    scheduler.progress = progress
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1e-3)
    decay = scheduler.get_scheduler(optimizer, 1e-3)
    assert progress.share(0) == 0.0
    now[0] = 30.0
    optimizer.step()
    decay.step()
    assert decay.get_last_lr()[0] == pytest.approx(1e-4, rel=1e-6)
    assert not progress.spent()
    now[0] = 61.0
    assert progress.spent()
    assert progress.share(10) == 1.0


def test_held_out_crops_are_hidden_and_watched():
    """No gradient inside the crop; training ends when the crops are bad for too long, at the last good state."""
    crops = HeldCrops(EarlyStopConfig(patience=2), [(160, 120), (30, 30)])
    crop = crops.crops[0]
    assert crops.crops[1] is None
    assert (crop.width, crop.height) == (32, 24)
    assert place_crop(0, 160, 120, 0.2) == crop
    rendered = torch.rand(120, 160, 3, requires_grad=True)
    photo = torch.rand(120, 160, 3)
    (crops.hide(0, rendered, photo) - photo).abs().sum().backward()
    assert not crop.of(rendered.grad).any()
    assert int((rendered.grad != 0).any(-1).sum()) == 120 * 160 - 32 * 24
    assert crops.hide(1, rendered, photo) is rendered
    module = torch.nn.Linear(1, 1)
    verdicts = []
    for step, loss in enumerate((0.9, 0.4, 0.5, 0.46, 0.49, 0.5)):
        torch.nn.init.constant_(module.weight, step)
        verdicts.append(crops.look(step, loss, module))
    assert verdicts == [False, False, False, False, False, True]
    assert [step + 1 for step in range(160) if crops.due(step)] == [12, 25, 50, 100, 150]
    crops.restore(module)
    assert (crops.kept_step, float(module.weight)) == (3, 3.0), "an eighth of the fall is no harm, a fifth is"


def test_crops_that_never_improve_stop_the_training_early():
    """With poor cameras the first looks are the best; nothing has fallen, so little may rise: less than a twentieth."""
    crops, module = HeldCrops(EarlyStopConfig(patience=3), [(160, 120)]), torch.nn.Linear(1, 1)
    assert [crops.look(step, loss, module) for step, loss in enumerate((0.53, 0.54, 0.56, 0.565, 0.57))][-1]
    assert crops.kept_step == 1


def test_crops_that_stay_as_they_are_stop_nothing():
    """As with three photographs, whose crops no other one shows."""
    crops, module = HeldCrops(EarlyStopConfig(patience=3), [(160, 120)]), torch.nn.Linear(1, 1)
    assert not any(crops.look(step, 0.35 + 0.01 * (step % 2), module) for step in range(12))
    assert crops.kept_step == 11


def test_the_average_of_the_last_steps_is_shown_and_kept():
    """Steps that go to and fro average out; a changed set begins anew; without a step there is nothing to keep."""
    params = ParameterDict({"means": Parameter(torch.full((3, 3), 5.0))})
    average = RunningAverage(0.99)
    average.keep(params)
    assert params["means"].eq(5).all()
    for step in range(400):
        params["means"].data = torch.full((3, 3), 1.0 + (-1) ** step)
        average.take(params)
    with average.shown(params):
        assert (params["means"] - 1).abs().max() < 0.02
    assert params["means"].eq(0).all()
    average.forget()
    params["means"] = Parameter(torch.full((4, 3), 7.0))
    average.take(params)
    average.keep(params)
    assert params["means"].shape == (4, 3)
    assert (params["means"] - 7).abs().max() < 1e-5


def test_the_average_is_what_a_training_ends_with():
    """Also where no crops are held out."""
    params = ParameterDict({"means": Parameter(torch.zeros(2, 3))})
    average = RunningAverage(0.99)
    for value in (1.0, 3.0):
        params["means"].data = torch.full((2, 3), value)
        average.take(params)
    splats = SimpleNamespace(average=average, gauss_params=params, held_crops=None)
    trainer = SimpleNamespace(progress=Progress(2), last_step=1, stop_training=False)
    Lora3DPipeline._end_in_time(SimpleNamespace(_splats=splats), 0, trainer)
    assert params["means"].eq(3).all()
    Lora3DPipeline._end_in_time(SimpleNamespace(_splats=splats), 1, trainer)
    assert ((params["means"] > 1) & (params["means"] < 3)).all()


def test_gaussians_are_left_out_only_where_photographs_are_few():
    """A share of them, made up for by the others; what is left out has no gradient."""
    assert [usual_share(count) for count in (1, 3, 5, 7, 12)] == [0.3, 0.3, 0.15, 0.0, 0.0]
    opacities = torch.full((10_000,), 0.2, requires_grad=True)
    assert some_left_out(opacities, 0.0) is opacities
    seen = some_left_out(opacities, 0.25)
    seen.sum().backward()
    gone = seen == 0
    assert 0.22 < gone.float().mean() < 0.28
    assert abs(float(seen.mean()) - 0.2) < 0.01
    assert not opacities.grad[gone].any()
    assert opacities.grad[~gone].all()


def test_a_cropped_camera_sees_the_crop():
    """Rays of the crop's pixels are those of the whole picture's."""
    whole, crop = cameras()[3:4], Crop(10, 7, 20, 16)
    part = crop_camera(whole, crop)
    rays, cut = whole.generate_rays(0).directions, part.generate_rays(0).directions
    assert torch.allclose(crop.of(rays), cut, atol=1e-6)


def test_copies_look_like_the_original():
    """Through the centre n coincident copies let as much light pass as one; their integrals along a ray agree."""
    opacity, scale = torch.tensor([0.9, 0.5, 0.2]).double(), torch.full((3, 3), 0.1).double()
    for copies in (1, 2, 7):
        shared, smaller = share_between_copies(opacity, scale, torch.full((3,), copies))
        assert torch.allclose(1 - (1 - shared) ** copies, opacity)
        x = torch.linspace(-1, 1, 4001).double()

        def blocked(strength: torch.Tensor, width: torch.Tensor, count: int, x: torch.Tensor = x) -> torch.Tensor:
            alpha = strength[:, None] * torch.exp(-0.5 * (x / width[:, :1]) ** 2)
            return (1 - (1 - alpha) ** count).sum(1)

        assert torch.allclose(blocked(shared, smaller, copies), blocked(opacity, scale, 1), rtol=1e-3)


def gaussians(count: int = 50) -> tuple[ParameterDict, dict]:
    """Random parameters with Adam states, as nerfstudio holds them."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"means": 3, "scales": 3, "quats": 4, "features_dc": 3, "opacities": 1}
    params = ParameterDict({k: Parameter(torch.randn(count, n, generator=generator)) for k, n in sizes.items()})
    optimizers = {name: torch.optim.Adam([value], lr=1e-3) for name, value in params.items()}
    sum(value.square().sum() for value in params.values()).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return params, optimizers


def test_transparent_gaussians_move_and_new_ones_come():
    """Afterwards none is nearly transparent, the optimisers hold the new parameters and go on stepping.

    As in a training, something (what the rasteriser told of the last picture) still holds the graph of an earlier step.
    """
    params, optimizers = gaussians()
    with torch.no_grad():
        params["opacities"][:10] = -9.0
    held = {name: value.exp() for name, value in params.items()}
    assert relocate(params, optimizers, 0.005) == 10
    assert (params["opacities"].sigmoid() > 0.005).all()
    originals = grow(params, optimizers, 5, 0.005)
    assert torch.equal(params["means"][50:], params["means"][originals])
    sum(value.exp().square().sum() for value in params.values()).backward()
    for name, optimizer in optimizers.items():
        assert held[name].requires_grad
        assert params[name] is optimizer.param_groups[0]["params"][0]
        assert list(optimizer.state) == [params[name]]
        assert optimizer.state[params[name]]["exp_avg"].shape == (55, *params[name].shape[1:])
        optimizer.step()
    explore(params, 0.1)
    assert params["means"].isfinite().all()


def test_chance_follows_opacity_and_noise_transparency():
    """Opaque ones are drawn in proportion; only transparent ones are shaken, along their own axes."""
    torch.manual_seed(0)
    drawn = draw_by_opacity(torch.tensor([0.0, 0.25, 0.75]), 4000)
    assert torch.bincount(drawn, minlength=3)[0] == 0
    assert torch.bincount(drawn, minlength=3)[2] == pytest.approx(3000, abs=150)
    scale = torch.tensor([[1.0, 1e-3, 1e-3]]).repeat(400, 1)
    unturned = torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1)
    moves = exploration_noise(torch.full((400,), 0.001), scale, unturned, 1.0)
    assert moves[:, 0].std() > 100 * moves[:, 1].std()
    assert exploration_noise(torch.full((400,), 0.9), scale, unturned, 1.0).abs().max() < 1e-20


def test_depth_prior_agrees_with_the_true_depth():
    """The true depth of the picture costs next to nothing, twice the depth log 2; doubtful pixels weigh less."""
    import numpy as np

    depth, _ = look(camera_pose(1))
    larger, _ = look(camera_pose(1), 2 * WIDTH, 2 * HEIGHT, 2 * FOCAL)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    view = View("a", Path("a"), 4 * WIDTH, 4 * HEIGHT, image, PixelAffine(0.25, 0.25, 0.0, 0.0), "d")
    photograph = PreparedPhotograph(Path("a"), 2 * WIDTH, 2 * HEIGHT, 0.5, 0.5)
    confidence = torch.full(depth.shape, 2.0)
    confidence[:, : WIDTH // 2] = 0.0
    prior = depth_prior(view, photograph, depth, confidence, 3.0)
    assert prior.weight.unique().tolist() == [0.0, 1.0]
    assert float(depth_loss(3.0 * larger[..., None], prior)) < 2e-3
    assert float(depth_loss(6.0 * larger[..., None], prior)) == pytest.approx(0.6931, abs=2e-3)


def test_opacity_follows_trust():
    """Between the two ends by confidence; equal confidence is full trust."""
    opacity = initial_opacity(torch.linspace(0, 1, 101), 0.1, 0.9)
    assert opacity.shape == (101, 1)
    assert (float(opacity[0]), float(opacity[-1])) == pytest.approx((0.1, 0.9))
    assert (opacity.diff(dim=0) >= 0).all()
    assert initial_opacity(torch.ones(4), 0.1, 0.9).unique().tolist() == pytest.approx([0.9])


def test_unfinished_runs_of_the_same_command_are_found(tmp_path: Path):
    """The newest checkpoint of a run with the same settings and without scores; never another command's."""

    def make(name: str, settings: str, steps: tuple[int, ...], finished: bool = False) -> Path:
        run = tmp_path / name
        (run / "models").mkdir(parents=True)
        (run / "config.yml").write_text(f"timestamp: {name}\n{settings}\n")
        for step in steps:
            (run / "models" / f"step-{step:09d}.ckpt").write_text("x")
        if finished:
            (run / "metrics.json").write_text("{}")
        return run

    make("1", "a: 1", (5, 9), finished=True)
    make("2", "a: 2", (20,))
    own = make("4", "a: 1", ())
    assert unfinished_checkpoint(own, "models") is None
    make("3", "a: 1", (7,))
    assert unfinished_checkpoint(own, "models") == tmp_path / "3" / "models" / "step-000000007.ckpt"
    assert unfinished_checkpoint(tmp_path / "none", "models") is None


def test_instantsplats_split():
    """The published indices of its 24 photographs."""
    tests = [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert instantsplat_split(24, 3) == ([0, 11, 23], tests)
    assert instantsplat_split(24, 6) == ([0, 5, 9, 13, 17, 23], tests)
    assert instantsplat_split(24, 12) == ([0, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23], tests)
    with pytest.raises(InputError, match="train_views"):
        instantsplat_split(10, 3)


def test_variants_have_names_of_their_own():
    """Every entry point names a variant, each variant its own method, and they differ where they say."""
    import re

    from method_configs import lora3d_splat as methods

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    entries = dict(re.findall(r'^(lora3d-splat[\w-]*) = "method_configs\.lora3d_splat:(\w+)"$', text, re.MULTILINE))
    assert set(entries.values()) == set(methods.VARIANTS)
    configs = {name: getattr(methods, variable).config for name, variable in entries.items()}
    assert all(config.method_name == name for name, config in configs.items())
    assert configs["lora3d-splat-long"].pipeline.model.densify.enabled
    assert not configs["lora3d-splat"].pipeline.model.densify.enabled
    plain = configs["lora3d-splat-baseline"].pipeline.datamanager.dataparser.calibration
    assert (plain.adapt, plain.alignment.robust) == ("none", "none")
    assert configs["lora3d-splat-fast"].max_num_iterations < configs["lora3d-splat"].max_num_iterations


def test_a_video_names_the_experiment(tmp_path: Path):
    """nerfstudio would name the folder that it lies in."""
    from method_configs.lora3d_splat import VARIANTS

    video = tmp_path / "walk.mp4"
    video.write_bytes(b"")
    for data, given, name in ((video, None, "walk"), (tmp_path, None, tmp_path.stem), (video, "mine", "mine")):
        config = replace(VARIANTS["lora3d_splat"][0](), experiment_name=given)
        config.pipeline.datamanager.data = data
        config.set_experiment_name()
        assert config.experiment_name == name


def test_ctrl_c_is_one_sentence_and_a_status(capsys):
    """nerfstudio would print a traceback."""
    with pytest.raises(SystemExit) as ended, ending_on_interrupt():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "the same command goes on from there" in " ".join(capsys.readouterr().out.split())
