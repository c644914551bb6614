"""The nerfstudio method `lora3d-splat` and its variants.

nerfstudio loads every plugin's entry point before it does anything, outside of any error handling. So importing this
module imports nothing; a specification is built when it is asked for, from classes that pull in neither networks nor
compiled kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any


def _default() -> Any:
    """The configuration that the variants start from."""
    from nerfstudio.configs.base_config import ViewerConfig

    from lora3d_splat.plugin.datamanager import Lora3DDatamanagerConfig
    from lora3d_splat.plugin.dataparser import Lora3DDataParserConfig
    from lora3d_splat.plugin.model import Lora3DSplatModelConfig
    from lora3d_splat.plugin.optimisation import splat_optimizers
    from lora3d_splat.plugin.pipeline import Lora3DPipelineConfig
    from lora3d_splat.plugin.trainer import Lora3DTrainerConfig

    return Lora3DTrainerConfig(
        method_name="lora3d-splat",
        max_num_iterations=1000,
        steps_per_save=250,
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
    )


def _fast() -> Any:
    """Plain predictions, fewer and smaller: a first look."""
    config = _with_data(_default(), calibration=lambda given: replace(given, adapt="none"), long_side=384)
    return replace(config, method_name="lora3d-splat-fast", max_num_iterations=300)


def _long() -> Any:
    """More steps, and Gaussians that multiply; their colours vary a little with the direction of view."""
    config = _default()
    model = config.pipeline.model
    model = replace(
        model,
        sh_degree=1,
        densify=replace(model.densify, enabled=True),
        early_stop=replace(model.early_stop, every=250),
    )
    return replace(
        config,
        method_name="lora3d-splat-long",
        max_num_iterations=3000,
        steps_per_save=500,
        pipeline=replace(config.pipeline, model=model),
    )


def _baseline() -> Any:
    """What self-calibration is compared with: the network's own confidence, no fine-tuning, no tracks."""

    def plain(given: Any) -> Any:
        alignment = replace(given.alignment, robust="none")
        return replace(given, adapt="none", tracks="off", sharpen_depth="off", alignment=alignment)

    return replace(_with_data(_default(), calibration=plain), method_name="lora3d-splat-baseline")


def _with_data(config: Any, calibration: Callable[[Any], Any], **changes: Any) -> Any:
    """The configuration with other settings of its dataparser."""
    manager = config.pipeline.datamanager
    parser = replace(manager.dataparser, calibration=calibration(manager.dataparser.calibration), **changes)
    return replace(config, pipeline=replace(config.pipeline, datamanager=replace(manager, dataparser=parser)))


VARIANTS: dict[str, tuple[Callable[[], Any], str]] = {
    "lora3d_splat": (_default, "Unposed photographs to a scored splat (LoRA3D calibration)."),
    "lora3d_splat_fast": (_fast, "lora3d-splat, a first look: no fine-tuning, 300 steps."),
    "lora3d_splat_long": (_long, "lora3d-splat, 3000 steps with MCMC densification."),
    "lora3d_splat_baseline": (_baseline, "lora3d-splat without self-calibration, to compare."),
}
"""What the entry points name: how its configuration is built, and nerfstudio's line about it."""


def _specification(name: str = "lora3d_splat") -> Any:
    from nerfstudio.plugins.types import MethodSpecification

    from lora3d_splat.plugin.pipeline import Lora3DPipeline
    from viewer_ext.panel import CalibrationPanel

    Lora3DPipeline.panels = (CalibrationPanel,)
    build, description = VARIANTS[name]
    return MethodSpecification(config=build(), description=description)


def __getattr__(name: str) -> Any:
    if name not in VARIANTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    specification = globals()[name] = _specification(name)
    return specification
