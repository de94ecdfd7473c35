"""`metrics.jsonl` becomes `report.json`, `report.md` and `loss.png`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftune.data_report import sentences
from ftune.flops import readable_flops
from ftune.plan import Plan

Report = dict[str, Any]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Events of a run in order; a line torn by a kill is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def to_markdown(report: Mapping[str, Any], plan: Plan) -> str:
    """A run for people: what, how well, what it took."""
    lines = [
        f"# {report['name']}",
        "",
        f"{report['method']} on {report['model']}, {report['objective']}: {report['steps']} steps "
        f"({report['finished']}).",
        "",
        "## Result",
        "",
        "| metric | before | after | 95% interval |",
        "|---|--:|--:|---|",
        *_metric_rows(report),
        *_guard_rows(report),
        "",
        *_forgetting(report),
        f"`model/` is step {report['model_step']} ({_choice(report, plan)}).",
        "",
        "## Cost",
        "",
        "| what | value |",
        "|---|--:|",
        f"| trainable parameters | {report['trainable_parameters']:,} of {report['total_parameters']:,} "
        f"({report['trainable_parameters'] / report['total_parameters']:.2%}) |",
        f"| tokens seen | {report['tokens_seen']:,} |",
        f"| supervised tokens seen | {report['targets_seen']:,} |",
        f"| time in steps | {report['train_seconds']:.1f} s |",
        f"| tokens per second | {report['tokens_per_second']:,.0f} |",
        f"| operations per second | {readable_flops(report['flops_per_second'])}{_of_peak(report['mfu'])} |",
        f"| peak memory | {report['peak_memory_bytes'] / 2**20:,.0f} MiB (estimate "
        f"{report['planned_memory_bytes'] / 2**20:,.0f} MiB besides the libraries) |",
        "",
        "![loss](loss.png)",
        "",
        "## Data",
        "",
        "| split | rows | kept | dropped | truncated | examples | tokens | supervised |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
        *(_data_row(name, split) for name, split in report["data"].items()),
        "",
        *(f"- {line}" for name, split in report["data"].items() for line in sentences(name, split)),
        *(f"- {name}: {note}" for name, split in report["data"].items() for note in split["notes"]),
        "",
        "![lengths and labels of the rows](data.png)",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _of_peak(mfu: float | None) -> str:
    return "" if mfu is None else f", {mfu:.1%} of the device's peak"


def _metric_rows(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for split in ("eval", "test"):
        for name, score in report["metrics"].get(split, {}).items():
            before = report["baseline"].get(name) if split == "eval" else None
            interval = "" if score["ci95"] is None else f"{score['ci95'][0]:.4f} to {score['ci95'][1]:.4f}"
            rows.append(f"| {split} {name} | {_number(before)} | {_number(score['value'])} | {interval} |")
    return rows or ["| (no eval rows) | | | |"]


def _guard_rows(report: Mapping[str, Any]) -> list[str]:
    """Other rows than the task's: what rose was forgotten."""
    return [
        f"| guard {name}: {metric} | {_number(sets['before'].get(metric))} | {_number(after['value'])} | |"
        for name, sets in report["guard"].items()
        for metric, after in sets["after"].items()
    ]


def _forgetting(report: Mapping[str, Any]) -> list[str]:
    """What the rule of forgetting saw at the last evaluation."""
    found = report["forgetting"]
    if found is None or not found["rise"]:
        return []
    worst = max(found["rise"], key=lambda name: found["rise"][name])
    rise = found["rise"][worst]
    key = f"{100 * found['limit']:.4g}% of train.early_stopping.max_forgetting"
    if found["beyond"]:
        ended = "Stopped, since the" if report["finished"] == "forgetting" else "The"
        above = f"{rise:.2%} above its value before training"
        return [f"{ended} loss of guard set {worst} was {above}: beyond the {key}.", ""]
    return [f"The loss of no guard set rose by more than the {key}; the most is {worst} with {rise:+.2%}.", ""]


def _choice(report: Mapping[str, Any], plan: Plan) -> str:
    """Why this step is the model."""
    choice = "best eval loss" if plan.best else "the last"
    if report["forgetting"] is None:
        return choice
    kept = report["forgetting"]["kept"]
    return f"{choice} within the limit of forgetting" if kept else "the last; no evaluated step was within the limit"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _data_row(name: str, split: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in split["dropped"].items()) or "0"
    return (
        f"| {name} | {split['rows']} | {split['kept']} | {dropped} | {split['truncated']} | {split['examples']} | "
        f"{split['tokens']} | {split['targets']} |"
    )


def draw_loss(events: list[dict[str, Any]], path: Path) -> None:
    """Training and evaluation loss over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [event for event in events if event["event"] == "step"]
    evals = [event for event in events if event["event"] == "eval"]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="0.65", linewidth=1, label="train")
    if evals:
        axes.plot([e["step"] for e in evals], [e["loss"] for e in evals], marker="o", color="tab:blue", label="eval")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def read_report(folder: Path) -> Report:
    """The report of a finished run."""
    report: Report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report
