"""What a run's report says, as rows of tables and as `report.md`.

A report is `report.json`, or what is known of a run that is not finished. Older versions lack some keys: what is not
there is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftune.data.spell import visible
from ftune.data_report import sentences
from ftune.flops import readable_flops
from ftune.run_files import SPLITS, read_run

Report = dict[str, Any]
SENTENCE_KEYS = frozenset(
    {"tokens", "unit", "longest", "longest_row", "value_histogram", "targets", "zero_targets", "truncated", "kept",
     "majority", "labels"}
)  # fmt: skip
"""What `sentences` needs of a split."""

NONE_WITHIN = "the last; no evaluated step was within the limit"


class Result(NamedTuple):
    """One line of the table of results."""

    what: str
    before: float | None
    value: float | None
    ci95: Sequence[float] | None


def read_report(folder: Path) -> Report:
    """The report of a finished run.

    Raises:
        ArtifactError: it is none.
    """
    return read_run(folder).known


def headline(report: Mapping[str, Any]) -> str:
    """A sentence: what was trained how, and how far it came."""
    done = report.get("finished")
    planned = report.get("planned_steps")
    end = done or "NOT FINISHED"
    steps = f"{report.get('steps', 0)} steps" if done else f"{report.get('steps', 0)} of {planned or '?'} steps"
    what = f"{report.get('method') or '?'} on {report.get('model') or '?'}, {report.get('objective') or '?'}"
    return f"{what}: {steps} ({end})."


def which_step(report: Mapping[str, Any], *, best: bool) -> str:
    """A sentence: where the scores are from."""
    if report.get("finished"):
        return f"model/ is step {report.get('model_step')} ({_choice(report, best)})."
    return "Scores are those of the last evaluation during training; there is no model/ of this state yet."


def _choice(report: Mapping[str, Any], best: bool) -> str:
    """Why this step is the model."""
    choice = "best eval loss" if best else "the last"
    forgetting = report.get("forgetting")
    if forgetting is None:
        return choice
    return f"{choice} within the limit of forgetting" if forgetting["kept"] else NONE_WITHIN


def forgetting(report: Mapping[str, Any]) -> list[str]:
    """What the rule of forgetting saw at the last evaluation: a sentence, or nothing."""
    found = report.get("forgetting")
    if found is None or not found["rise"]:
        return []
    worst = max(found["rise"], key=lambda name: found["rise"][name])
    rise = found["rise"][worst]
    key = f"{100 * found['limit']:.4g}% of train.early_stopping.max_forgetting"
    if found["beyond"]:
        ended = "Stopped, since the" if report["finished"] == "forgetting" else "The"
        above = f"{rise:.2%} above its value before training"
        return [f"{ended} loss of guard set {worst} was {above}: beyond the {key}."]
    return [f"The loss of no guard set rose by more than the {key}; the most is {worst} with {rise:+.2%}."]


def results(report: Mapping[str, Any]) -> list[Result]:
    """Metrics of eval and test rows, and of other rows than the task's, in which what rose was forgotten."""
    baseline, metrics = report.get("baseline") or {}, report.get("metrics") or {}
    found = [
        Result(f"{split} {name}", baseline.get(name) if split == "eval" else None, score["value"], score.get("ci95"))
        for split in SPLITS
        for name, score in (metrics.get(split) or {}).items()
    ]
    for name, sets in (report.get("guard") or {}).items():
        for metric, after in (sets.get("after") or {}).items():
            before = (sets.get("before") or {}).get(metric)
            found.append(Result(f"guard {name}: {metric}", before, after["value"], None))
    return found


def beside_base(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The tuned model beside its base with training rows in the prompt: header and rows, or nothing of both.

    Only metrics that both have: of rows with labels, the base has those of options.
    """
    prompted, metrics = report.get("prompted") or {}, report.get("metrics") or {}
    shots = list(dict.fromkeys(count for found in prompted.values() for count in found))
    rows = [
        [f"{split} {name}", *(_with_interval(found[count].get(name)) for count in shots), _with_interval(score)]
        for split, found in prompted.items()
        for name, score in (metrics.get(split) or {}).items()
        if any(name in found[count] for count in shots)
    ]
    return (["metric", *(f"base, {count}-shot" for count in shots), "tuned"] if rows else []), rows


def _with_interval(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    return _number(score["value"]) + (f" ({interval(score['ci95'])})" if score.get("ci95") else "")


def costs(report: Mapping[str, Any]) -> dict[str, str]:
    """What it took, in words, by what it is."""
    get = report.get
    learned, every, planned = get("trainable_parameters"), get("total_parameters"), get("planned_memory_bytes")
    peak, speed, mfu = get("peak_memory_bytes"), get("flops_per_second"), get("mfu")
    found = {
        "trainable parameters": f"{learned:,} of {every:,} ({learned / every:.2%})" if learned and every else None,
        "steps without an update, not finite": _whole(get("skipped_steps") or None),
        "rows seen": _whole(get("rows_seen")),
        "tokens seen": _whole(get("tokens_seen")),
        "supervised tokens seen": _whole(get("targets_seen")),
        "time in steps": None if get("train_seconds") is None else f"{get('train_seconds'):.1f} s",
        "tokens per second": None if get("tokens_per_second") is None else f"{get('tokens_per_second'):,.0f}",
        "operations per second": None
        if speed is None
        else readable_flops(speed) + ("" if mfu is None else f", {mfu:.1%} of the device's peak"),
        "peak memory": None if peak is None else f"{mebibytes(peak)}{_estimate(planned)}",
    }
    return {what: text for what, text in found.items() if text is not None}


def mebibytes(size: float) -> str:
    """A size in MiB."""
    return f"{size / 2**20:,.0f} MiB"


def _estimate(planned: float | None) -> str:
    return "" if planned is None else f" (estimate {mebibytes(planned)} besides the libraries)"


def _whole(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


DATA_HEADER = ("split", "rows", "kept", "dropped", "truncated", "examples", "tokens", "supervised")


def data_rows(report: Mapping[str, Any]) -> list[list[str | int]]:
    """Counts of each split, in the order of `DATA_HEADER`."""
    return [
        [
            name,
            *(split.get(key, "") for key in ("rows", "kept")),
            ", ".join(f"{count:,} {reason}" for reason, count in (split.get("dropped") or {}).items()) or "0",
            *(split.get(key, "") for key in ("truncated", "examples", "tokens", "targets")),
        ]
        for name, split in (report.get("data") or {}).items()
    ]


def data_remarks(report: Mapping[str, Any]) -> list[str]:
    """Sentences on each split, and what was noted when it was read."""
    splits = (report.get("data") or {}).items()
    said = [line for name, split in splits if split.keys() >= SENTENCE_KEYS for line in sentences(name, split)]
    return said + [f"{name}: {note}" for name, split in splits for note in split.get("notes", ())]


def to_markdown(report: Mapping[str, Any], *, best: bool) -> str:
    """A run for people: what, how well, what it took.

    Args:
        report: see above.
        best: whether the step with the best evaluation becomes the model.
    """
    lines = [f"# {report['name']}", "", headline(report), "", "## Result", ""]
    lines += ["| metric | before | after | 95% interval |", "|---|--:|--:|---|"]
    lines += [
        f"| {row.what} | {_number(row.before)} | {_number(row.value)} | {interval(row.ci95)} |"
        for row in results(report)
    ] or ["| (no eval rows) | | | |"]
    header, rows = beside_base(report)
    lines += ["", f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"] if rows else []
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [line for sentence in forgetting(report) for line in ("", sentence)]
    lines += ["", which_step(report, best=best).replace("model/", "`model/`"), "", "## Cost", ""]
    lines += ["| what | value |", "|---|--:|", *(f"| {what} | {text} |" for what, text in costs(report).items())]
    lines += ["", "![loss](loss.png)", "", "![learning rate, gradient norm, tokens per second](training.png)", ""]
    lines += _classes(report)
    if report.get("data"):
        lines += ["## Data", "", f"| {' | '.join(DATA_HEADER)} |", "|---|--:|--:|---|--:|--:|--:|--:|"]
        lines += [f"| {' | '.join(map(str, row))} |" for row in data_rows(report)]
        lines += ["", *(f"- {line}" for line in data_remarks(report))]
        lines += ["", "![lengths and labels of the rows](data.png)"]
    return "\n".join(lines).rstrip() + "\n" + _details(report.get("details") or {})


def _classes(report: Mapping[str, Any]) -> list[str]:
    """Precision, recall and F1 of each label, and the picture of what was taken for what."""
    lines = []
    for split, found in (report.get("classes") or {}).items():
        lines += [f"## Labels of the {split} rows", "", "| label | precision | recall | F1 | support |"]
        lines += ["|---|--:|--:|--:|--:|"]
        for name, row in found["classes"].items():
            shares = " | ".join(f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
            lines.append(f"| {_plain(name)} | {shares} | {row['rows']} |")
        lines += ["", f"![confusion matrix](confusion_{split}.png)"] if found.get("confusion") else []
        lines.append("")
    return lines


def _plain(text: str) -> str:
    """User text in a cell of a table."""
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def interval(ci95: Sequence[float] | None) -> str:
    """`low to high`, or nothing."""
    return "" if ci95 is None else f"{ci95[0]:.4f} to {ci95[1]:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _details(details: Mapping[str, Any]) -> str:
    """What the method tells, for people: a line each, and tables."""
    lines = ["", "## Method", ""] if details else []
    tables = detail_tables(details)
    lines += [f"- {name}: {detail(value)}" for name, value in details.items() if name not in tables]
    for name, rows in tables.items():
        lines += ["", f"{name}:", "", f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
        lines += [f"| {' | '.join(map(detail, row.values()))} |" for row in rows]
    return "".join(f"{line}\n" for line in lines)


def detail_tables(details: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Those details of a method that are lists of rows."""
    return {
        name: rows for name, rows in details.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }


def detail(value: Any) -> str:
    """A detail of a method, in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
