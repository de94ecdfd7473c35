"""`ftune report RUN RUN ... --html FILE`: runs side by side as one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ftune.page import document, folded, heading, number, paragraph, preformatted, table
from ftune.page_plots import Interval, Series, intervals, line_plot
from ftune.report import headline, interval, mebibytes
from ftune.report_diff import COSTS, Cell, Difference, Line, Metric
from ftune.report_pictures import curve
from ftune.run_files import RunFiles

MISSING = "(not there)"


def diff_page(runs: Sequence[RunFiles], found: Difference) -> str:
    """The page.

    Args:
        runs: the first is what the others are compared with.
        found: `difference(runs)`.
    """
    names = labels(runs)
    parts = [table(("run", "what"), [(name, headline(run.known)) for name, run in zip(names, runs, strict=True)])]
    parts += [heading("Results"), metric_table(names, found["metrics"]), '<div class="plots">']
    parts += [*_curves(names, runs), "</div>", *_intervals(names, found["metrics"])]
    for key, title, none in SECTIONS:
        lines: list[Line] = found[key]  # type: ignore[literal-required]
        parts.append(heading(title))
        parts.append(table(("what", *names), line_rows(lines)) if lines else paragraph(none))
    for name, run in zip(names, runs, strict=True):
        parts.append(folded(f"recipe of {name}", preformatted(_yaml(run.recipe))))
    return document(f"ftune report: {', '.join(names)}", parts, scripts=True)


SECTIONS = (
    ("recipe", "Recipe: keys that differ", "The recipes are the same."),
    ("data", "Data: what differs", "The data are the same."),
    ("versions", "Versions that differ", "The versions are the same."),
    ("cost", "Cost", "Nothing is known of the cost."),
)
"""Key of a `Difference`, title, and what is said of none."""


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run; those of the same name get their position."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]


def line_rows(lines: Iterable[Line]) -> list[list[str]]:
    """What differs, with the value of each run in words."""
    return [[line["key"], *(in_words(cell, line["key"]) for cell in line["values"])] for line in lines]


def in_words(cell: Cell, key: str = "") -> str:
    """A value, or that there is none. Sizes are in MiB; what is set is shown as a recipe has it."""
    if "missing" in cell:
        return MISSING
    value = cell["value"]
    if value is None or isinstance(value, (bool, dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if key in COSTS:
        shown = {"bytes": lambda: mebibytes(value), "s": lambda: f"{value:,.1f} s", "": lambda: f"{value:,.0f}"}
        return shown[COSTS[key]]()
    return f"{value[:12]}…" if key.endswith("fingerprint") else str(value)


def metric_rows(metrics: Iterable[Metric]) -> list[list[str]]:
    """Each metric with its value in each run, its interval, and how it differs from the first run's."""
    rows = []
    for metric in metrics:
        better = f" ({metric['better']} is better)" if metric["better"] else ""
        row = [f"{metric['key']}{better}"]
        for i, cell in enumerate(metric["values"]):
            text = number(cell["value"]) if "value" in cell else MISSING
            if span := metric["ci95"][i]:
                text += f"\n{interval(span)}"
            if i and (change := metric["differences"][i]) is not None:
                text += f"\n{change:+.4f}{_overlap(metric['overlap'][i])}"
            row.append(text)
        rows.append(row)
    return rows


def metric_table(names: Sequence[str], metrics: Iterable[Metric]) -> str:
    """`metric_rows` as HTML."""
    rows = metric_rows(metrics)
    return table(("metric", *names), rows) if rows else paragraph("No run has measured anything.")


def _overlap(overlap: bool | None) -> str:
    return "" if overlap is None else ", intervals overlap" if overlap else ", intervals do not overlap"


def _curves(names: Sequence[str], runs: Sequence[RunFiles]) -> Iterable[str]:
    """Curves of all runs over the same steps."""
    for title, kind, key, unit in (
        ("Eval loss", "eval", "loss", "nats per target"),
        ("Train loss", "step", "loss", "nats per target"),
        ("Learning rate", "step", "learning_rate", ""),
        ("Gradient norm", "step", "grad_norm", "before clipping"),
        ("Speed", "step", "tokens_per_second", "tokens per second"),
    ):
        style: Any = "points" if kind == "eval" else "line"
        series = [Series(name, curve(run.of_kind(kind), key), style) for name, run in zip(names, runs, strict=True)]
        yield line_plot(title, "step", unit, series)


def _intervals(names: Sequence[str], metrics: Iterable[Metric]) -> Iterable[str]:
    for metric in metrics:
        rows = [
            Interval(name, cell["value"], *(span or (None, None)))
            for name, cell, span in zip(names, metric["values"], metric["ci95"], strict=True)
            if "value" in cell
        ]
        yield intervals(f"{metric['key']} with 95% interval", rows) if len(rows) > 1 else ""


def _yaml(recipe: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
