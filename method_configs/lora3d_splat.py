"""The nerfstudio method `lora3d-splat`.

nerfstudio loads every plugin's entry point before it does anything, outside of any error handling. So importing this
module imports nothing; the specification is built when it is asked for, from classes that pull in neither networks nor
compiled kernels.
"""

from __future__ import annotations

from typing import Any


def _specification() -> Any:
    from nerfstudio.configs.base_config import ViewerConfig
    from nerfstudio.plugins.types import MethodSpecification

    from lora3d_splat.plugin.datamanager import Lora3DDatamanagerConfig
    from lora3d_splat.plugin.dataparser import Lora3DDataParserConfig
    from lora3d_splat.plugin.model import Lora3DSplatModelConfig
    from lora3d_splat.plugin.optimisation import splat_optimizers
    from lora3d_splat.plugin.pipeline import Lora3DPipeline, Lora3DPipelineConfig
    from lora3d_splat.plugin.trainer import Lora3DTrainerConfig
    from viewer_ext.panel import CalibrationPanel

    Lora3DPipeline.panels = (CalibrationPanel,)
    return MethodSpecification(
        config=Lora3DTrainerConfig(
            method_name="lora3d-splat",
            max_num_iterations=1000,
            steps_per_save=1000,
            steps_per_eval_batch=0,
            steps_per_eval_image=250,
            steps_per_eval_all_images=0,
            pipeline=Lora3DPipelineConfig(
                datamanager=Lora3DDatamanagerConfig(dataparser=Lora3DDataParserConfig(), cache_images_type="uint8"),
                model=Lora3DSplatModelConfig(),
            ),
            optimizers=splat_optimizers(),
            viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
            vis="viewer",
        ),
        description="Unposed photographs to a scored splat (LoRA3D calibration).",
    )


def __getattr__(name: str) -> Any:
    if name != "lora3d_splat":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    specification = globals()[name] = _specification()
    return specification
