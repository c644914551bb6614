"""Small pictures for the report: maps in false colours, and images as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

PALETTE = np.array(
    [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
     [170, 220, 50], [253, 231, 37]], dtype=np.float64,
)  # fmt: skip
"""Nine stops from dark violet over green to yellow, evenly rising in lightness."""


def false_colours(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """(H, W) numbers as (H, W, 3) uint8; low and high default to the 2nd and 98th percentile; non-finite is black."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros((*values.shape, 3), np.uint8)
    low = float(np.percentile(values[finite], 2)) if low is None else low
    high = float(np.percentile(values[finite], 98)) if high is None else high
    place = np.clip((np.where(finite, values, low) - low) / max(high - low, 1e-12), 0, 1) * (len(PALETTE) - 1)
    stops = np.arange(len(PALETTE))
    rgb = np.stack([np.interp(place, stops, PALETTE[:, channel]) for channel in range(3)], axis=-1)
    return (rgb * finite[..., None]).round().astype(np.uint8)


def data_uri(rgb: np.ndarray, long_side: int = 240) -> str:
    """(H, W, 3) uint8 as a JPEG data URI no larger than `long_side`."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((long_side, long_side))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
