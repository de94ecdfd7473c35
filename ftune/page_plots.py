"""Plots for pages: curves that can be zoomed and read off with the mouse, and figures that need no script.

Curves (`line_plot`) are drawn by uPlot; pages with them need `document(..., scripts=True)`. Bars, intervals and the
confusion matrix are SVG, with the numbers in the text or as titles that appear under the mouse. All of them follow the
colours of `ftune/assets/page.css`, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from ftune.data.spell import visible
from ftune.page import Cell, folded, inline_json, number, safe, table

MOST_POINTS = 1000
"""Points of a curve that a page holds."""
TABLE_ROWS = 24
"""Rows of the table below a curve, about."""
WIDTH, LABEL, ROW = 760, 280, 26
"""Of SVG figures: the width, that of the names on the left, the height of a row; in pixels before scaling."""


class Series(NamedTuple):
    """One curve.

    Args:
        name: in the legend; plain text.
        points: (x, y) with rising x; others than finite numbers are left out.
        style: `line`; `faint` for raw values behind a smoothed curve; `points` for a line with marks; `level` for a
            dashed line, such as a limit.
    """

    name: str
    points: Sequence[tuple[Any, Any]]
    style: Literal["line", "faint", "points", "level"] = "line"


class Interval(NamedTuple):
    """A value with its 95% interval; without one, `low` and `high` are None."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def line_plot(title: str, x: str, y: str, series: Iterable[Series], *, log: bool = False) -> str:
    """Curves over a common x, with a table of some of their values for those who run no scripts.

    Args:
        title: above the plot.
        x: what x is, such as `step`.
        y: what y is, with its unit.
        series: one or more curves, each with its own x.
        log: start with a logarithmic scale; the page has a switch where all values are above 0.

    Returns:
        A figure; nothing where no curve has a point.
    """
    curves = [one._replace(name=visible(one.name), points=thinned(finite(one.points))) for one in series]
    curves = [one for one in curves if one.points]
    if not curves:
        return ""
    spec = {
        "x": visible(x),
        "log": log,
        "series": [
            {"name": one.name, "style": one.style, "x": [p[0] for p in one.points], "y": [p[1] for p in one.points]}
            for one in curves
        ],
    }
    return (
        f'<figure class="plot"><figcaption>{safe(title)} <small>{safe(y)}</small></figcaption>'
        f'<div class="canvas"></div><script type="application/json">{inline_json(spec)}</script>'
        f"{folded('numbers', _curve_table(x, curves))}</figure>"
    )


def finite(points: Iterable[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """The points of which both numbers are finite, with six digits."""
    return [
        (x, float(f"{y:.6g}"))
        for x, y in points
        if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y)
    ]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    found = []
    for i in range(stretches):
        part = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        found += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return found


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The mean of each y and up to `window - 1` before it."""
    found: list[tuple[float, float]] = []
    total = 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0.0)
        found.append((x, total / min(i + 1, window)))
    return found


def _curve_table(x: str, curves: Sequence[Series]) -> str:
    """Values at about `TABLE_ROWS` places, and at every mark if there are not many more."""
    values = [dict(one.points) for one in curves]
    every = sorted({place for one in values for place in one})
    marked = {place for one, curve in zip(values, curves, strict=True) if curve.style == "points" for place in one}
    stride = max(1, math.ceil(len(every) / TABLE_ROWS))
    shown = set(every[::stride]) | {every[-1]} | (marked if len(marked) <= 2 * TABLE_ROWS else set())
    rows: list[list[Cell]] = [[place, *(one.get(place) for one in values)] for place in sorted(shown)]
    return table((x, *(one.name for one in curves)), rows)


def bars(title: str, rows: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars from zero.

    Args:
        title: above them.
        rows: name, length (not negative), what is written beside it, and a class: `a`, `b` or `c` for a colour.
    """
    most = max((length for _, length, _, _ in rows), default=0) or 1
    room = WIDTH - LABEL - 130
    lines = []
    for i, (name, length, text, colour) in enumerate(rows):
        top, width = i * ROW, room * length / most
        lines += [
            _text(LABEL - 8, top + 17, name, "end", cut=44),
            f'<rect class="{safe(colour)}" x="{LABEL}" y="{top + 4}" width="{width:.1f}" height="{ROW - 8}" rx="2"/>',
            _text(LABEL + width + 6, top + 17, text, "start", cut=60),
        ]
    return _figure(title, WIDTH, len(rows) * ROW, lines)


def intervals(title: str, rows: Sequence[Interval]) -> str:
    """A mark for each value, with a line over its 95% interval, on a common scale."""
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None and math.isfinite(end)]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * spread, high + 0.05 * spread
    room = WIDTH - LABEL - 190

    def at(value: float) -> float:
        return LABEL + room * (value - low) / (high - low)

    lines = []
    for i, row in enumerate(rows):
        y, text = i * ROW + ROW / 2, number(row.value)
        if row.low is not None and row.high is not None:
            text += f" ({number(row.low)} to {number(row.high)})"
            lines.append(f'<line class="a" x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}"/>')
        lines += [
            _text(LABEL - 8, y + 4, row.name, "end", cut=44),
            f'<circle class="a" cx="{at(row.value):.1f}" cy="{y}" r="4"><title>{safe(text)}</title></circle>',
            _text(LABEL + room + 8, y + 4, text, "start", cut=60),
        ]
    return _figure(title, WIDTH, len(rows) * ROW, lines)


def confusion_matrix(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows of each true class (down) by the class they were given (across), shaded by their share of the true class.

    Args:
        title: above it.
        names: of the C classes.
        counts: [C][C], the first index the true class.
    """
    cell = 40 if len(names) <= 8 else 26 if len(names) <= 24 else 12
    top, left = 130, 190
    lines = [f'<rect class="panel" x="{left}" y="{top}" width="{cell * len(names)}" height="{cell * len(names)}"/>']
    for i, name in enumerate(names):
        middle = cell * i + cell / 2
        if cell >= 12:
            lines.append(_text(left - 6, top + middle + 4, name, "end", cut=24))
            turn = f' transform="rotate(-55 {left + middle:.0f} {top - 6})"'
            lines.append(_text(left + middle, top - 6, name, "start", cut=24, more=turn))
    for true, row in enumerate(counts):
        total = sum(row)
        for given, count in enumerate(row):
            if not count:
                continue
            share, x, y = count / total, left + cell * given, top + cell * true
            said = safe(f"{names[true]}, taken for {names[given]}: {count:,} of {total:,} ({share:.1%})")
            kind = "right" if true == given else "wrong"
            lines.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{said}</title></rect>'
            )
            if cell >= 26:
                strong = ' class="strong"' if share > 0.5 else ""
                lines.append(_text(x + cell / 2, y + cell / 2 + 4, f"{count}", "middle", cut=9, more=strong))
    width = left + cell * len(names) + 110
    return _figure(title, width, top + cell * len(names) + 4, lines, fixed=True)


def _text(x: float, y: float, text: str, anchor: str, *, cut: int, more: str = "") -> str:
    shown = text if len(text) <= cut else f"{text[: cut - 1]}…"
    whole = f"<title>{safe(text)}</title>" if shown != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{safe(shown)}{whole}</text>'


def _figure(title: str, width: float, height: float, lines: Sequence[str], *, fixed: bool = False) -> str:
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else ""
    return (
        f'<figure><figcaption>{safe(title)}</figcaption><div class="wide"><svg role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"{size}>\n{chr(10).join(lines)}\n</svg></div></figure>'
    )
