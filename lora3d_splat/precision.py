"""In which arithmetic a network's trunk runs: bfloat16 where the hardware multiplies it faster, else float32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from lora3d_splat.hardware import cpu_flags

Precision = Literal["float32", "bfloat16"]

CPU_FLAGS = ("amx_bf16", "avx512_bf16")
"""Processors that multiply bfloat16 faster than float32."""
LARGE_PARAMETERS = 50_000_000
"""Below this, converting between the two costs more than the faster products save."""


def choose_precision(asked: Literal["auto", "float32", "bfloat16"], network: nn.Module) -> Precision:
    """What "auto" means for a network on its device; the other two mean themselves."""
    if asked != "auto":
        return asked
    parameters = list(network.parameters())
    large = sum(parameter.numel() for parameter in parameters) >= LARGE_PARAMETERS
    return "bfloat16" if large and has_bfloat16(parameters[0].device) else "float32"


def training_precision(asked: Literal["auto", "float32", "bfloat16"], network: nn.Module) -> Precision:
    """The same for fine-tuning, where "auto" is float32 on every CPU: results must not depend on its make."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    return "float32" if asked == "auto" and on_cpu else choose_precision(asked, network)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions of its own for products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not cpu_flags().isdisjoint(CPU_FLAGS)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Inside it matrix products run in `precision`; networks keep their heads in float32 by themselves."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)
