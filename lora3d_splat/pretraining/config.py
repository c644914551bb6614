"""Settings of the training of the bundled network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora3d_splat.errors import InputError
from lora3d_splat.networks.compact import CompactArchitecture
from lora3d_splat.synthetic.workers import SceneOptions, Size


@dataclass(frozen=True)
class PretrainConfig:
    """Train the compact network on procedural scenes; interrupted runs resume from their folder."""

    folder: Path = Path("runs/compact")
    """Where checkpoint, progress and the exported network are kept."""
    preview: int = 0
    """Instead of training, write a contact sheet of so many scenes into the folder; --preview alone means 8."""
    initial: Path | None = None
    """Exported weights to go on from, such as those of an earlier training; None starts from nothing. Where the
    architecture asks for more blocks than they have, the new ones begin as no change."""
    hours: float = 2.0
    """Wall-clock budget; the learning rate is annealed to end with it. A resumed run continues its own budget."""
    steps: int | None = None
    """Number of steps; replaces the wall-clock budget where given, which makes the run reproducible."""
    seed: int = 0
    """Seed of weights, scenes and augmentation."""
    device: str = "cpu"
    """torch device."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network, whose master weights are float32; auto is bfloat16 where the device has instructions
    for it, without which a CPU takes about eight times as long."""
    threads: int = 1
    """CPU threads."""
    workers: int = 0
    """Processes that render scenes while the network trains, for a GPU; the training takes whatever is ready, which
    depends on the clock. 0 renders between steps, and the same settings give the same course."""
    pairs: int = 8
    """Unordered view pairs per step; both orders of each are trained."""
    sizes: tuple[Size, ...] = ((96, 128), (128, 96), (112, 112), (80, 128))
    """Image sizes (height, width); scenes take turns."""
    final_sizes: tuple[Size, ...] = ((128, 160), (160, 128), (144, 144), (112, 160))
    """Image sizes of the scenes rendered after `final_share` of the budget."""
    final_share: float = 0.5
    """Share of the budget after which new scenes take the final sizes."""
    long_side: int = 160
    """Long side of photographs that the exported network asks for, pixels."""
    scenes: Literal["plain", "rich", "everyday", "varied"] = "varied"
    """plain: still things that do not mirror; rich: some mirror, some move, some scenes are streets; everyday: rich,
    three quarters of them through lenses such as phones and most cameras have; varied: everyday, a fifth of them one
    thing alone before an even backdrop. A resumed run keeps what it began with."""
    photographs: Path | None = None
    """Folder of photographs, of a licence that allows it, to cut every other texture from; None draws all of them."""
    texture_sets: int = 1
    """How many times the usual number of textures there are; long trainings want more."""
    motion: tuple[float, float] = (0.08, 1.0)
    """How far a series moves, as a share of the distance to what it shows; log-uniform between the two."""
    pool_scenes: int = 480
    """Scenes kept for drawing pairs; the oldest one makes room for the next."""
    first_scenes: int = 32
    """Scenes rendered before the first step."""
    steps_per_scene: int = 3
    """A new scene is rendered every so many steps, without workers."""
    views: int = 6
    """Views per scene."""
    muon_rate: float = 3e-3
    """Learning rate of the matrices (Muon)."""
    adam_rate: float = 1e-3
    """Learning rate of biases, norms, embeddings and of the first and last layers (AdamW)."""
    warm_up: int = 30
    """Steps of linear warm-up."""
    anneal_share: float = 0.4
    """Last share of the budget, over which the learning rates fall to zero along a cosine."""
    match_weight: float = 0.2
    """Weight of the match cross-entropy beside the point loss."""
    depth_weight: float = 0.5
    """Weight of the log-depth error of the first guess beside the point loss."""
    alpha_start: float = 1.0
    """Weight of log-confidence in the point loss at the start."""
    alpha_end: float = 1.0
    """The same at the end. Below the typical normalised error the confidence cannot rise above its floor of 1."""
    settled_share: float = 0.3
    """Last share of the budget, over which confidence learns how far points are off once they have settled on the
    matches; before, how far the decoded ones are, which takes a third less time."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights that are evaluated and exported."""
    validation_scenes: int = 16
    """Held-out scenes for the progress lines."""
    save_minutes: float = 6.0
    """Minutes between checkpoints and progress lines."""
    architecture: CompactArchitecture = field(default_factory=CompactArchitecture)
    """Sizes of the network."""

    def __post_init__(self) -> None:
        for size in (*self.sizes, *self.final_sizes):
            if size[0] % 16 or size[1] % 16:
                raise InputError(
                    f"training size {size}", "multiples of 16", "round height and width to multiples of 16"
                )
        if self.preview < 0:
            raise InputError(f"preview={self.preview}", "a number of scenes, or 0 to train", "start from 8")
        if self.hours <= 0 or (self.steps is not None and self.steps < 1):
            raise InputError(f"hours={self.hours}, steps={self.steps}", "a positive budget", "give --hours or --steps")
        if min(self.pairs, self.steps_per_scene, self.first_scenes, self.texture_sets) < 1 or self.workers < 0:
            raise InputError(
                "an empty batch or pool", "at least one pair and one scene", "raise pairs and first_scenes"
            )

    def scene(self, number: int, sizes: tuple[Size, ...]) -> tuple[int, Size]:
        """Seed and (H, W) of the scene that is drawn as the `number`-th."""
        return self.seed * 10**7 + number, sizes[number % len(sizes)]

    @property
    def scene_options(self) -> SceneOptions:
        """What its scenes have in common."""
        return SceneOptions(self.scenes, self.views, self.motion, self.photographs, self.texture_sets)
