"""What a metric is called, which way is better, and where it applies.

This file is cold: it imports the standard library only, so that `ftune check` can look names up. The numbers are made
by the files beside it: `labels` (classes, several labels, a number), `spans` (labels of tokens), `texts` (generated
text), `options` (likelihoods of options), and `bootstrap` (intervals). Each takes plain arrays and lists and returns a
`Score` by name. docs/metrics.md gives every formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Kind = Literal["likelihood", "single_label", "multi_label", "regression", "token_labels", "text", "options"]
"""What is compared: a likelihood, one class of many, several labels at once, a number, labels of tokens, text, or the
likelihoods of options."""


@dataclass(frozen=True)
class Score:
    """A metric and its 95% bootstrap interval over rows; both are finite.

    `resamples` is what the metric is on each resample, float64 [R], NaN where it has no value there. The r-th resample
    of the same rows is the same for every system, so that differences between two systems can be resampled as pairs.
    """

    value: float
    ci95: tuple[float, float] | None = None
    resamples: Any = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Value and interval."""
        return {"value": self.value, "ci95": self.ci95}


class Metric(NamedTuple):
    """Which way is better, and the kinds of answer that a metric can score."""

    better: Literal["higher", "lower"]
    kinds: tuple[Kind, ...]


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "loss": Metric("lower", ("likelihood",)),
        "perplexity": Metric("lower", ("likelihood",)),
        "bits_per_byte": Metric("lower", ("likelihood",)),
        "accuracy": Metric("higher", ("single_label", "options")),
        "accuracy_norm": Metric("higher", ("options",)),
        "macro_f1": Metric("higher", ("single_label", "multi_label")),
        "weighted_f1": Metric("higher", ("single_label",)),
        "mcc": Metric("higher", ("single_label",)),
        "auroc": Metric("higher", ("single_label",)),
        "micro_f1": Metric("higher", ("multi_label",)),
        "subset_accuracy": Metric("higher", ("multi_label",)),
        "mae": Metric("lower", ("regression",)),
        "rmse": Metric("lower", ("regression",)),
        "pearson": Metric("higher", ("regression",)),
        "spearman": Metric("higher", ("regression",)),
        "r2": Metric("higher", ("regression",)),
        "span_f1": Metric("higher", ("token_labels",)),
        "span_precision": Metric("higher", ("token_labels",)),
        "span_recall": Metric("higher", ("token_labels",)),
        "token_accuracy": Metric("higher", ("token_labels",)),
        "exact_match": Metric("higher", ("text",)),
        "numeric_match": Metric("higher", ("text",)),
        "token_f1": Metric("higher", ("text",)),
        "bleu": Metric("higher", ("text",)),
        "chrf": Metric("higher", ("text",)),
        "rouge1": Metric("higher", ("text",)),
        "rouge2": Metric("higher", ("text",)),
        "rougeL": Metric("higher", ("text",)),
    }
)
"""Every metric there is, by the name a recipe uses."""


def better_of(name: str) -> Literal["higher", "lower"]:
    """Which way is better; a metric of the user's own is a score, so higher."""
    return METRICS[name].better if name in METRICS else "higher"


def bounds_of(name: str) -> tuple[float, float]:
    """The least and the greatest value that a metric can have; of the user's own nothing is known."""
    if name not in METRICS or name == "r2":
        return -math.inf, 1.0 if name == "r2" else math.inf
    if better_of(name) == "lower":
        return (1.0 if name == "perplexity" else 0.0), math.inf
    if name in ("mcc", "pearson", "spearman"):
        return -1.0, 1.0
    return 0.0, 100.0 if name in ("bleu", "chrf") else 1.0


def names_of(kind: Kind) -> tuple[str, ...]:
    """Metrics that can score answers of this kind, in the order of `METRICS`."""
    return tuple(name for name, metric in METRICS.items() if kind in metric.kinds)


LIKELIHOODS = names_of("likelihood")
"""Metrics of how likely the expected answers are to the model."""
