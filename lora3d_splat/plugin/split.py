"""Which photographs train and which are held out to score the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lora3d_splat.errors import InputError

EvalMode = Literal["interval", "fraction", "filename", "all", "instantsplat"]
FEWEST = 2
"""Photographs that training cannot do without."""
INSTANTSPLAT_TESTS = 12


@dataclass(frozen=True)
class Split:
    """Photographs by their role, in their order; `reason` says why nothing is held out."""

    train: tuple[Path, ...]
    heldout: tuple[Path, ...]
    reason: str | None = None


def split_photographs(
    paths: Sequence[Path], mode: EvalMode, interval: int, train_fraction: float, train_views: int = 3
) -> Split:
    """Split as nerfstudio or InstantSplat do; nothing is held out where fewer than two would be left to train.

    Raises InputError for settings that cannot be, and for `filename` when no name tells its role.
    """
    if mode == "all":
        return Split(tuple(paths), (), "every photograph trains (eval mode: all)")
    if mode == "instantsplat":
        train, heldout = instantsplat_split(len(paths), train_views)
        return Split(tuple(paths[i] for i in train), tuple(paths[i] for i in heldout))
    heldout = _heldout_mask(paths, mode, interval, train_fraction)
    train = tuple(path for path, out in zip(paths, heldout, strict=True) if not out)
    if len(train) < FEWEST:
        return Split(tuple(paths), (), f"of {len(paths)} photographs none can be spared from training")
    reason = None if heldout.any() else f"eval mode {mode} holds out none of {len(paths)} photographs"
    return Split(train, tuple(path for path, out in zip(paths, heldout, strict=True) if out), reason)


def instantsplat_split(count: int, train_views: int) -> tuple[list[int], list[int]]:
    """InstantSplat's indices: 12 test views spread over the inner photographs, training views over the others.

    Its scenes have 24 photographs; with others the same rule is applied.
    """
    heldout = np.linspace(1, count - 2, INSTANTSPLAT_TESTS).astype(int).tolist()
    pool = sorted(set(range(count)) - set(heldout))
    if len(set(heldout)) < INSTANTSPLAT_TESTS or not FEWEST <= train_views <= len(pool):
        raise InputError(
            found=f"{count} photographs and train_views={train_views}",
            accepted=f"{INSTANTSPLAT_TESTS} test views and at least {FEWEST} training views among the others",
            remedy="use 24 photographs and 3, 6 or 12 training views, or another eval mode",
        )
    return [pool[i] for i in np.linspace(0, len(pool) - 1, train_views).astype(int)], heldout


def _heldout_mask(paths: Sequence[Path], mode: EvalMode, interval: int, train_fraction: float) -> np.ndarray:
    """(N,) bool"""
    count = len(paths)
    if mode == "interval":
        if interval < 2:
            raise InputError(f"eval_interval={interval}", "2 or more", "use 8 to hold out every eighth photograph")
        return np.arange(count) % interval == 0
    if mode == "fraction":
        if not 0.0 < train_fraction <= 1.0:
            raise InputError(f"train_split_fraction={train_fraction}", "a share in (0, 1]", "start from 0.9")
        train = np.linspace(0, count - 1, int(np.ceil(count * train_fraction)), dtype=int)
        return ~np.isin(np.arange(count), train)
    roles = [_role(path) for path in paths]
    if None in roles:
        raise InputError(
            found=f"{paths[roles.index(None)].name}, whose name holds neither 'train' nor 'eval'",
            accepted="names that say which photographs are held out, for the eval mode `filename`",
            remedy="rename the photographs or use `--eval-mode interval`",
        )
    return np.array([role == "eval" for role in roles])


def _role(path: Path) -> str | None:
    return next((role for role in ("train", "eval") if role in path.name), None)
