"""What differs between runs: recipe, data, versions, results, cost. Keys that an older version lacks are no error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from ftune.metrics import METRICS
from ftune.report import results
from ftune.run_files import RunFiles

Cell = dict[str, Any]
"""`{"value": ...}`, or `{"missing": true}` where a run does not say."""
COSTS = {
    "trainable_parameters": "", "total_parameters": "", "rows_seen": "", "tokens_seen": "", "targets_seen": "",
    "train_seconds": "s", "tokens_per_second": "", "flops_per_second": "", "peak_memory_bytes": "bytes",
    "planned_memory_bytes": "bytes",
}  # fmt: skip
"""Numbers of a report that say what it took, with their units."""
DATA = ("rows", "kept", "examples", "tokens", "targets", "fingerprint")
"""What is compared of each split; `fingerprint` is a SHA-256 of its tokens and labels."""


class Line(TypedDict):
    """Something that runs have in common, with the value in each."""

    key: str
    values: list[Cell]


class Metric(TypedDict):
    """A metric in each run.

    Args:
        key: split and name.
        better: `higher` or `lower`; None where it is not known.
        values: the numbers.
        ci95: their 95% intervals; None where there is none.
        differences: value minus that of the first run; None where one is missing.
        overlap: whether the interval overlaps with that of the first run; None where one is missing.
    """

    key: str
    better: str | None
    values: list[Cell]
    ci95: list[Sequence[float] | None]
    differences: list[float | None]
    overlap: list[bool | None]


class Difference(TypedDict):
    """All of it, as `ftune report RUN RUN --json` prints it. The first run is what others are compared with."""

    runs: list[dict[str, Any]]
    recipe: list[Line]
    data: list[Line]
    versions: list[Line]
    metrics: list[Metric]
    cost: list[Line]


def difference(runs: Sequence[RunFiles]) -> Difference:
    """Hold runs against the first.

    Recipe, data and versions have the lines that differ; metrics and cost have all.
    """
    return {
        "runs": [
            {key: run.known.get(key) for key in ("name", "model", "method", "objective", "finished", "steps")}
            for run in runs
        ],
        "recipe": _differing(runs, lambda run: leaves(run.recipe)),
        "data": _differing(runs, _data),
        "versions": _differing(runs, lambda run: run.run.get("versions") or {}),
        "metrics": _metrics(runs),
        "cost": _lines(runs, lambda run: {key: run.known[key] for key in COSTS if run.known.get(key) is not None}),
    }


def leaves(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty block is a value."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _lines(runs: Sequence[RunFiles], values: Callable[[RunFiles], Mapping[str, Any]]) -> list[Line]:
    """Every key that some run has, in the order of the first run that has it."""
    tables = [values(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [{"key": key, "values": [_cell(table, key) for table in tables]} for key in keys]


def _differing(runs: Sequence[RunFiles], values: Callable[[RunFiles], Mapping[str, Any]]) -> list[Line]:
    return [line for line in _lines(runs, values) if any(cell != line["values"][0] for cell in line["values"])]


def _cell(table: Mapping[str, Any], key: str) -> Cell:
    return {"value": table[key]} if key in table else {"missing": True}


def _data(run: RunFiles) -> dict[str, Any]:
    """Counts and identity of each split; of older runs the identity that `run.json` has."""
    found = {
        f"{name}.{key}": split[key]
        for name, split in (run.known.get("data") or {}).items()
        for key in DATA
        if key in split
    }
    for key, value in (run.run.get("fingerprints") or {}).items():
        name = key.removeprefix("data.")
        found.setdefault("base model" if key == "model.name" else f"{name}.fingerprint", value)
    return found


def _metrics(runs: Sequence[RunFiles]) -> list[Metric]:
    tables = [{row.what: row for row in results(run.known)} for run in runs]
    found: list[Metric] = []
    for key in dict.fromkeys(key for table in tables for key in table):
        rows = [table.get(key) for table in tables]
        values = [None if row is None else row.value for row in rows]
        spans = [None if row is None or row.ci95 is None else list(row.ci95) for row in rows]
        first, own = values[0], spans[0]
        known = METRICS.get(key.rpartition(" ")[2])
        found.append(
            {
                "key": key,
                "better": None if known is None else known.better,
                "values": [{"missing": True} if value is None else {"value": value} for value in values],
                "ci95": [*spans],
                "differences": [None if value is None or first is None else value - first for value in values],
                "overlap": [
                    None if span is None or own is None else bool(span[0] <= own[1] and own[0] <= span[1])
                    for span in spans
                ],
            }
        )
    return found
