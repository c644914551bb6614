"""A contact sheet of training scenes: what the network is shown, before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lora3d_splat.console import note
from lora3d_splat.files import atomic_file
from lora3d_splat.pretraining.config import PretrainConfig
from lora3d_splat.report.pictures import false_colours
from lora3d_splat.synthetic.pairs import Counterparts, counterparts
from lora3d_splat.synthetic.render import SyntheticScene
from lora3d_splat.synthetic.workers import RenderedScene, render

TILE = (120, 160)
"""(height, width) that every picture is fitted into"""
GAP, CAPTION = 4, 14
DOTS = 24
"""matches drawn per pair"""
HIDDEN = 0.3
"""brightness of what the other view does not see"""


def write_preview(config: PretrainConfig) -> Path:
    """Render `config.preview` scenes as the training would and write `folder`/preview.png; returns its path.

    Each row is one pair of views: both photographs, both depth maps (black = nothing), and both photographs with what
    the other view does not see darkened and dots of equal colour on equal surface points.
    """
    sizes = config.sizes + config.final_sizes
    rows = [_row(render(config.scene_options, *config.scene(k, sizes))) for k in range(config.preview)]
    sheet = np.full((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), 255, np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + len(row), : row.shape[1]] = row
        top += len(row)
    path = config.folder / "preview.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    note(f"{len(rows)} scenes in {path}")
    return path


def _row(pooled: RenderedScene) -> np.ndarray:
    """One line of the sheet (h, w, 3) with its caption."""
    scene = pooled.scene
    i, j = pooled.pairs[len(pooled.pairs) // 2] if pooled.pairs else (0, 1)
    seen = [counterparts(scene, i, j), counterparts(scene, j, i)]
    marked = _marked(scene, (i, j), seen)
    tiles = [scene.images[i], scene.images[j], _depth(scene.depth[i]), _depth(scene.depth[j]), *marked]
    height, width = TILE
    line = np.full((height + CAPTION + GAP, len(tiles) * (width + GAP), 3), 255, np.uint8)
    for k, tile in enumerate(tiles):
        fitted = _fitted(tile)
        left = k * (width + GAP) + (width - fitted.shape[1]) // 2
        line[CAPTION : CAPTION + len(fitted), left : left + fitted.shape[1]] = fitted
    picture = Image.fromarray(line)
    ImageDraw.Draw(picture).text((2, 1), _caption(pooled, (i, j), seen), fill=(0, 0, 0))
    return np.array(picture)


def _caption(pooled: RenderedScene, pair: tuple[int, int], seen: list[Counterparts]) -> str:
    scene, (height, width) = pooled.scene, pooled.size
    field = np.degrees(2 * np.arctan(max(height, width) / 2 / scene.focal[pair[0]]))
    shares = " and ".join(f"{each.visible.mean():.0%}" for each in seen)
    usable = f"{len(pooled.pairs)} usable pairs" if pooled.pairs else "no usable pair, so training leaves it out"
    return (
        f"{scene.kind}, seed {pooled.seed}, {width}x{height}, {field:.0f} degrees; "
        f"views {pair[0] + 1} and {pair[1] + 1} of {len(scene.images)} see {shares} of each other; {usable}"
    )


def _depth(depth: np.ndarray) -> np.ndarray:
    """Log-depth in false colours, near is bright."""
    return false_colours(np.where(depth > 0, -np.log(np.maximum(depth, 1e-6)), np.nan))


def _marked(scene: SyntheticScene, pair: tuple[int, int], seen: list[Counterparts]) -> list[np.ndarray]:
    """Both photographs, what the other does not see darkened, with dots on matching points."""
    pictures = [
        Image.fromarray((scene.images[k] * np.where(each.visible, 1.0, HIDDEN)[..., None]).astype(np.uint8))
        for k, each in zip(pair, seen, strict=True)
    ]
    rows, columns = np.nonzero(seen[0].visible)
    chosen = np.random.default_rng(0).permutation(len(rows))[:DOTS]
    # Colours follow the place in the first photograph, so that a wrong match would stand out.
    order = chosen[np.argsort(columns[chosen])]
    colours = false_colours(np.arange(max(len(order), 2), dtype=float)[None])[0]
    for colour, k in zip(colours, order, strict=False):
        there = seen[0].column[rows[k], columns[k]], seen[0].row[rows[k], columns[k]]
        for picture, (x, y) in zip(pictures, ((columns[k], rows[k]), there), strict=True):
            box = (x - 2, y - 2, x + 2, y + 2)
            ImageDraw.Draw(picture).ellipse(box, fill=tuple(int(c) for c in colour), outline=(255, 255, 255))
    return [np.array(picture) for picture in pictures]


def _fitted(picture: np.ndarray) -> np.ndarray:
    """Resized to fit TILE, aspect kept."""
    image = Image.fromarray(picture)
    scale = min(TILE[0] / image.height, TILE[1] / image.width)
    return np.array(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))
