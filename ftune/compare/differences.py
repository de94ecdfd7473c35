"""Is one system better than another? Two sources of chance: which rows were scored, and which seeds were trained.

Rows are resampled as pairs (`ftune.evidence`). Seeds are few, so their share of the variance is estimated from the
spread of each system's values, as in Welch's test:

    d = mean_s(A_s) - mean_s(B_s)
    var(d) = var of d over resamples of the rows + s_A^2 / S_A + s_B^2 / S_B
    t = d / sqrt(var(d)), with Welch and Satterthwaite's degrees of freedom, the rows' share having infinitely many

A system that was trained once has no spread of its own. Then nothing is said about its method: p is None.

Arrays: S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measured:
    """One metric of one system.

    Args:
        values: on all rows, [S].
        resamples: [S, R], NaN where the metric has no value; None where it has no intervals.
        rows: digest of the rows.
        drawn: whether another seed would have given another value: a trained system, not a baseline.
        bounds: the least and the greatest value that the metric can have.
    """

    values: np.ndarray
    resamples: np.ndarray | None
    rows: str
    drawn: bool
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None where it cannot be known."""
        if not self.drawn:
            return 0.0
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    def ci95(self) -> tuple[float, float] | None:
        """95% interval of the mean over seeds: over rows, and over seeds where there are several."""
        of_rows = _variance_over_rows([(self, 1.0)])
        if of_rows is None:
            return None
        error, freedom = _combined(of_rows, [self])
        half = _t(0.975, freedom) * error
        low, high = self.bounds
        return max(low, self.value - half), min(high, self.value + half)


@dataclass(frozen=True)
class Difference:
    """A minus B.

    Args:
        value: of the means over seeds.
        ci95: None where it cannot be known.
        p: two-sided, of no difference; None where a system was trained under one seed only.
        paired: whether both were scored on the same rows.
    """

    value: float
    ci95: tuple[float, float] | None
    p: float | None
    paired: bool


def difference(a: Measured, b: Measured) -> Difference:
    """A minus B, with its interval and p value."""
    value, paired = a.value - b.value, a.rows == b.rows
    variance = _variance_over_rows([(a, 1.0), (b, -1.0)]) if paired else None
    if variance is None:
        alone = [_variance_over_rows([(one, 1.0)]) for one in (a, b)]
        variance, paired = (None if None in alone else sum(v for v in alone if v is not None)), False
    if variance is None or a.spread is None or b.spread is None:
        return Difference(value, None, None, paired)
    error, freedom = _combined(variance, [a, b])
    if error == 0:
        return Difference(value, (value, value), 1.0 if value == 0 else 0.0, paired)
    from scipy.stats import t

    half = _t(0.975, freedom) * error
    return Difference(value, (value - half, value + half), float(2 * t.sf(abs(value) / error, freedom)), paired)


def _variance_over_rows(signed: Sequence[tuple[Measured, float]]) -> float | None:
    """Variance over resamples of the signed sum of the systems' means over seeds."""
    total: np.ndarray | None = None
    for measured, sign in signed:
        if measured.resamples is None:
            return None
        part = sign * measured.resamples.mean(axis=0)
        total = part if total is None else total + part
    known = np.array([]) if total is None else total[np.isfinite(total)]
    return float(known.var(ddof=1)) if len(known) > 1 else None


def _combined(of_rows: float, systems: Sequence[Measured]) -> tuple[float, float]:
    """Standard error with the seeds' share, and degrees of freedom."""
    shares = [(m.spread**2 / len(m.values), len(m.values) - 1) for m in systems if m.spread]
    variance = of_rows + sum(share for share, _ in shares)
    below = sum(share**2 / free for share, free in shares)
    return math.sqrt(variance), variance**2 / below if below > 0 else math.inf


def _t(quantile: float, freedom: float) -> float:
    from scipy.stats import norm, t

    return float(norm.ppf(quantile) if math.isinf(freedom) else t.ppf(quantile, freedom))


def holm(values: Sequence[float]) -> list[float]:
    """P values that hold for all tests together (Holm 1979, https://www.jstor.org/stable/4615733)."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
