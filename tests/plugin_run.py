"""Small trainings of the method on the scene of `plugin_scene`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lora3d_splat.metrics.heldout_pose import PoseAlignmentConfig
from lora3d_splat.self_calibration import CalibrationConfig

STEPS = 30


def run_config(folder: Path, **changes):
    """`ns-train lora3d-splat` with everything small."""
    from method_configs.lora3d_splat import _specification

    config = _specification().config
    dataparser = replace(config.pipeline.datamanager.dataparser, calibration=CalibrationConfig(cache=folder / "cache"))
    config.pipeline.datamanager.dataparser = dataparser
    config.pipeline.datamanager.data = folder / "photos"
    config.pipeline.model.lpips = "off"
    config.pipeline.heldout_pose = PoseAlignmentConfig(steps=40, levels=(1,))
    config.output_dir, config.timestamp, config.vis = folder / "outputs", "run", "tensorboard"
    config.max_num_iterations, config.machine.device_type = STEPS, "cpu"
    config.logging.local_writer.enable = False
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def train(config):
    """What ns-train does after parsing."""
    config.save_config()
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer
