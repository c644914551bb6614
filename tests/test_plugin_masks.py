"""Masks in the plugin: what they hide neither trains nor counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nerfstudio")

from plugin_run import run_config, train
from plugin_scene import HEIGHT, WIDTH, fake_self_calibration, write_photographs

HIDDEN = (slice(8, 24), slice(30, 50))
"""rows and columns that somebody's finger covers"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same thirty steps on photographs with and without a red finger, which masks hide."""
    trained = {}
    for name in ("clean", "finger"):
        folder = tmp_path_factory.mktemp(name)
        photos = write_photographs(folder / "photos", 8)
        (photos / "masks").mkdir()
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[HIDDEN] = 0
        for path in sorted(photos.glob("*.png")):
            if name == "finger":
                pixels = np.array(Image.open(path))
                pixels[HIDDEN] = (255, 0, 0)
                Image.fromarray(pixels).save(path)
            Image.fromarray(mask).save(photos / "masks" / path.name)
        with pytest.MonkeyPatch.context() as patch:
            fake_self_calibration(patch, folder / "calibration")
            config = run_config(folder)
            config.pipeline.model.confidence_rates = False
            trained[name] = train(config)
    return trained


def test_dataset_carries_masks_of_its_size(runs):
    """nerfstudio's dataset has a mask for every photograph, black where the file is."""
    dataset = runs["finger"].pipeline.datamanager.train_dataset
    mask = dataset[0]["mask"]
    assert tuple(mask.shape) == (HEIGHT, WIDTH, 1)
    assert not bool(mask[HIDDEN].any())
    assert int(mask.sum()) == HEIGHT * WIDTH - mask[HIDDEN].numel()


def test_hidden_pixels_have_no_gradient(runs):
    """The loss moves no rendered pixel under the mask."""
    model, manager = runs["finger"].pipeline.model, runs["finger"].pipeline.datamanager
    model.train()
    camera, batch = manager.next_train(0)
    outputs = model.get_outputs(camera)
    outputs["rgb"].retain_grad()
    model.get_loss_dict(outputs, batch)["main_loss"].backward()
    gradient = outputs["rgb"].grad.abs().sum(-1)
    assert float(gradient[HIDDEN].max()) == 0
    assert float(gradient.max()) > 0


def test_a_hidden_finger_costs_nothing(runs):
    """Scores under masks do not know of the finger: as good as without it, but for the seeds' own colours."""
    means = {
        name: json.loads((trainer.base_dir / "metrics.json").read_text())["mean"] for name, trainer in runs.items()
    }
    assert means["finger"]["psnr"] > 22
    assert means["finger"]["psnr"] == pytest.approx(means["clean"]["psnr"], abs=1.5)
    assert means["finger"]["ssim"] == pytest.approx(means["clean"]["ssim"], abs=0.05)


def test_without_masks_there_are_none(tmp_path, monkeypatch):
    """A set without masks loads none."""
    from lora3d_splat.plugin.dataparser import Lora3DDataParserConfig
    from lora3d_splat.self_calibration import CalibrationConfig

    write_photographs(tmp_path / "photos", 4)
    fake_self_calibration(monkeypatch, tmp_path / "calibration")
    settings = CalibrationConfig(cache=tmp_path / "cache")
    parser = Lora3DDataParserConfig(data=tmp_path / "photos", calibration=settings).setup()
    assert parser.get_dataparser_outputs("train").mask_filenames is None
    assert torch.is_tensor(parser.get_dataparser_outputs("train").cameras.fx)
