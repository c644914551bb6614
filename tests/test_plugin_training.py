"""nerfstudio end to end on a tiny true calibration: train, score, load, resume, and what a run leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("nerfstudio")

from plugin_run import STEPS, run_config, train
from plugin_scene import camera_pose, fake_self_calibration, write_photographs

from lora3d_splat.errors import InputError
from lora3d_splat.export.scene_json import read_scene_json
from lora3d_splat.export.splat import read_splat_ply
from lora3d_splat.geometry.transforms import se3_exp
from lora3d_splat.plugin.camera_poses import BAKED, train_view
from lora3d_splat.plugin.context import RunContext, running
from lora3d_splat.plugin.dataparser import place_scene
from lora3d_splat.plugin.model import position_rate, view_matrix

PERTURBATION = se3_exp(torch.tensor([0.03, -0.02, 0.02, 0.01, -0.012, 0.008], dtype=torch.float64))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished training of 30 steps on seven views of 64 x 48, one held out with a perturbed camera."""
    folder = tmp_path_factory.mktemp("run")
    write_photographs(folder / "photos", 8)
    with pytest.MonkeyPatch.context() as patch:
        fake_self_calibration(patch, folder / "calibration", PERTURBATION)
        trainer = train(run_config(folder))
        yield trainer


def base(trainer) -> Path:
    return trainer.base_dir


def test_scores_file(run):
    """metrics.json: strict JSON with protocol, means, views, seconds, memory; null never without its reason."""
    scores = json.loads((base(run) / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert list(scores) == [
        "protocol",
        "mean",
        "mean_aligned",
        "mean_half_image",
        "views",
        "seconds",
        "peak_memory_bytes",
    ]
    assert scores["protocol"]["scored"] == "held-out views"
    assert [view["file"] for view in scores["views"]] == ["000.png"]
    for means in (scores["mean"], scores["mean_aligned"], scores["mean_half_image"]):
        for name in ("psnr", "ssim", "lpips_alex", "lpips_vgg"):
            assert means[name] is not None or means[f"{name}_reason"]
    assert scores["mean"]["lpips_alex"] is None
    assert {"training", "scoring", "seed points", "held-out views"} <= set(scores["seconds"])
    assert scores["peak_memory_bytes"]["cpu"] > 1e8


def test_pose_alignment_gains_what_the_camera_was_off(run):
    """A held-out camera moved by about a degree scores better after alignment; the picture is a good one."""
    scores = json.loads((base(run) / "metrics.json").read_text())
    assert scores["mean_aligned"]["psnr"] > scores["mean"]["psnr"] + 1.0
    assert scores["mean_aligned"]["psnr"] > 20.0
    assert scores["mean"]["psnr"] < scores["mean_half_image"]["psnr"] < scores["mean_aligned"]["psnr"] + 0.5


def test_run_files(run):
    """Splat, cameras, comparison and calibration lie in the run's folder; splat and cameras share the true world."""
    splat = read_splat_ply(base(run) / "splat.ply")
    assert len(splat.means) == run.pipeline.model.num_points
    on_planes = torch.from_numpy(splat.means.copy()).abs().amin(dim=1)
    assert on_planes.median() < 0.02
    _, cameras = read_scene_json(base(run) / "cameras.json")
    assert [camera.file for camera in cameras] == [*(f"{i:03d}.png" for i in range(1, 8)), "000.png"]
    for index, camera in zip([*range(1, 8), 0], cameras, strict=True):
        assert torch.allclose(torch.from_numpy(camera.T_world_camera), camera_pose(index), atol=0.06)
    assert (base(run) / "comparisons" / "000.png").is_file()
    assert (base(run) / "calibration" / "scene.json").is_file()


def test_training_lowered_the_loss(run):
    """Thirty steps leave a training view closer to its photograph than the seeds were."""
    from lora3d_splat.metrics.image import psnr

    model, manager = run.pipeline.model.eval(), run.pipeline.datamanager
    camera, batch = manager.next_train(0)
    photo = model.get_gt_img(batch["image"])
    with torch.no_grad():
        after = psnr(model.get_outputs(camera)["rgb"], photo)
        seeds = manager.train_dataset.metadata
        seeded = run.config.pipeline.model.setup(
            scene_box=None,
            num_train_data=len(manager.train_dataset),
            metadata=seeds,
            seed_points=(seeds["points3D_xyz"], seeds["points3D_rgb"]),
        ).eval()
        before = psnr(seeded.get_outputs(camera)["rgb"], photo)
    assert after > before + 2.0


def test_exported_transforms_train_with_nerfstudios_dataparser(run, tmp_path):
    """Cameras as nerfstudio reads them, points as plyfile does: they fit, and steps lower the loss."""
    from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from lora3d_splat.run_export import export_source

    export_source(base(run), tmp_path, ("transforms",))
    parser = NerfstudioDataParserConfig(data=tmp_path, eval_mode="all", downscale_factor=1)
    manager = FullImageDatamanagerConfig(dataparser=parser, cache_images="gpu").setup(device="cpu")
    # nerfstudio reads points through open3d, which not every machine can import; the similarity is the dataparser's.
    outputs = manager.train_dataparser_outputs
    vertices = pytest.importorskip("plyfile").PlyData.read(str(tmp_path / "seed.ply"))["vertex"]
    points = torch.tensor(np.stack([vertices[axis] for axis in "xyz"], 1)).float()
    rgb = torch.tensor(np.stack([vertices[name] for name in ("red", "green", "blue")], 1))
    transform = outputs.dataparser_transform
    points = (points @ transform[:, :3].T + transform[:, 3]) * outputs.dataparser_scale
    assert len(points) == run.pipeline.model.num_points
    model = run.config.pipeline.model.setup(
        scene_box=None, num_train_data=len(manager.train_dataset), metadata={}, seed_points=(points, rgb)
    )
    optimizer = torch.optim.Adam([model.gauss_params[name] for name in ("features_dc", "opacities", "scales")], 0.02)
    losses = []
    for step in range(21):
        camera, batch = manager.next_train(step)
        loss = sum(model.get_loss_dict(model.get_outputs(camera), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-7:]) < 0.8 * sum(losses[:7])


def test_another_dataparser_is_refused_in_one_sentence(run, tmp_path):
    """A dataset that nothing calibrates has no scene to report on."""
    from dataclasses import replace

    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from lora3d_splat.errors import InputError
    from lora3d_splat.run_export import export_source

    export_source(base(run), tmp_path, ("transforms",))
    parser = NerfstudioDataParserConfig(data=tmp_path, eval_mode="all", downscale_factor=1)
    config = replace(
        run.config.pipeline, datamanager=replace(run.config.pipeline.datamanager, data=None, dataparser=parser)
    )
    with pytest.raises(InputError, match="lora3d-data"):
        config.setup(device="cpu", test_mode="test")


def test_checkpoint_is_plain_and_small(run):
    """torch's safe loader takes it, and neither LPIPS nor pointmap networks are in it."""
    path = next(run.checkpoint_dir.glob("*.ckpt"))
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert {key.split(".")[1] for key in state["pipeline"] if key.startswith("_model.")} == {
        "gauss_params",
        "camera_optimizer",
        "position_rate",
        "device_indicator_param",
    }


def test_config_survives_yaml(run):
    """config.yml loads with importable names alone and says the same again."""
    text = (base(run) / "config.yml").read_text()
    loaded = yaml.load(text, Loader=yaml.Loader)
    stored, given = (config.pipeline.datamanager.dataparser.calibration for config in (loaded, run.config))
    assert stored == given
    assert yaml.dump(loaded) == text
    assert "<lambda>" not in text


def test_loading_for_the_tools(run):
    """ns-eval's way: another process type gets the same scores, and training cameras carry their optimised poses."""
    config = yaml.load((base(run) / "config.yml").read_text(), Loader=yaml.Loader)
    pipeline = config.pipeline.setup(device=torch.device("cpu"), test_mode="test")
    pipeline.eval()
    state = torch.load(next(run.checkpoint_dir.glob("*.ckpt")), map_location="cpu")
    pipeline.load_pipeline(state["pipeline"], state["step"])
    results = pipeline.get_average_eval_image_metrics(get_std=True)
    scores = json.loads((base(run) / "metrics.json").read_text())
    assert results["psnr"] == pytest.approx(scores["mean"]["psnr"], abs=1e-3)
    assert results["psnr_aligned"] == pytest.approx(scores["mean_aligned"]["psnr"], abs=0.2)
    assert "lpips_alex" not in results
    baked = pipeline.datamanager.train_dataset.cameras
    raw = run.pipeline.datamanager.train_dataset.cameras
    moved = (baked.camera_to_worlds - raw.camera_to_worlds).abs().amax()
    assert 1e-5 < moved < 0.1
    # A fresh dataset's camera, not baked, renders from the same place: its index leads to the correction.
    assert train_view(raw[2:3]) == 2
    assert train_view(baked[2:3]) == BAKED
    direct, indexed = pipeline.model.get_outputs(baked[2:3])["rgb"], pipeline.model.get_outputs(raw[2:3])["rgb"]
    assert torch.allclose(direct, indexed, atol=1e-5)


def uncalibrated(*_: object) -> None:
    raise AssertionError("nothing should be calibrated")


def test_a_finished_run_needs_no_cache(run, monkeypatch):
    """The tools take the calibration of the run's own folder, and so the cameras that were trained."""
    monkeypatch.setattr("lora3d_splat.self_calibration.calibrate", uncalibrated)
    config = yaml.load((base(run) / "config.yml").read_text(), Loader=yaml.Loader)
    pipeline = config.pipeline.setup(device=torch.device("cpu"), test_mode="test")
    found, trained = (each.datamanager.train_dataset.cameras for each in (pipeline, run.pipeline))
    assert torch.equal(found.camera_to_worlds, trained.camera_to_worlds)
    assert torch.equal(found.fx, trained.fx)


def test_a_named_calibration_must_fit(run, tmp_path, monkeypatch):
    """A training refuses a folder without one, and one of other photographs; tools calibrate again and say why."""
    data = run.config.pipeline.datamanager.dataparser
    write_photographs(tmp_path / "fewer", 4)
    missing = replace(data, calibrated=tmp_path / "nowhere")
    other = replace(data, calibrated=base(run) / "calibration", data=tmp_path / "fewer")
    for config, words in ((missing, "nowhere"), (other, "no training photograph here")):
        with running(RunContext("cpu", training=True)), pytest.raises(InputError, match=words):
            place_scene(config)
    with running(RunContext("cpu")):
        assert place_scene(missing).calibration.views
    monkeypatch.setattr("lora3d_splat.self_calibration.calibrate", uncalibrated)
    with running(RunContext("cpu", training=True)):
        assert place_scene(replace(data, calibrated=base(run) / "calibration")).train


def test_resume_moves_the_gaussians(run, tmp_path):
    """--load-dir goes on from the checkpoint: optimisers hold the model's own parameters and means move."""
    folder = base(run).parents[3]
    config = run_config(folder, load_dir=run.checkpoint_dir, max_num_iterations=3, output_dir=tmp_path)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    model = trainer.pipeline.model
    assert trainer.optimizers.optimizers["means"].param_groups[0]["params"][0] is model.gauss_params["means"]
    before = model.means.detach().clone()
    assert torch.equal(before, run.pipeline.model.means)
    trainer.train()
    assert trainer.step == STEPS + 2
    assert (model.means - before).abs().max() > 0


def test_spiral_and_viewer_parts(run):
    """The spiral renderer's evaluation loader, and the panel's text."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

    manager = run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    camera, _ = manager.eval_dataloader.get_camera(image_idx=0)
    assert int(camera.width) == 64
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerControl

    from viewer_ext.panel import CalibrationPanel
    from viewer_ext.panel_text import calibration_text, psnr_text

    found = [element for _, element in parse_object(run.pipeline, ViewerControl, "pipeline")]
    assert [type(element) for element in found] == [CalibrationPanel]
    assert "network `true`" in calibration_text(manager.dataparser.scene.calibration)
    text = psnr_text(run.pipeline.training_log, lambda: None)
    assert f"step {STEPS - 1}" in text
    assert "held-out views" in text


def test_doubtful_points_move_faster():
    """Rates fall from 27.6 at raw confidence 1 to nearly 1 at 10 (InstantSplat's rule)."""
    rates = position_rate(torch.tensor([1.0, 2.0, 10.0]).log(), True)[:, 0]
    assert rates.tolist() == pytest.approx([27.6, 12.8, 1.0], abs=0.1)
    assert position_rate(torch.zeros(3), False).unique().tolist() == [1.0]


def test_view_matrix_inverts_the_camera():
    """World to camera in OpenCV axes of an OpenGL camera."""
    from lora3d_splat.geometry.transforms import opencv_to_opengl

    pose = camera_pose(2)
    matrix = view_matrix(opencv_to_opengl(pose)[None, :3])[0]
    assert torch.allclose(matrix @ pose, torch.eye(4, dtype=torch.float64), atol=1e-12)
