"""The one console: notes, stage banners and the progress display. Library calls below it are silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONSOLE = Console(width=120, soft_wrap=True)

Advance = Callable[[int], None]
"""Called with the number of units just finished."""


def note(text: str) -> None:
    """Tell the user something worth knowing that needs no action."""
    CONSOLE.print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """Tell the user that something was left out or replaced, and why."""
    CONSOLE.print(f"! {text}", style="yellow", highlight=False, markup=False)


@contextmanager
def stage(title: str, total: int) -> Iterator[Advance]:
    """Show one stage with a count and the time left; yields the function that advances it."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE, transient=not CONSOLE.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda units=1: progress.advance(task, units)
