"""The one console: notes, stage banners and the progress display. Library calls below it are silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lora3d_splat.errors import Lora3DError
from lora3d_splat.watch import watcher

CONSOLE = Console(width=120, soft_wrap=True)

Advance = Callable[[int], None]
"""Called with the number of units just finished."""

_display: Progress | None = None
"""The display that is being shown; only one can be, so stages started inside it add a line to it."""


def note(text: str) -> None:
    """Tell the user something worth knowing that needs no action."""
    CONSOLE.print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """Tell the user that something was left out or replaced, and why."""
    CONSOLE.print(f"! {text}", style="yellow", highlight=False, markup=False)


def interrupted() -> int:
    """Say what Ctrl-C has left, and return the exit status for it."""
    warn("interrupted; the stages that were finished are kept, and the same command goes on from there")
    return 130


def end_in_sentences() -> None:
    """From here on a failure of ours that nobody catches ends the program with its sentence, without a traceback."""
    before = sys.excepthook
    if getattr(before, "in_sentences", False):
        return

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Lora3DError):
            warn(str(error))
        else:
            before(kind, error, trace)

    say.in_sentences = True  # type: ignore[attr-defined]
    sys.excepthook = say


@contextmanager
def display() -> Iterator[Progress]:
    """One live display for all stages inside the block; inside another one, that one."""
    global _display
    if _display is not None:
        yield _display
        return
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE, transient=not CONSOLE.is_terminal) as progress:
        _display = progress
        try:
            yield progress
        finally:
            _display = None


@contextmanager
def stages(title: str, total: int) -> Iterator[Advance]:
    """Show a whole of `total` stages as the first line; the stages inside the block appear below it."""
    with display() as progress:
        task = progress.add_task(title, total=total)
        yield lambda units=1: progress.advance(task, units)


@contextmanager
def stage(title: str, total: int) -> Iterator[Advance]:
    """Show one stage with a count and the time left; yields the function that advances it.

    Where the output is no terminal (a log file), one line says what was done once the stage has ended.
    """
    start = time.perf_counter()
    with display() as progress:
        task = progress.add_task(title, total=total)

        def advance(units: int = 1) -> None:
            progress.advance(task, units)
            done = int(progress.tasks[progress.task_ids.index(task)].completed)
            watcher().progress(title, done, total, time.perf_counter() - start)

        advance(0)
        yield advance
        done = int(progress.tasks[progress.task_ids.index(task)].completed)
        progress.stop_task(task)
    if not CONSOLE.is_terminal:
        note(f"{title}: {done}/{total} in {time.perf_counter() - start:.1f} s")
