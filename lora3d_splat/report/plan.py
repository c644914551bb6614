"""The cameras from above and from the side, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Literal

import numpy as np

SIZE, MARGIN = 460.0, 40.0
Side = Literal["above", "the side"]


def camera_plan(
    T_world_camera: np.ndarray,
    names: list[str],
    points_world: np.ndarray,
    side: Side = "above",
    before: np.ndarray | None = None,
) -> str:
    """An SVG of camera wedges over the scene's points, seen along the cameras' mean down or sideways axis.

    `T_world_camera` (V, 4, 4) of the registered views, `points_world` (N, 3) a few hundred points to orient oneself,
    `before` (V, 4, 4) where the cameras were at first; NaN where a camera was nowhere.
    """
    right, up, back = display_axes(T_world_camera)
    to_plane = np.stack([right, back] if side == "above" else [-back, -up])
    centres, ahead = T_world_camera[:, :3, 3] @ to_plane.T, T_world_camera[:, :3, 2] @ to_plane.T
    ground = points_world @ to_plane.T
    were = np.empty((0, 2)) if before is None else before[np.isfinite(before).all(axis=(1, 2)), :3, 3] @ to_plane.T
    place = _to_picture(np.concatenate([centres, were]), ground)
    dots = "".join(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="1"/>' for x, y in place(ground))
    earlier = "" if before is None else _moves(place(before[:, :3, 3] @ to_plane.T), place(centres))
    wedges = "".join(_wedge(*args) for args in zip(place(centres), ahead, names, strict=True))
    label = f"{len(names)} cameras from {side}"
    picture = f'<svg viewBox="0 0 {SIZE:.0f} {SIZE:.0f}" role="img" aria-label="{label}">{dots}{earlier}{wedges}</svg>'
    return f'<figure class="plan"><figcaption>From {side}</figcaption>{picture}</figure>'


def display_axes(T_world_camera: np.ndarray) -> np.ndarray:
    """(3, 3) rows: to the cameras' right, up, and back towards whoever looks as the cameras do on average."""
    down = T_world_camera[:, :3, 1].mean(axis=0)
    down /= max(float(np.linalg.norm(down)), 1e-12)
    ahead = T_world_camera[:, :3, 2].mean(axis=0)
    ahead = ahead - down * (ahead @ down)
    if np.linalg.norm(ahead) < 1e-6:  # cameras all around: any direction will do
        ahead = np.cross(down, [1.0, 0.0, 0.0] if abs(down[0]) < 0.9 else [0.0, 0.0, 1.0])
    ahead = ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(down, ahead), -down, -ahead])


def _to_picture(centres: np.ndarray, ground: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The map from the plane to SVG coordinates that shows all cameras and most points."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    if len(ground):
        low = np.minimum(low, np.percentile(ground, 5, axis=0))
        high = np.maximum(high, np.percentile(ground, 95, axis=0))
    unit = (SIZE - 2 * MARGIN) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    return lambda xy: (xy - middle) * unit + SIZE / 2


def _moves(before: np.ndarray, after: np.ndarray) -> str:
    """A ring where a camera was, and the way from there to where it is."""
    return "".join(
        f'<line class="m" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'
        f'<circle class="m" cx="{x0:.1f}" cy="{y0:.1f}" r="4"/>'
        for (x0, y0), (x1, y1) in zip(before, after, strict=True)
        if np.isfinite([x0, y0]).all()
    )


def _wedge(centre: np.ndarray, ahead: np.ndarray, name: str) -> str:
    length = max(float(np.linalg.norm(ahead)), 1e-6)
    forward = ahead / length * 22
    side = np.array([-forward[1], forward[0]]) * 0.45
    corners = (centre, centre + forward + side, centre + forward - side)
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polygon class="c" points="{outline}"><title>{escape(name)}</title></polygon>'
