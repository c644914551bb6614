"""Charts as inline SVG, coloured by the page's style sheet so that they fit light and dark."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420.0, 250.0
LABEL_LETTERS = 13
LEFT, RIGHT, TOP, BOTTOM = 48.0, 22.0, 12.0, 44.0
FILE_LINE = 16.0
"""height of a line of text above a chart of a picture file"""
FILE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5b6570}.title{font-weight:600;font-size:13px;fill:#1b2025}"
    ".label{text-anchor:middle}.grid{stroke:#d8dde3;stroke-width:.6}.axis{stroke:#5b6570}"
    ".line{fill:none;stroke-width:1.8}.dot{fill:#fff;stroke-width:1.5}"
    ".b0{stroke:#2f6fd0}.b1{stroke:#c8620c}.legend{stroke:none}.legend.b0{fill:#2f6fd0}.legend.b1{fill:#c8620c}"
)
"""colours of a picture file, which brings no style sheet along"""


@dataclass(frozen=True)
class Series:
    """One line or one set of dots; `kind` is its class in the style sheet, which gives the colour."""

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    dots: bool = False
    """mark every point, with its numbers as a tooltip"""
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """One direction of a chart."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Values to [0, 1]."""
        low, high, given = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.log:
            low, high, given = math.log(low), math.log(high), np.log(np.maximum(given, 1e-12))
        return np.clip((given - low) / max(high - low, 1e-12), 0, 1)

    def ticks(self) -> list[float]:
        """Round numbers within the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**p for p in powers for m in (1, 3) if self.low * 0.999 <= m * 10.0**p <= self.high * 1.001]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(max(rough, 1e-12)))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:.3g} %" if self.percent else f"{value:.4g}"


def spanning(label: str, values: Sequence[np.ndarray], from_zero: bool = False, percent: bool = False) -> Axis:
    """An axis over all finite values, with a little air."""
    joined = np.concatenate([np.asarray(each, dtype=np.float64).ravel() for each in values])
    joined = joined[np.isfinite(joined)]
    low, high = (float(joined.min()), float(joined.max())) if len(joined) else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return Axis(label, 0.0 if from_zero else low - air, high + air, percent=percent)


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """A figure with lines or dots and a legend."""
    body = "".join(_series(each, x, y) for each in series)
    return _figure(title, _frame(x, y) + body, [(each.name, each.kind) for each in series])


def step_chart(title: str, edges: np.ndarray, series: Sequence[tuple[str, str, np.ndarray]], x: Axis, y: Axis) -> str:
    """Histograms over common `edges` (B + 1,) as outlines; each of `series` is (name, kind, heights (B,))."""
    outlines = [Series(name, kind, np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)) for name, kind, heights in series]
    return line_chart(title, outlines, x, y)


def bar_chart(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], y: Axis) -> str:
    """Bars by group, one of each of `series` (name, heights); a missing height leaves a gap. Kinds are b0, b1, ...

    Long names of groups are broken into lines; the numbers on the bars leave their unit to the axis, or they would
    run into each other.
    """
    across = WIDTH - LEFT - RIGHT
    room = across / max(len(groups), 1)
    wide = min(44.0, 0.7 * room / max(len(series), 1))
    parts = []
    for g, group in enumerate(groups):
        middle = LEFT + (g + 0.5) * room
        parts += [
            f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16 + 13 * k:.1f}">'
            f"{escape(line)}</text>"
            for k, line in enumerate(textwrap.wrap(group, LABEL_LETTERS))
        ]
        for s, (name, heights) in enumerate(series):
            value, left = heights[g], middle + (s - len(series) / 2) * wide
            if value is None:
                parts.append(
                    f'<text class="tick" text-anchor="middle" x="{left + wide / 2:.1f}" y="{HEIGHT - BOTTOM - 4:.1f}">–'
                    "</text>"
                )
                continue
            tall = float(y.place(np.array([value]))[0]) * (HEIGHT - TOP - BOTTOM)
            top = HEIGHT - BOTTOM - tall
            parts.append(
                f'<rect class="b{s}" x="{left + 1:.1f}" y="{top:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}">'
                f"<title>{escape(f'{group}, {name}: {y.text(value)}')}</title></rect>"
                f'<text class="value" text-anchor="middle" x="{left + wide / 2:.1f}" y="{top - 4:.1f}">'
                f"{f'{100 * value:#.3g}' if y.percent else y.text(value)}</text>"
            )
    return _figure(title, _frame(None, y) + "".join(parts), [(name, f"b{s}") for s, (name, _) in enumerate(series)])


@dataclass(frozen=True)
class Panel:
    """One chart of a picture file."""

    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis


def svg_file(panels: Sequence[Panel], columns: int = 2) -> str:
    """Line charts side by side as one SVG that needs no style sheet; the kinds of series are b0, b1, ..."""
    parts, tall = [], HEIGHT + 2 * FILE_LINE
    for k, panel in enumerate(panels):
        keys, across = [], LEFT
        for each in panel.series:
            place = f'x="{across:.0f}" y="{2 * FILE_LINE - 2:.0f}"'
            keys.append(f'<text class="legend {escape(each.kind)}" {place}>{escape(each.name)}</text>')
            across += 24 + 6.2 * len(each.name)
        body = _frame(panel.x, panel.y) + "".join(_series(each, panel.x, panel.y) for each in panel.series)
        parts.append(
            f'<g transform="translate({k % columns * WIDTH:.0f} {k // columns * tall:.0f})">'
            f'<text class="title" x="{LEFT:.0f}" y="{FILE_LINE:.0f}">{escape(panel.title)}</text>{"".join(keys)}'
            f'<g transform="translate(0 {2 * FILE_LINE:.0f})">{body}</g></g>'
        )
    size = f"{min(columns, len(panels)) * WIDTH:.0f} {-(-len(panels) // columns) * tall:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{FILE_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _figure(title: str, body: str, legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<span class="key {kind}">{escape(name)}</span>' for name, kind in legend)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f'<div class="legend">{keys}</div></figure>'
    )


def _frame(x: Axis | None, y: Axis) -> str:
    """Grid lines, tick labels and axis labels."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, place in zip(y.ticks(), _down(y.place(np.array(y.ticks()))), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{place + 4:.1f}">{y.text(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" transform="translate(11 {(TOP + bottom) / 2:.0f}) rotate(-90)">{y.label}</text>')
    if x is not None:
        for value, place in zip(x.ticks(), _along(x.place(np.array(x.ticks()))), strict=True):
            parts.append(f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{place:.1f}" y="{bottom + 16}">{x.text(value)}</text>'
            )
        parts.append(f'<text class="label" x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}">{x.label}</text>')
    return "".join(parts)


def _series(each: Series, x: Axis, y: Axis) -> str:
    across, down = _along(x.place(each.x)), _down(y.place(each.y))
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    parts = [f'<polyline class="line {each.kind}" points="{line}"/>'] if each.line else []
    if each.dots:
        parts += [
            f'<circle class="dot {each.kind}" cx="{a:.1f}" cy="{b:.1f}" r="3">'
            f"<title>{escape(each.name)}: {x.text(float(u))}, {y.text(float(v))}</title></circle>"
            for a, b, u, v in zip(across, down, each.x, each.y, strict=True)
        ]
    return "".join(parts)


def _along(share: np.ndarray) -> np.ndarray:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _down(share: np.ndarray) -> np.ndarray:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
