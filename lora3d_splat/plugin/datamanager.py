"""Whole photographs in memory, and a dataparser that knows what run it works for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Type  # noqa: UP035

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader

from lora3d_splat.plugin.context import RunContext, running


@dataclass
class Lora3DDatamanagerConfig(FullImageDatamanagerConfig):
    """Keeps all photographs in memory."""

    _target: Type = field(default_factory=lambda: Lora3DDatamanager)  # noqa: UP006
    """target class to instantiate"""


class _SpiralShim(VanillaDataManager):
    """`ns-render spiral` insists on a ray-based datamanager of which it uses the evaluation loader alone."""

    def __init__(self) -> None:
        DataManager.__init__(self)


class Lora3DDatamanager(FullImageDatamanager[InputDataset], _SpiralShim):
    """nerfstudio's full-image datamanager, usable without CUDA and by every render command."""

    config: Lora3DDatamanagerConfig

    def __init__(
        self,
        config: Lora3DDatamanagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        # The Trainer alone uses "val".
        with running(RunContext(torch.device(device).type, training=test_mode == "val")):
            super().__init__(config, device=device, test_mode=test_mode, **kwargs)

    def _load_images(self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]) -> Any:
        # "cpu" means pinned memory, which needs CUDA; "gpu" means the device, whatever it is.
        on_cpu = torch.device(self.device).type == "cpu"
        return super()._load_images(split, "gpu" if on_cpu else cache_images_device)

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Evaluation views one by one; a cached property, so that the viewer's scan does not load them."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device, num_workers=0)
