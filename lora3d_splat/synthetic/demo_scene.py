"""The example photographs: a table-top scene, antialiased, with known cameras.

python -m lora3d_splat.synthetic.demo_scene examples/tabletop
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lora3d_splat.console import note
from lora3d_splat.synthetic.cameras import look_at
from lora3d_splat.synthetic.raycast import CONE, CYLINDER, SPHERE
from lora3d_splat.synthetic.render import cast
from lora3d_splat.synthetic.textures import atlas
from lora3d_splat.synthetic.world import Look, World, WorldBuilder, turn

STYLE = "heldout"
"""the bundled network has never seen these textures"""
SIZE = (288, 384)
"""(height, width) of the photographs"""
VIEWS = 12
FOV = 55.0
"""degrees across the width"""


def demo_world() -> World:
    """A table with books, tins, a globe and boxes, in a room with a shelf and pictures. Metres, z up."""
    build = WorldBuilder(np.random.default_rng(3), atlas(STYLE))

    def look(group: str, number: int, scale: float, tint=(1.0, 1.0, 1.0), gloss: float = 0.0) -> Look:
        members = atlas(STYLE).groups[group]
        return Look(int(members[number % len(members)]), tint, scale, gloss)

    wall, floor = look("plain", 2, 0.4, (1.0, 0.97, 0.9)), look("wood", 1, 0.7)
    build.box((0, 0.4, 1.4), (2.4, 2.4, 1.4), [wall, wall, look("bricks", 1, 0.5), wall, floor, wall])
    build.lamp((0.7, -0.9, 2.5), 3.2, 0.5)
    build.box((0, 0, 0.70), (0.75, 0.5, 0.02), look("wood", 3, 0.9, (1.1, 1.05, 1.0)), 0.1)
    for sx in (-0.66, 0.66):
        for sy in (-0.42, 0.42):
            build.box((sx, sy, 0.34), (0.03, 0.03, 0.34), look("wood", 3, 0.9), 0.1)
    top = 0.72
    build.box((-0.36, 0.16, top + 0.15), (0.12, 0.09, 0.15), look("clutter", 2, 3.0), 0.5)
    build.box((-0.10, 0.27, top + 0.10), (0.10, 0.07, 0.10), look("checks", 4, 4.0), -0.3)
    build.add(SPHERE, (0.15, 0.10, top + 0.13), np.full(3, 0.13), look("cells", 1, 3.0, gloss=0.25), turn(0, 0.4))
    build.add(CYLINDER, (0.42, 0.20, top + 0.13), (0.075, 0.075, 0.13), look("text", 1, 4.0))
    build.add(CYLINDER, (0.34, -0.08, top + 0.06), (0.06, 0.06, 0.06), look("stripes", 2, 5.0, gloss=0.2))
    build.add(CONE, (-0.55, -0.12, top + 0.12), (0.08, 0.08, 0.12), look("noise", 5, 3.0))
    height = top
    for number, (yaw, half_x) in enumerate(((0.1, 0.15), (0.35, 0.13), (-0.1, 0.12), (0.25, 0.1))):
        cover = look("text", number + 2, 2.5, ((1, 0.8, 0.75), (0.75, 0.9, 1), (0.9, 1, 0.8), (1, 0.95, 0.7))[number])
        build.box((-0.18, -0.16, height + 0.018), (half_x, half_x * 0.72, 0.018), cover, yaw)
        height += 0.036
    build.box((0.10, -0.25, top + 0.035), (0.09, 0.05, 0.035), look("clutter", 7, 5.0), 0.9)
    build.box((-1.2, 2.6, 1.0), (0.55, 0.18, 1.0), look("books", 0, 0.8))
    build.box((0.2, 2.78, 1.65), (0.5, 0.02, 0.36), look("clutter", 10, 0.9))
    build.box((1.4, 2.78, 1.5), (0.3, 0.02, 0.42), look("noise", 3, 0.9))
    build.box((1.35, 2.3, 0.4), (0.5, 0.35, 0.4), look("cells", 3, 1.0), 0.15)
    build.box((-2.1, 0.9, 0.55), (0.25, 0.6, 0.55), look("wood", 5, 0.9))
    return build.finish()


def demo_cameras() -> np.ndarray:
    """T_world_camera (VIEWS, 4, 4) along an arc in front of the table, rising and falling a little."""
    target = np.array([-0.02, 0.08, 0.84])
    poses = []
    for angle, wave in zip(np.radians(np.linspace(-38, 38, VIEWS)), np.linspace(0, 2 * np.pi, VIEWS), strict=True):
        reach = 1.32 + 0.06 * np.cos(wave)
        eye = np.add(target, (reach * np.sin(angle), -reach * np.cos(angle), 0.55 + 0.09 * np.sin(wave)))
        gaze = np.add(target, (0.03 * np.sin(2 * wave), 0, 0.02 * np.cos(wave)))
        poses.append(look_at(eye, gaze, 0.02 * np.sin(wave)))
    return np.stack(poses)


def write_demo(folder: Path, samples: int = 3, quality: int = 92) -> None:
    """Render `folder`/images/NNN.jpg and `folder`/scene.json with the cameras.

    Outlines are averaged over samples^2 rays; textures are filtered through their mip levels.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    world, (height, width) = demo_world(), SIZE
    focal = width / 2 / np.tan(np.radians(FOV) / 2)
    frames = []
    for number, pose in enumerate(demo_cameras()):
        image, _ = cast(world, atlas(STYLE), pose, focal, SIZE, samples)
        file = f"images/{number:03d}.jpg"
        Image.fromarray(image).save(folder / file, quality=quality, subsampling=0)
        intrinsics = {"fx": focal, "fy": focal, "cx": width / 2, "cy": height / 2}
        frames.append({"file": file, "width": width, "height": height, **intrinsics, "c2w": pose.tolist()})
    description = {
        "source": "lora3d_splat.synthetic.demo_scene",
        "licence": "Apache-2.0",
        "units": "metre",
        "axes": "opencv",
        "pixels": "corner-based: the centre of the top-left pixel is (0.5, 0.5)",
        "frames": frames,
    }
    (folder / "scene.json").write_text(json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]))
    note(f"{VIEWS} photographs and scene.json in {sys.argv[1]}")
