"""A comparison as JSON, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

from ftune.compare.comparing import Comparison, Row
from ftune.compare.verdict import SIGNIFICANT

COLUMNS = (
    "row", "value", "95% interval", "each seed", "from the best", "p", "learns", "learning rate", "minutes",
    "tokens/s", "peak memory", "artefact", "forgot", "Pareto",
)  # fmt: skip


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The contract of `ftune compare --json` and of `compare.json`."""
    asked, verdict = comparison.asked, comparison.verdict
    return {
        "recipe": str(asked.own.path),
        "metric": asked.metric,
        "better": asked.better,
        "split": asked.split,
        "rows_scored": comparison.scored,
        "budget": asked.budget or asked.own.recipe.train.duration,
        "seeds": list(asked.seeds),
        "rows": [_row(comparison, row) for row in comparison.rows],
        "best": None if verdict is None else verdict.best,
        "recommended": None if verdict is None else verdict.recommended,
        "recommendation": None if verdict is None else verdict.sentence,
        "remarks": list(comparison.remarks),
    }


def _row(comparison: Comparison, row: Row) -> dict[str, Any]:
    verdict, system = comparison.verdict, row.system
    found: dict[str, Any] = {"name": row.name, "kind": row.kind, "about": row.about, "seeds": dict(row.values)}
    if system is None or verdict is None:
        return found | {"value": None}
    against, p = verdict.against_best.get(row.name, (None, None))
    cost = system.cost
    share = cost["trainable_parameters"] / cost["total_parameters"] if cost else None
    return found | {
        "value": system.measured.value,
        "ci95": system.measured.ci95(),
        "spread": system.measured.spread,
        "metrics": dict(row.metrics or {}),
        "from_best": None if against is None else asdict(against) | {"p_holm": p},
        "takes_part": row.name in verdict.taking_part,
        "pareto": row.name in verdict.pareto,
        "trainable_share": share,
        **cost,
    }


def to_markdown(comparison: Comparison) -> str:
    """For people: the answer first, then the table, then what must be known to trust it."""
    asked, found = comparison.asked, to_json(comparison)
    lines = [
        f"# {asked.own.path.stem}: which method?",
        "",
        found["recommendation"] or "No row has a figure.",
        "",
        f"{asked.metric} ({asked.better} is better) of {comparison.scored} {asked.split} rows, "
        f"{_seeds(len(asked.seeds))}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(cells(row))} |" for row in found["rows"] if row["value"] is not None),
        "",
        *(f"- {row['name']}: {_one_line(row['about'])}" for row in found["rows"] if row["about"]),
        *(f"- {remark}" for remark in found["remarks"]),
        "- 95% intervals: bootstrap over rows, and over seeds where there are several. `from the best`: difference "
        "from the row with the best figure, on the same rows. `p`: of no difference, for all of them together (Holm). "
        "`forgot`: rise of the loss on guard rows. `Pareto`: no other trained row is as good in quality, time, memory "
        "and size, and better in one.",
        "",
        "![quality against time](compare.png)",
    ]
    return "\n".join(lines) + "\n"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `to_json` as text, one cell for each of `COLUMNS`."""
    low_high, away = row["ci95"], row["from_best"]
    several = len(row["seeds"]) > 1
    p = None if away is None else away["p_holm"]
    best = away is None and row["takes_part"]
    return [
        row["name"],
        f"{row['value']:.4f}",
        "" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}",
        ", ".join(f"{value:.4f}" for value in row["seeds"].values()) if several else "",
        "best" if best else "" if away is None else f"{away['value']:+.4f}",
        "" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}") + ("" if p >= SIGNIFICANT else " *"),
        *(_cost_cells(row) if "train_seconds" in row else [""] * 7),
        "yes" if row["pareto"] else "",
    ]


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    rises = [f"{sets['after'] - sets['before']:+.3f}" for sets in row["guard"].values()]
    return [
        f"{row['trainable_parameters']:,.0f} ({row['trainable_share']:.2%})",
        f"{row['learning_rate']:.1e}",
        f"{row['train_seconds'] / 60:.2f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"{row['artefact_bytes'] / 2**20:,.2f} MiB",
        ", ".join(rises),
    ]


def draw(comparison: Comparison) -> bytes:
    """A PNG: quality with its interval against minutes of training; rows without training are lines across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [f"C{number}" for number in range(10)]
    for number, row in enumerate(row for row in comparison.rows if row.system is not None):
        system = row.system
        if system is None:
            continue
        value, interval, colour = system.measured.value, system.measured.ci95(), colours[number % 10]
        if not system.cost:
            axes.axhline(value, linestyle="--", linewidth=1, color=colour, label=row.name)
            continue
        error = None if interval is None else [[value - interval[0]], [interval[1] - value]]
        minutes = system.cost["train_seconds"] / 60
        axes.errorbar([minutes], [value], yerr=error, fmt="o", capsize=3, color=colour, label=row.name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel(f"{comparison.asked.metric} on {comparison.asked.split} rows")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def as_table(found: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Header and rows for a terminal: what decides, without what only a file has room for."""
    kept = [0, 1, 2, 4, 5, 6, 8, 10, 13]
    rows = [cells(row) for row in found["rows"] if row["value"] is not None]
    return [COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows]
