"""Training scenes with their usable pairs, rendered in this process or ahead of time by several."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from lora3d_splat.synthetic.pairs import scene_pairs
from lora3d_splat.synthetic.render import FEATURES, SyntheticScene, render_scene

Size = tuple[int, int]
"""(height, width) in pixels"""
AHEAD = 4
"""scenes asked for per worker and not yet taken"""


@dataclass(frozen=True)
class SceneOptions:
    """What the scenes of one training have in common; PretrainConfig explains the fields."""

    scenes: str
    views: int
    motion: tuple[float, float]
    photographs: Path | None
    texture_sets: int


@dataclass(frozen=True)
class RenderedScene:
    """A scene, the seed that makes it again, and its usable pairs (i < j)."""

    seed: int
    scene: SyntheticScene
    pairs: list[tuple[int, int]]

    @property
    def size(self) -> Size:
        """(H, W)"""
        return self.scene.images.shape[1], self.scene.images.shape[2]


def render(options: SceneOptions, seed: int, size: Size) -> RenderedScene:
    """The scene of this seed at (H, W) pixels."""
    scene = render_scene(
        seed,
        size,
        options.views,
        motion=options.motion,
        features=FEATURES[options.scenes],
        photographs=options.photographs,
        texture_sets=options.texture_sets,
    )
    return RenderedScene(seed, scene, scene_pairs(scene))


class SceneWorkers:
    """Processes that render ahead. Scenes come back in the order in which they were asked for."""

    def __init__(self, options: SceneOptions, workers: int) -> None:
        self.options = options
        self.room = AHEAD * workers
        render(options, 0, (32, 48))  # the compiled ray caster lies on disk before all workers want it
        self._processes = ProcessPoolExecutor(workers, get_context("spawn"))
        self._asked: deque[Future[RenderedScene]] = deque()

    @property
    def asked(self) -> int:
        """Scenes asked for and not yet taken."""
        return len(self._asked)

    def ask(self, seed: int, size: Size) -> None:
        """Have a scene rendered when a worker is free."""
        self._asked.append(self._processes.submit(render, self.options, seed, size))

    def take(self) -> RenderedScene:
        """The scene asked for first; waits for it."""
        return self._asked.popleft().result()

    def render_all(self, jobs: Iterable[tuple[int, Size]]) -> Iterator[RenderedScene]:
        """The scenes of all (seed, size), for workers of whom nothing else is asked."""
        for seed, size in jobs:
            self.ask(seed, size)
            if self.asked >= self.room:
                yield self.take()
        while self._asked:
            yield self.take()

    def finished(self) -> Iterator[RenderedScene]:
        """Take what is ready, without waiting."""
        while self._asked and self._asked[0].done():
            yield self.take()

    def close(self) -> None:
        """Stop the processes; what was asked for and not taken is dropped."""
        self._processes.shutdown(wait=False, cancel_futures=True)
