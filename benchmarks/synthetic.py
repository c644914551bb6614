"""Views a second and core that the procedural scenes give, plain and rich, by kind; and what a seed costs beside them.

    python benchmarks/synthetic.py [--scenes 40] [--size 144 192]

Seconds are CPU seconds of this process, so that other work on the machine does not count. Drawing a texture for the
first time is told apart: a training pays it once for each of its textures.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

from rich.table import Table

from lora3d_splat.console import CONSOLE
from lora3d_splat.synthetic.render import FEATURES, SceneFeatures, render_scene
from lora3d_splat.synthetic.textures import atlas


def measure(features: SceneFeatures, scenes: int, views: int, size: tuple[int, int]) -> dict[str, list[float]]:
    """CPU seconds of each scene, by kind."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in range(scenes):
        start = time.process_time()
        scene = render_scene(seed, size, views, features=features)
        seconds[scene.kind].append(time.process_time() - start)
    return seconds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--views", type=int, default=6, help="views per scene")
    parser.add_argument("--size", type=int, nargs=2, default=(144, 192), help="height and width, pixels")
    options = parser.parse_args()
    height, width = options.size
    textures, start = atlas("train"), time.process_time()
    textures.require(set(range(textures.count)))
    CONSOLE.print(f"{textures.count} textures: {time.process_time() - start:.1f} CPU seconds, once")
    render_scene(0, (16, 16), 2)  # compiles, or loads what was compiled
    table = Table("scenes", "kind", "number", f"views of {width}x{height} per CPU second")
    for name, features in FEATURES.items():
        by_kind = measure(features, options.scenes, options.views, (height, width))
        rows = [*sorted(by_kind.items()), ("all", [each for part in by_kind.values() for each in part])]
        for kind, seconds in rows:
            table.add_row(name, kind, str(len(seconds)), f"{options.views * len(seconds) / sum(seconds):.0f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
