"""Scores of predicted numbers.

Values come from scikit-learn and scipy; intervals from the same formulas over resamples (`ftune.metrics.bootstrap`).

Arrays: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ftune.metrics import Score
from ftune.metrics.bootstrap import bootstrap, divide
from ftune.metrics.labels import finite
from ftune.metrics.ranks import known, pearson, spearman


def regression(
    predicted: np.ndarray, labels: np.ndarray, metrics: Sequence[str], *, intervals: bool
) -> dict[str, Score]:
    """Those of mae, rmse, pearson, spearman and r2 that `metrics` names.

    A correlation with something constant is 0. R2 of constant labels is 1 when every prediction is right, else 0.

    Args:
        predicted: float [N].
        labels: float [N].
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row.

    Raises:
        DivergedError: a prediction is not finite.
    """
    from scipy import stats
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    if len(labels) == 0:
        return {}
    x, y = finite(predicted), labels.astype(np.float64)
    undefined = _is_constant(x) or _is_constant(y)
    measures: dict[str, Callable[[], float]] = {
        "mae": lambda: mean_absolute_error(y, x),
        "rmse": lambda: root_mean_squared_error(y, x),
        "pearson": lambda: 0.0 if undefined else stats.pearsonr(x, y).statistic,
        "spearman": lambda: 0.0 if undefined else stats.spearmanr(x, y).statistic,
        "r2": lambda: r2_score(y, x) if len(y) > 1 else float(x[0] == y[0]),
    }
    values = {name: float(measure()) for name, measure in measures.items() if name in metrics}
    errors = x - y

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        resampled: dict[str, Callable[[], np.ndarray]] = {
            "mae": lambda: weights @ np.abs(errors) / len(y),
            "rmse": lambda: np.sqrt(weights @ errors**2 / len(y)),
            "pearson": lambda: np.zeros(len(weights)) if undefined else pearson(weights, x, y),
            "spearman": lambda: np.zeros(len(weights)) if undefined else spearman(weights, x, y),
            "r2": lambda: _r2(weights, errors, y - y.mean()),
        }
        return {name: resampled[name]() for name in values}

    return bootstrap(values, statistic, len(labels), intervals=intervals)


def _is_constant(values: np.ndarray) -> bool:
    """Whether all are equal up to rounding, by the bound at which scipy warns."""
    mean = values.mean()
    return bool(np.linalg.norm(values - mean) <= 1e-13 * abs(mean))


def _r2(weights: np.ndarray, errors: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """1 - sum of squared errors / sum of squares around the mean of each resample: [R]."""
    unexplained, mean, mean_square = (weights @ np.stack([errors**2, centred, centred**2], axis=1)).T / len(errors)
    explained = 1 - divide(unexplained, known(mean_square - mean**2, mean_square))
    return np.where(np.isfinite(explained), explained, np.where(unexplained == 0, 1.0, 0.0))
