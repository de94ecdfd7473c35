"""Scores of labelled tokens: spans that are found with exact boundaries and type, and tokens that are right.

Labels follow the BIO scheme: `O` is outside, `B-x` begins a span of type x, `I-x` goes on. Spans are read as conlleval
reads them, the script of the CoNLL shared tasks (https://aclanthology.org/W00-0726): `I-x` after `O` or after another
type begins a span. A model that forgets a `B` is thus not punished twice. nervaluate reads the spans.

Arrays: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftune.errors import DataError
from ftune.metrics import Score
from ftune.metrics.bootstrap import bootstrap, divide
from ftune.metrics.labels import by_name

Labels = Sequence[Sequence[str]]
"""One list of labels a row, one label a token."""
SPAN_METRICS = ("span_f1", "span_precision", "span_recall")


def not_bio(labels: Sequence[str]) -> list[str]:
    """Those of `labels` that are neither `O` nor `B-` or `I-` and a type; with any, there are no spans to score."""
    return [label for label in labels if label != "O" and not (label.startswith(("B-", "I-")) and len(label) > 2)]


def spans(predicted: Labels, gold: Labels, metrics: Sequence[str], *, intervals: bool) -> dict[str, Score]:
    """Those of span_f1, span_precision, span_recall and token_accuracy that `metrics` names.

    All are sums over every row and type (micro averages). What would be divided by nothing is 0: precision without
    predictions, recall without spans, F1 without either, accuracy without tokens.

    Args:
        predicted: labels of each token of each row.
        gold: the true ones, as many.
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row.

    Raises:
        DataError: spans are asked for, and a label is not of the BIO scheme.
    """
    if len(gold) == 0:
        return {}
    sums = np.zeros((len(gold), 5))  # spans in both, predicted and true; tokens right and in all
    for row, (found, true) in enumerate(zip(predicted, gold, strict=True)):
        sums[row, 3:] = sum(a == b for a, b in zip(found, true, strict=True)), len(true)
    if set(metrics) & set(SPAN_METRICS):
        for row, (found_spans, true_spans) in enumerate(zip(*_spans(predicted, gold), strict=True)):
            sums[row, :3] = len(found_spans & true_spans), len(found_spans), len(true_spans)

    def of_sums(totals: np.ndarray) -> dict[str, np.ndarray]:
        both, found, true, right, tokens = totals.T
        return {
            "span_f1": divide(2 * both, found + true),
            "span_precision": divide(both, found),
            "span_recall": divide(both, true),
            "token_accuracy": divide(right, tokens),
        }

    measured = of_sums(sums.sum(axis=0, keepdims=True))
    values = {name: float(np.nan_to_num(value[0])) for name, value in measured.items() if name in metrics}
    return bootstrap(values, lambda weights: of_sums(weights @ sums), len(gold), intervals=intervals)


def span_table(predicted: Labels, gold: Labels) -> dict[str, Any]:
    """What happened to the spans of each type, for JSON.

    Returns:
        `classes`: by type, precision, recall, f1, number of true spans (`rows`) and of predicted ones.

    Raises:
        DataError: a label is not of the BIO scheme.
    """
    found, true = _spans(predicted, gold)
    types = sorted({kind for row in (*found, *true) for kind, _, _ in row})
    counts = np.zeros((3, len(types)), dtype=np.int64)
    index = {kind: i for i, kind in enumerate(types)}
    for found_spans, true_spans in zip(found, true, strict=True):
        for counter, row in zip(counts, (found_spans & true_spans, found_spans, true_spans), strict=True):
            for kind, _, _ in row:
                counter[index[kind]] += 1
    return {"classes": by_name(types, *counts)}


def _spans(*sides: Labels) -> list[list[set[tuple[str, int, int]]]]:
    """(type, first token, last token) of every span of every row of each side."""
    from nervaluate import list_to_spans

    if odd := not_bio(sorted({label for side in sides for row in side for label in row})):
        raise DataError(
            f"spans need labels O, B-type and I-type; received {', '.join(odd[:8])}. "
            f"Ask for token_accuracy alone, or write the labels in the BIO scheme."
        )
    found = [list_to_spans([list(row) for row in side]) for side in sides]
    return [[{(span["label"], span["start"], span["end"]) for span in row} for row in side] for side in found]
