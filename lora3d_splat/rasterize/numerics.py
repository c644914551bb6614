"""What every compiled kernel shares: compiler settings, tile constants and a vectorisable exponential.

Kernels are written once for float32 (production) and float64 (gradient checks): numba specialises them by the dtype of
their arrays, and constants are brought to that dtype with ``real = array.dtype.type``. A bare ``0.5`` would silently
promote a float32 loop to float64 and halve its speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import types
from numba.extending import overload

TILE = 16
"""Edge of a tile in pixels; gsplat's default, and part of its rules because its tile lists cut splats off."""

PIXELS = TILE * TILE

ALPHA_MIN = 1.0 / 255.0
"""A splat contributes to a pixel only from this alpha on."""

TRANSMITTANCE_MIN = 1e-4
"""A pixel is finished before the splat that would bring its transmittance to this value or below."""

FAST = {"nnan", "nsz", "arcp", "contract", "afn", "reassoc"}
"""``ninf`` is left out on purpose; ``nnan`` is why non-finite inputs are rejected before these kernels run."""


def fast_kernel(function: Callable) -> Callable:
    """Compile a GIL-free kernel whose reductions may be reordered into vector lanes."""
    return numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")(function)


def inlined_kernel(function: Callable) -> Callable:
    """Compile a fast kernel into its callers: a call costs as much as the few vectors of a small splat."""
    return numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)(function)


def strict_kernel(function: Callable) -> Callable:
    """Compile a GIL-free kernel in which NaN and infinity keep their meaning."""
    return numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function)


def exp_of_negative(x: float) -> float:
    """exp(x) for -87 < x <= 0; inside float32 kernels free of library calls, so that loops around it vectorise."""
    return math.exp(x)


@overload(exp_of_negative, jit_options={"fastmath": FAST, "error_model": "numpy"})
def _exp_of_negative(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp_float32(x):
        # exp(x) = 2^k 2^f with |f| <= 1/2: minimax polynomial (relative error 8e-8), k in the exponent bits.
        scaled = x * np.float32(1.4426950408889634)
        whole = np.rint(scaled)
        part = scaled - whole
        power = np.float32(0.001327647203)
        power = power * part + np.float32(0.00967554148)
        power = power * part + np.float32(0.05550713275)
        power = power * part + np.float32(0.2402211972)
        power = power * part + np.float32(0.6931469671)
        power = power * part + np.float32(1.000000072)
        return power * np.int32((whole + np.float32(127.0)) * np.float32(8388608.0)).view(np.float32)

    return exp_float32
