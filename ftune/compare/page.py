"""`compare.html`: a comparison as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ftune.compare.table import COLUMNS, cells
from ftune.page import document, folded, heading, items, paragraph, table
from ftune.page_plots import Interval, bars, intervals

COSTS: tuple[tuple[str, str, Callable[[float], tuple[float, str]]], ...] = (
    ("Minutes of training", "train_seconds", lambda value: (value / 60, f"{value / 60:.2f} min")),
    ("Peak memory", "peak_memory_bytes", lambda value: (value, f"{value / 2**20:,.0f} MiB")),
    ("Size of the result", "artefact_bytes", lambda value: (value, f"{value / 2**20:,.2f} MiB")),
    ("Weights that learn", "trainable_parameters", lambda value: (value, f"{value:,.0f}")),
)
"""Title, key of a row, and what becomes of it: a length and what is written beside it."""


def comparison_page(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: of `ftune.compare.table.to_json`.
    """
    rows = [row for row in found["rows"] if row["value"] is not None]
    without = [f"{row['name']}: {row['about']}" for row in found["rows"] if row["about"]]
    best = {found["best"], found["recommended"]}
    marks = ["right" if row["name"] in best else "" for row in rows]
    direction = f"{found['metric']} of {found['rows_scored']:,} {found['split']} rows ({found['better']} is better)"
    parts = [
        paragraph(found["recommendation"] or "No row has a figure."),
        intervals(direction, [Interval(row["name"], row["value"], *(row["ci95"] or (None, None))) for row in rows]),
        heading("All rows"),
        table(COLUMNS, [cells(row) for row in rows], marks=marks),
        items(without),
        heading("What it took"),
        *_costs(rows),
        heading("How to read this"),
        items(found["remarks"]),
        folded("Every value", table(("row", "seed", found["metric"]), _values(found))),
    ]
    return document(f"Which method? {found['recipe']}", parts)


def _costs(rows: list[Any]) -> list[str]:
    trained = [row for row in rows if "train_seconds" in row]
    return [
        bars(title, [(row["name"], *shown(row[key]), "c" if row["pareto"] else "a") for row in trained])
        for title, key, shown in COSTS
        if trained
    ]


def _values(found: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    return [(row["name"], seed, value) for row in found["rows"] for seed, value in row["seeds"].items()]
