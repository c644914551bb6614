"""Rendered rooms in which features mislead, of plain walls and of a repeated pattern; for `benchmarks/tracks.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lora3d_splat.synthetic.cameras import look_at
from lora3d_splat.synthetic.render import cast
from lora3d_splat.synthetic.textures import atlas
from lora3d_splat.synthetic.world import Look, World, WorldBuilder

WALLS = {"plain_walls": ("plain",), "repeated_walls": ("checks", "bricks")}
"""Scene name to the groups of textures on its walls."""
STYLE, SIZE, FOCAL, VIEWS = "heldout", (480, 640), 600.0, 6


def write_walls(folder: Path, name: str) -> None:
    """Write `folder`/`name`/scene.json and its photographs with their true cameras, laid out like other scenes."""
    world, frames = _room(WALLS[name]), []
    (folder / name / "images").mkdir(parents=True, exist_ok=True)
    for index, pose in enumerate(_cameras()):
        file = f"images/{index:03d}.png"
        Image.fromarray(cast(world, atlas(STYLE), pose, FOCAL, SIZE, everywhere=True)[0]).save(folder / name / file)
        frames.append({"file": file, "split": "train", "fx": FOCAL, "c2w": pose.tolist()})
    (folder / name / "scene.json").write_text(json.dumps({"frames": frames}))


def _room(groups: tuple[str, ...]) -> World:
    """A room with two boxes, all of a few textures that repeat three times a metre."""
    build = WorldBuilder(np.random.default_rng(5), atlas(STYLE))
    looks = [Look(int(atlas(STYLE).groups[group][2]), scale=3.0) for group in groups]
    build.box((0, 0.4, 1.4), (2.4, 2.4, 1.4), [looks[k % len(looks)] for k in range(6)])
    build.lamp((0.7, -0.9, 2.5), 3.2, 0.5)
    build.box((-0.6, 1.6, 0.5), (0.5, 0.3, 0.5), looks[0], 0.4)
    build.box((0.9, 1.9, 0.7), (0.4, 0.4, 0.7), looks[-1], -0.3)
    return build.finish()


def _cameras() -> np.ndarray:
    """T_world_camera (V, 4, 4) along an arc that looks at the far wall."""
    target = np.array([0.0, 2.0, 1.0])
    places = [
        (3.0 * np.sin(angle), 2.0 - 3.0 * np.cos(angle), 1.3) for angle in np.radians(np.linspace(-20, 20, VIEWS))
    ]
    return np.stack([look_at(np.array(place), target, 0.02 * index) for index, place in enumerate(places)])
