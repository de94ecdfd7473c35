"""From records of runs to a table: real tokens a second, and ratios with intervals. Pure, no clock, no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

DRAWS = 10_000
Interval = tuple[float, float, float]
"""Estimate, lower and upper end."""


def real_speed(record: dict[str, Any], skip: int) -> float:
    """Tokens that are not pads, a second, from the end of step `skip` to the end of the last."""
    seconds = record["stamps"][-1] - record["stamps"][skip - 1]
    return float(sum(step["tokens"] for step in record["steps"][skip:]) / seconds)


def step_seconds(record: dict[str, Any], skip: int) -> float:
    """Mean of the same steps."""
    stamps = record["stamps"]
    return float((stamps[-1] - stamps[skip - 1]) / (len(stamps) - skip))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Median of the ratios of pairs, and 95% of what the median is over resampled pairs.

    Args:
        ours, theirs: one number of each round, in the order of the rounds.

    Raises:
        ValueError: the rounds do not pair up.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} numbers beside {len(theirs)}: each round must have one of each")
    pairs = np.asarray(ours, dtype=float) / np.asarray(theirs, dtype=float)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))
    low, high = np.quantile(np.median(pairs[drawn], axis=1), [0.025, 0.975])
    return float(np.median(pairs)), float(low), float(high)


def tokens_read(record: dict[str, Any]) -> int:
    """Tokens of all rows as the trainer had them: of its data if it said so, else of its steps, which see all once."""
    said = [event["tokens"] for event in record["events"] if event["event"] == "data"]
    return int(said[0]) if said else sum(step["tokens"] for step in record["steps"])


def measures(record: dict[str, Any], skip: int) -> dict[str, float]:
    """The numbers of a run that are compared."""
    return {
        "tokens_per_second": real_speed(record, skip),
        "step_seconds": step_seconds(record, skip),
        "peak_mib": record["peak_mib"],
        "first_step_seconds": record["stamps"][0],
    }


def summary(rounds: Sequence[dict[str, dict[str, Any]]], first: str, skip: int) -> list[dict[str, Any]]:
    """One row for each entrant.

    Args:
        rounds: of each round, the record of each entrant by name.
        first: the entrant that all others are compared with.
        skip: steps at the start that do not count.

    Returns:
        Rows with `name`, medians of the measures, `loss` of the first and last step, `rows_per_step`, `padding`, and
        `ratios`: what `first` has divided by what the row has, over the rounds in which both have a result. An entrant
        that failed in any round has `error`, and medians only if it succeeded in another.
    """
    rows = []
    for name in rounds[0]:
        good = [round_ for round_ in rounds if round_[name]["error"] is None]
        row: dict[str, Any] = {"name": name, "runs": len(good)}
        errors = [round_[name]["error"] for round_ in rounds if round_[name]["error"] is not None]
        row["error"] = errors[0] if errors else None
        if good:
            records = [round_[name] for round_ in good]
            each = [measures(record, skip) for record in records]
            row |= {what: median(one[what] for one in each) for what in each[0]}
            steps = records[-1]["steps"]
            row["losses"] = [steps[0]["loss"], steps[-1]["loss"]]
            row["rows_per_step"] = sum(step["rows"] for step in steps[skip:]) / (len(steps) - skip)
            fed = sum(step.get("fed", step["tokens"]) for step in steps)
            row["padding"] = 1 - sum(step["tokens"] for step in steps) / fed
        both = [round_ for round_ in good if round_[first]["error"] is None]
        if both and name != first:
            row["ratios"] = ratios_of(
                [measures(round_[first], skip) for round_ in both], [measures(round_[name], skip) for round_ in both]
            )
        rows.append(row)
    return rows


def ratios_of(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> dict[str, Interval]:
    """`ratio` of every measure."""
    return {what: ratio([one[what] for one in ours], [one[what] for one in theirs]) for what in ours[0]}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The summary of a contest in Markdown."""
    lines = [
        "| trainer | runs | real tokens/s | ftune is faster by | rows a step | pads | peak MiB | of it ftune takes "
        "| first step after | of it ftune takes | loss, first and last step |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "tokens_per_second" not in row:
            lines.append(f"| {row['name']} | 0 | failed: {one_line(row['error'])} | | | | | | | | |")
            continue
        ratios = row.get("ratios", {})
        failed = f", then failed: {one_line(row['error'])}" if row["error"] else ""
        cells = [
            f"{row['name']}{failed}", str(row["runs"]), f"{row['tokens_per_second']:,.0f}",
            shown(ratios.get("tokens_per_second"), "x"), f"{row['rows_per_step']:.1f}", f"{row['padding']:.0%}",
            f"{row['peak_mib']:,.0f}", shown(ratios.get("peak_mib"), "x"),
            f"{row['first_step_seconds']:.1f} s", shown(ratios.get("first_step_seconds"), "x"),
            f"{row['losses'][0]:.4f}, {row['losses'][1]:.4f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(interval: Interval | list[float] | None, unit: str) -> str:
    """`1.59x (1.51 to 1.70)`, or nothing."""
    if interval is None:
        return ""
    middle, low, high = interval
    return f"{middle:.2f}{unit} ({low:.2f} to {high:.2f})"


def one_line(text: str) -> str:
    """The end of an error, fit for a cell."""
    last = text.strip().splitlines()[-1] if text.strip() else "no word of why"
    return last.replace("|", "/")[-160:]
