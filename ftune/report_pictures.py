"""Pictures of a run as PNG: loss, training, confusion matrix. The page has the same to be played with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftune.data.spell import visible
from ftune.data_report import draw_data
from ftune.page_plots import finite
from ftune.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = (
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens per second"),
)
NAMED = 60
"""Classes up to which a confusion matrix has their names."""


def pictures(files: RunFiles) -> dict[str, bytes]:
    """PNG files by name. The same bytes for the same run and the same matplotlib."""
    found = {"loss.png": _png(_loss(files)), "training.png": _png(_training(files))}
    for split, table in (files.known.get("classes") or {}).items():
        if table.get("confusion"):
            found[f"confusion_{split}.png"] = _png(_confusion(split, list(table["classes"]), table["confusion"]))
    data = files.known.get("data") or {}
    if data and all("token_histogram" in split for split in data.values()):
        target = io.BytesIO()
        draw_data(data, target)
        found["data.png"] = target.getvalue()
    return found


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curve(events: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the events that have a finite number under `key`."""
    return finite((event.get("step"), event.get(key)) for event in events)


def _loss(files: RunFiles) -> Figure:
    """Training and evaluation loss over steps."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    train, held = curve(files.of_kind("step"), "loss"), curve(files.of_kind("eval"), "loss")
    axes.plot([x for x, _ in train], [y for _, y in train], color="0.65", linewidth=1, label="train")
    if held:
        axes.plot([x for x, _ in held], [y for _, y in held], marker="o", color="tab:blue", label="eval")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _training(files: RunFiles) -> Figure:
    """Learning rate, gradient norm and speed over steps."""
    figure = _figure(12, 3)
    for axes, (key, label) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        points = curve(files.of_kind("step"), key)
        axes.plot([x for x, _ in points], [y for _, y in points], color="tab:blue", linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return figure


def _confusion(split: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Rows of each true class by the class they were given, shaded by their share of the true class."""
    import numpy as np

    table = np.array(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.45 * len(names))
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NAMED:
        texts = [visible(name).replace("\n", " ")[:24] for name in names]
        size = 8 if len(names) <= 24 else 5
        axes.set_xticks(range(len(names)), texts, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(len(names)), texts, fontsize=size, parse_math=False)
    if len(names) <= 24:
        for true, given in zip(*np.nonzero(table), strict=True):
            strong = "white" if shares[true, given] > 0.5 else "black"
            axes.text(given, true, str(table[true, given]), ha="center", va="center", fontsize=7, color=strong)
    axes.set_xlabel("predicted label")
    axes.set_ylabel(f"true label ({split} rows)")
    return figure
