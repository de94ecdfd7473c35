"""What became of the rows of a split: counts, lengths, balance of labels; as JSON, as sentences and as a figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ftune.data.build import Dataset, Split
from ftune.data.encode import Example
from ftune.data.read import read_source
from ftune.data.spell import visible
from ftune.data.tokens import Examples
from ftune.objectives import Encoding
from ftune.quantities import is_share
from ftune.recipe import Recipe, sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = 10
"""Bars of a histogram, about."""
LABELS = 20
"""Labels that a figure or a terminal shows; JSON has all."""
UNITS: dict[Encoding, str] = {
    "next_token": "supervised tokens",
    "pairs": "supervised tokens",
    "hidden_tokens": "tokens that may be hidden",
    "row_labels": "labels",
    "token_labels": "words with a label",
}
"""What the targets of an example are."""

Summary = dict[str, Any]


def data_summary(split: Split) -> Summary:
    """Counts of one split, as the report and `plan --json` show them."""
    report = split.report
    return {
        "rows": report.rows,
        "kept": report.kept,
        "dropped": report.dropped,
        "truncated": report.truncated,
        "truncated_rows": report.truncated_rows,
        "truncated_share": report.truncated / max(1, report.kept),
        "zero_targets": report.dropped.get("no_targets", 0),
        "examples": split.per_epoch,
        "tokens": report.tokens,
        "targets": report.targets,
        "longest": report.longest,
        "notes": report.notes,
    }


def data_profile(split: Split, names: tuple[str, ...], encoding: Encoding) -> Summary:
    """How long examples are, how much of them is learned, and how often each label occurs.

    Args:
        split: to be looked at, example by example.
        names: labels in the order of a head's outputs.
        encoding: of the objective.

    Returns:
        `unit` of targets, `longest_row` as file:row, `token_histogram`, `target_histogram` and
        `value_histogram` (of regression) as `{"edges": [N + 1], "counts": [N]}`; `labels` with the count of each, and
        `majority`, the most frequent with its share of rows or words. What there is not is null.
    """
    lengths, targets = _sizes(split.examples)
    counts, values = _labels(split.examples, len(names)) if encoding in ("row_labels", "token_labels") else (None, None)
    labels = {name: int(n) for name, n in zip(names, counts, strict=True)} if names and counts is not None else None
    most = max(labels, key=lambda name: labels[name]) if labels else None
    whole = int(targets.sum()) if encoding == "token_labels" else len(lengths)
    return {
        "unit": UNITS[encoding],
        "longest_row": split.examples[int(lengths.argmax())].place,
        "token_histogram": histogram(lengths),
        "target_histogram": None if encoding == "row_labels" else histogram(targets),
        "value_histogram": None if values is None or names else histogram(values),
        "labels": labels,
        "majority": {"label": most, "share": labels[most] / whole} if labels and most is not None else None,
    }


def _sizes(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of each example, int64."""
    if isinstance(examples, Examples):
        return examples.num_tokens, examples.num_targets
    sizes = np.fromiter(
        (size for example in examples for size in (example.num_tokens, example.num_targets)), np.int64
    ).reshape(-1, 2)
    return sizes[:, 0], sizes[:, 1]


def _labels(examples: Sequence[Example], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each label occurs, int64 [num_labels]; and, where there are none, the number of each example."""
    counts, values = np.zeros(num_labels, dtype=np.int64), np.zeros(0 if num_labels else len(examples))
    for i, example in enumerate(examples):
        if example.labels is None:
            continue
        if not num_labels:
            values[i] = example.labels[0]
        elif example.labels.dtype == np.float32:
            counts += example.labels.astype(np.int64)
        else:
            counts += np.bincount(example.labels[example.is_target], minlength=num_labels)
    return counts, values


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    """About ten bars of equal width; of whole numbers, with edges at round ones and each bar without its right edge."""
    if values.dtype.kind == "f":
        borders = np.linspace(values.min(), values.max(), BARS + 1)
        if not (np.diff(borders) > 0).all():  # too near to each other for as many bars
            borders = np.array([values.min(), np.nextafter(values.max(), np.inf)])
        heights, _ = np.histogram(values, bins=borders)
        return {"edges": [float(e) for e in borders], "counts": [int(n) for n in heights]}
    low, high = int(values.min()), int(values.max())
    width = next(w for power in range(20) for w in (10**power, 2 * 10**power, 5 * 10**power) if w * BARS > high - low)
    edges = np.arange(low - low % width, high + width + 1, width)
    heights, _ = np.histogram(values, bins=edges)
    used = int(np.flatnonzero(heights)[-1]) + 1
    return {"edges": [int(e) for e in edges[: used + 1]], "counts": [int(n) for n in heights[:used]]}


def source_rows(recipe: Recipe, folder: Path) -> dict[str, int]:
    """Rows that the files of each split hold, counted anew and not by those who read them for training."""
    data = recipe.data
    parts = {"train": data.train, "eval": None if is_share(data.eval) else data.eval, "test": data.test}
    found = {name: sum(1 for one in sources(part) for _ in read_source(one, folder)) for name, part in parts.items()}
    return {name: count for name, count in found.items() if parts[name] is not None}


def account(recipe: Recipe, dataset: Dataset, held: Mapping[str, int]) -> tuple[bool, list[str]]:
    """Whether every row of the sources is accounted for, and a sentence for each source.

    Args:
        recipe: says which rows are held out, and how many are scored.
        dataset: what became of them.
        held: rows of the sources, see `source_rows`.
    """
    every = {"train": dataset.train, "eval": dataset.eval, "test": dataset.test}
    splits = {name: split for name, split in every.items() if split is not None}
    groups = {"train": ["train", "eval"] if "eval" not in held else ["train"], "eval": ["eval"], "test": ["test"]}
    good, lines = True, []
    for source, rows in held.items():
        parts = [name for name in groups[source] if name in splits]
        found = sum(splits[name].report.rows for name in parts)
        terms = [f"{splits[name].report.rows:,} {name}" for name in parts]
        limit = recipe.eval.max_rows
        capped = "eval" in parts and splits["eval"].report.rows == limit
        if len(parts) == 2 and rows == 1 and found == 2:
            lines.append("1 document in data.train, cut in two: train and eval.")
            continue
        if capped and found < rows:
            terms.append(f"{rows - found:,} not scored (eval.max_rows)")
            found = rows
        adds_up = found == rows and all(_adds_up(splits[name]) for name in parts)
        good = good and adds_up
        end = "every row is accounted for." if adds_up else "THIS DOES NOT ADD UP: please report it."
        lines.append(f"{rows:,} rows in data.{source} = {' + '.join(terms)}; {end}")
    return good, lines


def _adds_up(split: Split) -> bool:
    report = split.report
    return report.rows == report.kept + sum(report.dropped.values())


def sentences(name: str, summary: Mapping[str, Any]) -> list[str]:
    """What a table of counts does not say of a split."""
    tokens, unit = summary["tokens"], summary["unit"]
    lines = [f"longest example {summary['longest']:,} tokens, {summary['longest_row']}"]
    if summary["value_histogram"] is not None:
        edges = summary["value_histogram"]["edges"]
        lines.append(f"values from {edges[0]:g} to {edges[-1]:g}")
    elif unit != "labels":
        lines.append(f"{summary['targets']:,} {unit}, {summary['targets'] / tokens:.1%} of {tokens:,} tokens")
    if summary["zero_targets"]:
        lines.append(f"rows dropped because nothing is to be learned from them: {summary['zero_targets']:,}")
    if summary["truncated"]:
        share = summary["truncated"] / summary["kept"]
        lines.append(f"rows cut short: {summary['truncated']:,}, {share:.1%} of those kept")
    if summary["majority"] is not None:
        most, kinds = summary["majority"], len(summary["labels"])
        what = "words" if unit == UNITS["token_labels"] else "rows"
        lines.append(f"{kinds} labels; the most frequent, {most['label']}, in {most['share']:.1%} of {what}")
    return [f"{name}: {line}" for line in lines]


def draw_data(data: Mapping[str, Summary], target: Path | BinaryIO) -> None:
    """A PNG with the histograms of every split."""
    _figure(data).savefig(target, format="png")


def data_svg(data: Mapping[str, Summary]) -> str:
    """The same as an `<svg>` element, whose letters are text and whose names are escaped."""
    import matplotlib as mpl

    target = io.StringIO()
    nobody = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ftune"}):
        _figure(data).savefig(target, format="svg", metadata=nobody)
    text = target.getvalue()
    return text[text.index("<svg") :]


def _figure(data: Mapping[str, Summary]) -> Figure:
    """A line of histograms for each split: tokens, targets, and labels or values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = ("token_histogram", "target_histogram", "value_histogram", "labels")
    shown = [kind for kind in kinds if any(split[kind] is not None for split in data.values())]
    figure = Figure(figsize=(4 * len(shown), 2.8 * len(data)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(data), len(shown), squeeze=False)
    for line, (name, split) in zip(grid, data.items(), strict=True):
        for axes, kind in zip(line, shown, strict=True):
            if split[kind] is None:
                axes.set_visible(False)
            elif kind == "labels":
                _label_bars(axes, name, split["labels"])
            else:
                what = {"token_histogram": "tokens", "target_histogram": split["unit"], "value_histogram": "value"}
                axes.stairs(split[kind]["counts"], split[kind]["edges"], fill=True, color="tab:blue")
                axes.set_xlabel(f"{what[kind]} in an example")
                axes.set_ylabel(f"{name} examples")
                axes.grid(alpha=0.3)
    return figure


def _label_bars(axes: Axes, name: str, labels: Mapping[str, int]) -> None:
    """The most frequent labels, the longest bar on top. Names are data: no mathematics is read into a `$`."""
    most = shown_labels(labels)
    axes.barh(range(len(most)), list(most.values()), color="tab:blue")
    texts = [visible(label).replace("\n", " ")[:24] for label in most]
    axes.set_yticks(range(len(most)), texts, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    rest = len(labels) - len(most)
    axes.set_xlabel(f"{name}: how often each label occurs" + (f" ({rest} more labels)" if rest else ""))


def shown_labels(labels: Mapping[str, int]) -> dict[str, int]:
    """The most frequent labels with their counts."""
    return dict(sorted(labels.items(), key=lambda item: -item[1])[:LABELS])
