"""The nerfstudio dataparser `lora3d-data`, usable by every method.

It lives apart from the method: nerfstudio discovers dataparsers while its own configuration is still importing, and
whatever imports the trainer, the pipelines or the datamanagers at that time makes a circle that kills every command.
"""

from __future__ import annotations

from typing import Any


def _specification() -> Any:
    from nerfstudio.plugins.registry_dataparser import DataParserSpecification

    from lora3d_splat.plugin.dataparser import Lora3DDataParserConfig

    return DataParserSpecification(Lora3DDataParserConfig(), "Unposed photographs, self-calibrated (LoRA3D).")


def __getattr__(name: str) -> Any:
    if name != "lora3d_data":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    specification = globals()[name] = _specification()
    return specification
