"""Linear fits on features that take no training loop: a logistic head, and ridge probes that rank layers and poolings.

Probes of layers: Alain & Bengio 2016, https://arxiv.org/abs/1610.01644. The fits are scikit-learn's.

Tensors: N rows or tokens, F features, K labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftune.errors import DataError
from ftune.methods._feature_model import Reading

if TYPE_CHECKING:
    import numpy as np

    from ftune.data.encode import Example

PROBE_ROWS = 10_000
"""Rows, or labelled tokens, that a sweep looks at, at most."""
FEWEST = 10
"""Rows that a sweep needs: two to hold out."""
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Ridge penalties on standardised features; each probe takes what leaving single rows out shows to be best."""
MAX_ITERATIONS = 1000
CONSTANT = 1e-5
"""A feature whose deviation is below this share of its size is constant: what is left is rounding."""
CHUNK = 4096


@dataclass(frozen=True)
class Labels:
    """What features are to tell.

    Args:
        values: class numbers int64 [N], or float64 [N, K]: zeros and ones, or one number.
        groups: number of the row that each comes from, from 0, [N]; rows are held out whole.
        num_classes: 0 where `values` are no classes.
    """

    values: np.ndarray
    groups: np.ndarray
    num_classes: int

    @property
    def score_name(self) -> str:
        """What `sweep` compares."""
        return "accuracy" if self.num_classes else "r2"


def labels_of(examples: Sequence[Example], num_classes: int, *, per_token: bool) -> Labels:
    """Labels of rows, or of all their labelled tokens one after another."""
    import numpy as np

    given = [np.asarray(example.labels) for example in examples]
    if per_token:
        given = [labels[example.is_target] for labels, example in zip(given, examples, strict=True)]
    groups = np.repeat(np.arange(len(given)), [len(labels) if per_token else 1 for labels in given])
    if num_classes:
        return Labels(np.concatenate(given).astype(np.int64), groups, num_classes)
    return Labels(np.stack(given).astype(np.float64), groups, 0)


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature over N, float32 [F]; a constant feature has deviation 1."""
    import numpy as np

    total, width = features.shape
    mean, squares = np.zeros(width), np.zeros(width)
    for start in range(0, total, CHUNK):
        mean += features[start : start + CHUNK].sum(axis=0, dtype=np.float64)
    mean /= total
    for start in range(0, total, CHUNK):
        squares += np.square(features[start : start + CHUNK] - mean).sum(axis=0)
    deviation = np.sqrt(squares / total)
    deviation[deviation <= CONSTANT * np.maximum(np.abs(mean), CONSTANT)] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def candidates(
    found: Mapping[str, np.ndarray], layers: tuple[int, ...], *, one_by_one: bool
) -> dict[Reading, np.ndarray]:
    """Features [N, F] of each way to read a body, from those of all layers [N, L, D] by pooling.

    Each layer is a way of its own, or all of them side by side are one.
    """
    groups = [((layer,), slice(n, n + 1)) for n, layer in enumerate(layers)] if one_by_one else [(layers, slice(None))]
    return {
        Reading(group, pooling): array[:, place].reshape(len(array), -1)
        for group, place in groups
        for pooling, array in found.items()
    }


def sweep(ways: Mapping[Reading, np.ndarray], labels: Labels, seed: int) -> tuple[list[dict[str, Any]], Reading]:
    """Score a ridge probe of each way to read the body on a held-out fifth of the training rows.

    Args:
        ways: features [N, F] of each way to read the body.
        labels: of the same N.
        seed: draws the held-out rows.

    Returns:
        One entry for each probe, and the best way; of equals the deepest.

    Raises:
        DataError: there are too few rows.
    """
    fit, held = _parts(labels.groups, seed)
    scores = {reading: _probe(features, labels, fit, held) for reading, features in ways.items()}
    table = [
        {"layers": list(reading.layers), "pooling": reading.pooling, labels.score_name: round(score, 6)}
        for reading, score in scores.items()
    ]
    return table, max(scores, key=lambda reading: (scores[reading], reading.layers))


def _parts(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to fit on and positions that are held out, at most about `PROBE_ROWS` in all.

    Raises:
        DataError: there are too few rows.
    """
    import numpy as np

    sizes = np.bincount(groups)
    if len(sizes) < FEWEST:
        message = f"a sweep holds out a fifth of the training rows and needs {FEWEST}; there are {len(sizes)}."
        raise DataError(f"{message} Name a layer and a pooling instead.")
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(sizes)), kind="stable")
    used = order[: max(FEWEST, int(np.searchsorted(np.cumsum(sizes[order]), PROBE_ROWS, side="right")))]
    held = used[: len(used) // 5]
    return np.flatnonzero(np.isin(groups, np.setdiff1d(used, held))), np.flatnonzero(np.isin(groups, held))


def _probe(features: np.ndarray, labels: Labels, fit: np.ndarray, held: np.ndarray) -> float:
    import numpy as np
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score

    known, unseen = features[fit], features[held]
    mean, deviation = statistics(known)
    known, unseen = ((part.astype(np.float64) - mean) / deviation for part in (known, unseen))
    values = np.eye(labels.num_classes)[labels.values] if labels.num_classes else labels.values
    probe = RidgeCV(alphas=STRENGTHS).fit(known, values[fit])
    said = probe.predict(unseen).reshape(len(held), -1)
    if labels.num_classes:
        return float(np.mean(said.argmax(axis=1) == labels.values[held]))
    return float(r2_score(values[held].reshape(len(held), -1), said, multioutput="variance_weighted"))


def logistic(
    features: np.ndarray, labels: Labels, names: Sequence[str], *, penalty: float, class_weight: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Multinomial logistic regression by L-BFGS: least sum of -log p(label) + penalty/2 |W|^2.

    Args:
        features: as the head reads them, [N, F].
        labels: classes.
        names: of the classes.
        penalty: 1 / C of scikit-learn.
        class_weight: for each name, `balanced`, or None.

    Returns:
        W [K, F], bias [K], and notes on the fit.

    Raises:
        DataError: a class has no row left, or there is only one class.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(names) < 2:
        raise DataError(f"head logistic tells labels apart, and all training rows have the same label, {names[0]!r}.")
    counts = np.bincount(labels.values, minlength=len(names))
    if not counts.all():
        lacking = names[int(counts.argmin())]
        raise DataError(f"label {lacking!r} has no row left to learn from. See data.overlong, or take head linear.")
    weights = {names.index(n): w for n, w in class_weight.items()} if isinstance(class_weight, dict) else class_weight
    fit = LogisticRegression(C=1 / penalty, class_weight=weights, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the notes tell
        fit.fit(features.astype(np.float64), labels.values)
    iterations = int(fit.n_iter_[0])
    notes = {"iterations": iterations, "converged": iterations < MAX_ITERATIONS}
    if len(names) > 2:
        return fit.coef_, fit.intercept_, notes
    zero = np.zeros_like(fit.coef_)  # of two labels scikit-learn keeps the difference
    return np.concatenate([zero, fit.coef_]), np.concatenate([[0.0], fit.intercept_]), notes
