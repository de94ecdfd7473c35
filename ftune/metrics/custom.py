"""A metric of the user's own: a function that a recipe names as `module:function` in `eval.metrics`.

    def within_a_cent(received: list[str], expected: list[str]) -> list[float]:
        return [abs(float(r) - float(e)) < 0.01 for r, e in zip(received, expected)]

It gives one number for each row, so that the metric is their mean, with an interval over rows like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftune.errors import MetricError
from ftune.hook import is_hook, load_hook, place_of, what_failed
from ftune.metrics import Score
from ftune.metrics.bootstrap import bootstrap

RowScores = Callable[[list[Any], list[Any]], np.ndarray]
"""From what was received and what was expected, one entry a row, to a score for each row: float64 [N]."""


def load_metrics(names: Sequence[str], folder: Path) -> dict[str, RowScores]:
    """Those of `names` that are `module:function`, as functions that check what they return.

    Args:
        names: of metrics, ours among them.
        folder: the recipe's.

    Raises:
        MetricError: there is no such function, or its module fails.
    """
    return {name: _checked(name, folder) for name in names if is_hook(name)}


def custom(
    received: list[Any], expected: list[Any], functions: Mapping[str, RowScores], *, intervals: bool
) -> dict[str, Score]:
    """The mean over rows of each function's scores, by its name; none where there is no row.

    Args:
        received: what the model said, one entry a row.
        expected: what was right.
        functions: of `load_metrics`.
        intervals: whether 95% intervals are wanted.

    Raises:
        MetricError: a function fails, or does not return one finite number a row.
    """
    if not received or not functions:
        return {}
    rows = {name: function(received, expected) for name, function in functions.items()}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: weights @ scores / len(scores) for name, scores in rows.items()}

    values = {name: float(scores.mean()) for name, scores in rows.items()}
    return bootstrap(values, statistic, len(received), intervals=intervals)


def _checked(name: str, folder: Path) -> RowScores:
    try:
        function = load_hook(name, folder)
    except LookupError as error:
        raise MetricError(f"metric {name}: {error}") from error

    def scores(received: list[Any], expected: list[Any]) -> np.ndarray:
        try:
            given = list(function(list(received), list(expected)))
        except (Exception, SystemExit) as error:  # the user's own code may fail in any way
            raise MetricError(
                f"metric {name} failed at {place_of(error, name, folder)}: {what_failed(error)}."
            ) from error
        if len(given) != len(received):
            raise MetricError(f"metric {name}: expected {len(received)} numbers, one a row, received {len(given)}.")
        return np.array([_number(name, row, value) for row, value in enumerate(given, start=1)], dtype=np.float64)

    return scores


def _number(name: str, row: int, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MetricError(f"metric {name}: expected a finite number for row {row}, received {value!r}.")
    return number
