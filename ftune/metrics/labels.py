"""Scores of predicted classes: one of many, or several at once.

Values come from scikit-learn; intervals from the same formulas over resamples (`ftune.metrics.bootstrap`).

Arrays: N rows, C classes or labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftune.errors import DivergedError
from ftune.metrics import Score
from ftune.metrics.bootstrap import bootstrap, divide
from ftune.metrics.ranks import auroc

AUROC_ENTRIES = 100_000
"""Rows x classes up to which AUROC gets an interval; ten classes of 10,000 rows take about two seconds."""


def single_label(
    scores: np.ndarray, labels: np.ndarray, metrics: Sequence[str], *, intervals: bool
) -> dict[str, Score]:
    """Those of accuracy, macro_f1, weighted_f1, mcc and auroc that `metrics` names.

    The class with the highest score is the prediction, the first of equals. F1 averages run over the classes that some
    row has or is given. AUROC of two classes is that of class 1; of more, the mean of one against the rest over the
    classes that some but not all rows have. It is left out when all rows are of one class.

    Args:
        scores: float [N, C]; logits. Log-probabilities give the same result.
        labels: int [N], in 0..C-1.
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row.

    Raises:
        DivergedError: a score is not finite.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if len(labels) == 0:
        return {}
    scores = finite(scores)
    predicted = scores.argmax(axis=1)
    measures: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(labels, predicted),
        "macro_f1": lambda: f1_score(labels, predicted, average="macro"),
        "weighted_f1": lambda: f1_score(labels, predicted, average="weighted"),
        "mcc": lambda: matthews_corrcoef(labels, predicted) if len(np.union1d(labels, predicted)) > 1 else 0.0,
    }
    values = {name: float(measure()) for name, measure in measures.items() if name in metrics}

    counters = _counters(labels, predicted, scores.shape[1]) if intervals else ()

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return _of_counts(*((counter @ weights.T).T for counter in counters))

    found = bootstrap(values, statistic, len(labels), intervals=intervals)
    return found | (_auroc(scores, labels, intervals) if "auroc" in metrics else {})


def _counters(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[Any, ...]:
    """Sparse [C, N] matrices that count rows of each class, rows predicted as it, and rows where both agree."""
    from scipy.sparse import csr_array

    rows, shape = np.arange(len(labels)), (num_classes, len(labels))
    every, right = np.ones(len(labels)), (labels == predicted).astype(np.float64)
    cases = ((every, labels), (every, predicted), (right, labels))
    return tuple(csr_array((counted, (classes, rows)), shape=shape) for counted, classes in cases)


def _of_counts(rows: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of [R, C] counts: accuracy, averages of F1, and MCC (Gorodkin 2004)."""
    total, correct = rows.sum(axis=1), hits.sum(axis=1)
    f1 = divide(2 * hits, rows + predicted)
    covariance = correct * total - (rows * predicted).sum(axis=1)
    spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (rows**2).sum(axis=1))
    return {
        "accuracy": correct / total,
        "macro_f1": np.nanmean(f1, axis=1),
        "weighted_f1": (rows * np.nan_to_num(f1)).sum(axis=1) / total,
        "mcc": np.nan_to_num(divide(covariance, np.sqrt(spread))),
    }


def _auroc(scores: np.ndarray, labels: np.ndarray, intervals: bool) -> dict[str, Score]:
    from scipy.special import softmax
    from sklearn.metrics import roc_auc_score

    num_classes = scores.shape[1]
    # A difference of logits orders rows as the probability does, and has no ties where that rounds to 1.
    columns = {1: scores[:, 1] - scores[:, 0]} if num_classes == 2 else dict(enumerate(softmax(scores, axis=1).T))
    columns = {which: column for which, column in columns.items() if len(np.unique(labels == which)) == 2}
    if not columns:
        return {}
    value = np.mean([roc_auc_score(labels == which, column) for which, column in columns.items()])

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        areas = np.stack([auroc(weights, column, labels == which) for which, column in columns.items()])
        present = np.isfinite(areas)
        return {"auroc": divide(np.where(present, areas, 0.0).sum(axis=0), present.sum(axis=0))}

    cheap = len(labels) * len(columns) <= AUROC_ENTRIES
    return bootstrap({"auroc": float(value)}, statistic, len(labels), intervals=intervals and cheap)


def single_label_table(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What happened to each class, for JSON.

    Args:
        scores: float [N, C].
        labels: int [N].
        names: of the C classes.

    Returns:
        `classes`: by name, precision, recall, f1, number of rows and of predictions.
        `confusion`: [C][C] numbers of rows; the first index is the true class, the second the predicted one.

    Raises:
        DivergedError: a score is not finite.
    """
    from sklearn.metrics import confusion_matrix

    predicted = finite(scores).argmax(axis=1)
    every = np.arange(len(names))
    if len(labels) == 0:
        confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    else:
        confusion = confusion_matrix(labels, predicted, labels=every)
    return {
        "classes": by_name(names, confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)),
        "confusion": confusion.tolist(),
    }


def by_name(
    names: Sequence[str], hits: np.ndarray, predicted: np.ndarray, rows: np.ndarray
) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each name from its counts; 0 where nothing can be divided."""
    measures = {
        "precision": np.nan_to_num(divide(hits, predicted)),
        "recall": np.nan_to_num(divide(hits, rows)),
        "f1": np.nan_to_num(divide(2 * hits, predicted + rows)),
        "rows": rows,
        "predicted": predicted,
    }
    return {name: {key: column[i].item() for key, column in measures.items()} for i, name in enumerate(names)}


def multi_label(scores: np.ndarray, labels: np.ndarray, metrics: Sequence[str], *, intervals: bool) -> dict[str, Score]:
    """Those of subset_accuracy, micro_f1 and macro_f1 that `metrics` names.

    A label is given where its logit is above 0, a probability above one half. The macro average runs over the labels
    that some row has or is given; with none, both F1 are 0.

    Args:
        scores: float [N, C]; logits.
        labels: 0 or 1, [N, C].
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row.

    Raises:
        DivergedError: a score is not finite.
    """
    from sklearn.metrics import f1_score

    if len(labels) == 0:
        return {}
    predicted, expected = finite(scores) > 0, labels.astype(bool)
    correct = (predicted == expected).all(axis=1).astype(np.float64)
    hits, sums = (predicted & expected).astype(np.float64), predicted.astype(np.float64) + expected
    used = sums.any(axis=0)  # scikit-learn would count a label that nobody has or gets as F1 0
    measures: dict[str, Callable[[], float]] = {
        "subset_accuracy": lambda: correct.mean(),
        "micro_f1": lambda: f1_score(expected.ravel(), predicted.ravel(), zero_division=0.0),
        "macro_f1": lambda: np.mean([f1_score(expected[:, i], predicted[:, i]) for i in np.flatnonzero(used)] or [0.0]),
    }
    values = {name: float(measure()) for name, measure in measures.items() if name in metrics}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn_hits, drawn_sums = weights @ hits, weights @ sums
        f1 = divide(2 * drawn_hits, drawn_sums)
        return {
            "subset_accuracy": weights @ correct / len(correct),
            "micro_f1": divide(2 * drawn_hits.sum(axis=1), drawn_sums.sum(axis=1)),
            "macro_f1": divide(np.nan_to_num(f1).sum(axis=1), np.isfinite(f1).sum(axis=1)),
        }

    return bootstrap(values, statistic, len(labels), intervals=intervals)


def multi_label_table(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What happened to each label, for JSON: `classes`, as in `single_label_table`.

    Raises:
        DivergedError: a score is not finite.
    """
    predicted, expected = finite(scores) > 0, labels.astype(bool)
    hits = (predicted & expected).sum(axis=0)
    return {"classes": by_name(names, hits, predicted.sum(axis=0), expected.sum(axis=0))}


def finite(scores: np.ndarray) -> np.ndarray:
    """Scores of a model, [N] or [N, C], in float64.

    Raises:
        DivergedError: one is infinite or not a number; says in how many rows and which is the first.
    """
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(axis=1))
        raise DivergedError(
            f"the model's scores of {len(rows)} of {len(scores)} held-out rows are not finite, the first of them row "
            f"{rows[0] + 1}. The weights have diverged: lower train.learning_rate or look at these rows."
        )
    return scores.astype(np.float64)
