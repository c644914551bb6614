"""The three rows as a table on the console."""

from __future__ import annotations

from rich.table import Table

from lora3d_splat.console import CONSOLE
from lora3d_splat.records import Calibration, CalibrationRow

HEADINGS = ("", "residual", "left-out pairs", "focal px", "trusted", "views", "seconds")


def row_texts(row: CalibrationRow) -> tuple[str, ...]:
    """The cells of a row; a number that does not exist is a dash."""
    return (
        row.name,
        _text(row.residual, "{:.3%}"),
        _text(row.heldout_residual, "{:.3%}"),
        _text(row.focal, "{:.1f}"),
        _text(row.trusted_fraction, "{:.0%}"),
        str(row.registered),
        f"{row.seconds:.1f}",
    )


def print_rows(calibration: Calibration) -> None:
    """Print the rows, the reasons of missing ones, and the decision."""
    table = Table(title="residuals in percent of the median depth")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in calibration.rows:
        table.add_row(*row_texts(row))
    CONSOLE.print(table)
    for row in calibration.rows:
        if row.reason is not None and row.residual is None:
            CONSOLE.print(f"{row.name}: {row.reason}", highlight=False, markup=False)
    CONSOLE.print(calibration.decision, highlight=False, markup=False)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
