"""`report.html`: a run as one page that needs nothing else. Plots to look at, tables with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftune.metrics import METRICS
from ftune.page import (
    Cell,
    document,
    folded,
    heading,
    items,
    paragraph,
    preformatted,
    safe,
    table,
)
from ftune.page_plots import Series, bars, confusion_matrix, line_plot, running_mean
from ftune.report import (
    DATA_HEADER,
    beside_base,
    costs,
    data_remarks,
    data_rows,
    detail,
    detail_tables,
    forgetting,
    headline,
    interval,
    mebibytes,
    results,
    which_step,
)
from ftune.report_pictures import curve
from ftune.run_files import RunFiles

SHOWN_ROWS = 30
"""Predictions of a split that the page shows; the file beside it has all."""
SHOWN_TEXT = 600
"""Characters of a text that the page shows."""
SHOWN_CONFUSIONS = 15
SHARES = frozenset(name for name, metric in METRICS.items() if metric.better == "higher") - {"bleu", "chrf"}
"""Metrics that are 1 at best, and share a plot."""


def run_page(files: RunFiles) -> str:
    """The page of one run.

    Returns:
        The same bytes for the same files.
    """
    report = files.known
    parts = [paragraph(headline(report))]
    if not report.get("finished"):
        parts.append('<p class="warning">This run is not finished. The same command goes on with it.</p>')
    parts += [heading("Result"), _results(report), _which(files)]
    parts += ['<div class="plots">', *_curves(files), "</div>"]
    parts += [heading("Cost"), table(("what", "value"), list(costs(report).items())), _memory(files)]
    for split, found in (report.get("classes") or {}).items():
        parts += _classes(split, found)
    for split, rows in files.predictions.items():
        parts += _predictions(split, rows)
    parts += _data(report)
    parts += _method(report.get("details") or {})
    parts += _origin(files)
    return document(f"ftune run: {files.name}", parts, scripts=True)


def _results(report: Mapping[str, Any]) -> str:
    rows = [(row.what, row.value, row.before, interval(row.ci95)) for row in results(report)]
    if not rows:
        return paragraph("No rows were held out, so nothing was measured.")
    header, beside = beside_base(report)
    found = table(("metric", "value", "before", "95% interval"), rows)
    return found + (table(header, beside) if beside else "")


def _which(files: RunFiles) -> str:
    sentences = [*forgetting(files.known), which_step(files.known, best=files.plan.get("best") is not None)]
    return "".join(map(paragraph, sentences))


def _curves(files: RunFiles) -> Iterable[str]:
    """Everything over steps."""
    steps, evals = files.of_kind("step"), files.of_kind("eval")
    train = curve(steps, "loss")
    window = max(5, len(train) // 40)
    smooth = [Series(f"train, mean of {window} steps", running_mean(train, window))] if len(train) >= 8 * window else []
    raw = Series("train", train, "faint" if smooth else "line")
    yield line_plot("Loss", "step", "nats per target", [raw, *smooth, Series("eval", curve(evals, "loss"), "points")])
    others = [key for key in (evals[-1] if evals else {}) if key not in ("event", "step", "loss")]
    shares = [key for key in others if key in SHARES]
    yield line_plot("Eval metrics", "step", "", [Series(key, curve(evals, key), "points") for key in shares])
    for key in others:
        if key not in shares:
            yield line_plot(f"Eval {key}", "step", "", [Series(key, curve(evals, key), "points")])
    yield line_plot("Learning rate", "step", "", [Series("learning rate", curve(steps, "learning_rate"))])
    limit = files.plan.get("max_grad_norm")
    norm = curve(steps, "grad_norm")
    clip = [Series("clipped above", [(x, limit) for x, _ in norm[:: max(1, len(norm) - 1)]], "level")] if limit else []
    yield line_plot("Gradient norm", "step", "before clipping", [Series("gradient norm", norm), *clip])
    speed = [Series("tokens per second", curve(steps, "tokens_per_second"))]
    yield line_plot("Speed", "step", "tokens per second", speed)
    used = [(x, y / 2**20) for x, y in curve(steps, "memory_bytes")]
    planned = sum((files.plan.get("memory_bytes") or {}).values()) / 2**20
    level = [Series("estimate, without libraries", [(x, planned) for x, _ in used[:: max(1, len(used) - 1)]], "level")]
    yield line_plot("Memory", "step", "MiB, peak so far", [Series("measured", used), *(level if planned else [])])


def _memory(files: RunFiles) -> str:
    """What the plan estimated, item by item, beside what was measured."""
    planned: Mapping[str, int] = files.plan.get("memory_bytes") or {}
    if not planned:
        return ""
    rows = [(f"planned: {item}", float(size), mebibytes(size), "c") for item, size in planned.items() if size]
    rows.append(("planned: all", float(sum(planned.values())), mebibytes(sum(planned.values())), "a"))
    if peak := files.known.get("peak_memory_bytes"):
        rows.append(("measured peak, with libraries", float(peak), mebibytes(peak), "b"))
    return bars("Memory of one process", rows)


def _classes(split: str, found: Mapping[str, Any]) -> list[str]:
    """Each label's precision, recall and F1, and which was taken for which."""
    classes: Mapping[str, Mapping[str, Any]] = found["classes"]
    columns = ("precision", "recall", "f1", "rows", "predicted")
    header = ("label", "precision", "recall", "F1", "support", "predicted")
    rows = [(name, *(row[key] for key in columns)) for name, row in classes.items()]
    parts = [heading(f"Labels of the {split} rows"), table(header, rows)]
    if confusion := found.get("confusion"):
        names = list(classes)
        parts.append(confusion_matrix("Confusion matrix: true label down, predicted label across", names, confusion))
        mistakes = sorted(
            ((count, names[i], names[j]) for i, line in enumerate(confusion) for j, count in enumerate(line) if i != j),
            key=lambda mistake: -mistake[0],
        )
        shown = [(true, given, count) for count, true, given in mistakes[:SHOWN_CONFUSIONS] if count]
        if shown:
            parts.append(folded("most frequent mistakes", table(("true label", "predicted label", "rows"), shown)))
    return parts


def _predictions(split: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Some rows with what was expected and what came: of a classifier, the mistakes it was surest of first."""
    right = sum(bool(row.get("exact")) for row in rows)
    labelled = any("probabilities" in row for row in rows)
    ordered = sorted(rows, key=_surest_mistake) if labelled else list(rows)
    shown = ordered[:SHOWN_ROWS]
    order = "the mistakes with the highest probability first" if labelled else "the first"
    said = f"{right:,} of {len(rows):,} rows are exactly right. Shown: {len(shown)}, {order}."
    said += f" All are in predictions_{split}.jsonl."
    head = ("", "text" if labelled else "prompt", "expected", "received", "row")
    cells: list[Sequence[Cell]] = [
        (
            "right" if row.get("exact") else "wrong",
            _short(row.get("text", row.get("prompt", ""))),
            _short(_label(row.get("expected"))),
            _short(_label(row.get("received")) + _sure(row)),
            f"{str(row.get('file', '')).rpartition('/')[2]}:{row.get('number', '')}",
        )
        for row in shown
    ]
    marks = ["right" if row.get("exact") else "wrong" for row in shown]
    return [heading(f"Predictions of the {split} rows"), paragraph(said), table(head, cells, marks=marks)]


def _surest_mistake(row: Mapping[str, Any]) -> tuple[bool, float]:
    return bool(row.get("exact")), -max((row.get("probabilities") or {"": 0.0}).values(), default=0.0)


def _sure(row: Mapping[str, Any]) -> str:
    """How probable the one label was that the row was given."""
    received, probabilities = row.get("received"), row.get("probabilities")
    if not isinstance(received, str) or not isinstance(probabilities, Mapping) or received not in probabilities:
        return ""
    return f" ({probabilities[received]:.0%})"


def _label(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _short(text: Any) -> str:
    """A text of any length, its middle left out where it is long."""
    text = str(text)
    half = SHOWN_TEXT // 2
    return text if len(text) <= SHOWN_TEXT else f"{text[:half]} […] {text[-half:]}"


def _data(report: Mapping[str, Any]) -> list[str]:
    if not report.get("data"):
        return []
    return [heading("Data"), table(DATA_HEADER, data_rows(report)), items(data_remarks(report)), *_lengths(report)]


def _lengths(report: Mapping[str, Any]) -> Iterable[str]:
    """Histograms of the training rows."""
    train = report["data"].get("train") or {}
    if histogram := train.get("token_histogram"):
        edges, counts = histogram["edges"], histogram["counts"]
        rows = [
            (f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}", float(count), f"{count:,}", "a")
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        yield folded("tokens in a training example", bars("examples by number of tokens", rows))
    if labels := train.get("labels"):
        most = sorted(labels.items(), key=lambda item: -item[1])
        rows = [(name, float(count), f"{count:,}", "a") for name, count in most[:40]]
        yield folded("labels of the training rows", bars(f"{len(rows)} of {len(labels)} labels", rows))


def _method(details: Mapping[str, Any]) -> list[str]:
    """What the method tells of itself."""
    if not details:
        return []
    tables = detail_tables(details)
    plain = [(name, detail(value)) for name, value in details.items() if name not in tables]
    parts = [heading("Method"), *([table(("what", "value"), plain)] if plain else [])]
    for name, rows in tables.items():
        lines = [[detail(value) for value in row.values()] for row in rows]
        parts.append(folded(name, table(list(rows[0]), lines)))
    return parts


def _origin(files: RunFiles) -> Iterable[str]:
    """The recipe with every value, every decision of the plan, and where the run came from."""
    import yaml

    yield heading("Recipe")
    yield preformatted(yaml.safe_dump(files.recipe, sort_keys=False, allow_unicode=True))
    yield folded("decisions of the plan", table(("value", "is"), [(k, _words(v)) for k, v in files.plan.items()]))
    run = files.run
    versions = [(name, str(value)) for name, value in (run.get("versions") or {}).items()]
    facts = {**(run.get("machine") or {}), **(run.get("fingerprints") or {})}
    facts |= {name: run[name] for name in ("started", "git", "seed") if name in run}
    rows = versions + [(name, _words(value)) for name, value in facts.items()]
    yield folded("versions, machine, fingerprints", table(("what", "value"), rows))
    command = " ".join(map(str, run.get("command") or ()))
    yield f"<p><small>{safe(f'ftune {command}')}</small></p>" if command else ""


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
