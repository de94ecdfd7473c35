"""Correlations and the area under the ROC curve of many resamples at once.

Ranks change with the resample. Rows are sorted once; then a cumulative sum of the weights is the rank.

Arrays: R resamples, N rows, G groups of rows with equal values. Weights as in `ftune.metrics.bootstrap`.
"""

from __future__ import annotations

import numpy as np

from ftune.metrics.bootstrap import divide

NEGLIGIBLE = 1e-12
"""A variance below this share of the mean square is rounding: the values are constant."""


def auroc(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Chance that a positive row scores above a negative one, ties counted half (Mann and Whitney 1947).

    Args:
        weights: float64 [R, N].
        scores: float [N].
        positive: bool [N].

    Returns:
        [R]; NaN where a resample has no positive or no negative row.
    """
    hits = weights[:, positive]
    num_hits = hits.sum(axis=1)
    ranks_of_hits = np.einsum("rn,rn->r", hits, _ranks(weights, scores, positive))
    above_a_miss = ranks_of_hits - num_hits**2 / 2  # what hits rank among themselves does not count
    return divide(above_a_miss, num_hits * (len(scores) - num_hits))


def pearson(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of x and y, both [N], in each resample: [R]; 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()  # so that variances are not differences of large numbers
    sums = weights @ np.stack([x, y, x * x, y * y, x * y], axis=1)
    mean_x, mean_y, square_x, square_y, product = sums.T / len(x)
    return _correlation(
        product - mean_x * mean_y, known(square_x - mean_x**2, square_x), known(square_y - mean_y**2, square_y)
    )


def spearman(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of the ranks of x and y, both [N], in each resample: [R]; 0 where one of them is constant."""
    every = np.ones(len(x), dtype=bool)
    rank_x, rank_y = (_ranks(weights, values, every) - len(x) / 2 for values in (x, y))  # the mean rank is N / 2
    weighted_x = weights * rank_x
    products = np.einsum("rn,rn->r", weighted_x, rank_y)
    squares_x = np.einsum("rn,rn->r", weighted_x, rank_x)
    return _correlation(products, squares_x, np.einsum("rn,rn,rn->r", weights, rank_y, rank_y))


def known(variance: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """The variance, or 0 where it is no more than rounding."""
    return np.where(variance > NEGLIGIBLE * mean_square, variance, 0.0)


def _correlation(covariance: np.ndarray, variance_x: np.ndarray, variance_y: np.ndarray) -> np.ndarray:
    found = np.nan_to_num(divide(covariance, np.sqrt(variance_x * variance_y)))
    return np.asarray(np.clip(found, -1.0, 1.0))


def _ranks(weights: np.ndarray, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Rank of the rows that `chosen`, bool [N], picks among all rows drawn: [R, chosen].

    A rank is the number of rows below and half of those that are equal, the row itself among them.
    """
    order = np.argsort(values, kind="stable")
    is_new = np.concatenate([[True], np.diff(values[order]) != 0])
    group_of = np.empty(len(values), dtype=np.int64)
    group_of[order] = np.cumsum(is_new) - 1
    sizes = weights.take(order, axis=1)
    if not is_new.all():
        sizes = np.add.reduceat(sizes, np.flatnonzero(is_new), axis=1)  # [R, G]
    ranks = np.cumsum(sizes, axis=1) - sizes / 2
    return np.asarray(ranks[:, group_of[chosen]])
