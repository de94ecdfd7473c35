"""95% intervals: the percentile bootstrap over rows (Efron 1979, https://doi.org/10.1214/aos/1176344552), by scipy.

A resample draws as many rows as there are, with replacement. All that matters is how often it drew each row, so a
statistic is a function of these weights. Sums over a resample are then one matrix product, and 1000 resamples of
10,000 rows take a fraction of a second. The draws depend on the number of rows only, so that metrics of the same rows
see the same resamples.

Arrays: R resamples, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ftune.metrics import Score

RESAMPLES = 1000
ENTRIES_AT_ONCE = 2_000_000
"""Bound of R x N that is held in memory at a time."""
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From weights, float64 [R, N] with rows that sum to N, to values [R] by name; NaN where a resample has no value."""


def bootstrap(values: Mapping[str, float], statistic: Statistic, num_rows: int, *, intervals: bool) -> dict[str, Score]:
    """Give each value its interval.

    A resample on which a metric is not defined (AUROC of one class, precision without predictions) does not count. A
    metric that has no value on half of the resamples gets no interval, and neither does a single row.

    Args:
        values: what was measured on all rows, by name.
        statistic: the same measures of many resamples; it must know every name of `values`.
        num_rows: N.
        intervals: whether they are wanted; if not, nothing is resampled.
    """
    if not intervals or num_rows < 2 or not values:
        return {name: Score(float(value)) for name, value in values.items()}
    from scipy.stats import bootstrap as resample

    def of_rows(rows: np.ndarray, axis: int) -> np.ndarray:
        weights = np.empty(rows.shape)
        for resampled, drawn in zip(weights, rows, strict=True):
            resampled[:] = np.bincount(drawn, minlength=num_rows)
        found = statistic(weights)
        drawn = np.stack([found[name] for name in values])
        is_defined = np.isfinite(drawn)
        return np.stack([np.where(is_defined, drawn, 0.0), is_defined])  # scipy warns of NaN

    distributions, defined = resample(
        (np.arange(num_rows),),
        of_rows,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, ENTRIES_AT_ONCE // num_rows),
        method="percentile",
        rng=np.random.Generator(np.random.Philox(0)),
    ).bootstrap_distribution  # each [names, RESAMPLES]
    return {
        name: Score(
            float(value), _middle_95(distribution[is_defined > 0]), np.where(is_defined > 0, distribution, np.nan)
        )
        for (name, value), distribution, is_defined in zip(values.items(), distributions, defined, strict=True)
    }


def _middle_95(distribution: np.ndarray) -> tuple[float, float] | None:
    if len(distribution) <= RESAMPLES // 2:
        return None
    low, high = np.percentile(distribution, (2.5, 97.5))
    return float(low), float(high)


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, intervals: bool) -> Score:
    """Sum over rows divided by sum over rows, with its interval; both arrays are [N].

    Nothing divided by nothing is 0, for JSON has no NaN.
    """
    below = float(denominator.sum())
    values = {"ratio": float(numerator.sum()) / below if below else 0.0}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"ratio": divide(weights @ numerator, weights @ denominator)}

    return bootstrap(values, statistic, len(numerator), intervals=intervals)["ratio"]


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Element by element; NaN, without a warning, where `below` is 0."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0))
