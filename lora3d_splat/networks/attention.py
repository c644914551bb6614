"""Softmax attention, by whichever way is fastest where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lora3d_splat.hardware import cpu_flags


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d), (B, heads, M, d), (B, heads, M, d) -> (B, heads, N, d), with weights softmax(q k / sqrt d).

    Fused, but for bfloat16 on CPUs without AMX: their fused kernel takes twice the time of two matrix products.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and "amx_bf16" not in cpu_flags():
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
