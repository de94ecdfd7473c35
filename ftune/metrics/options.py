"""Scores of options by their likelihood, where each row has options of its own.

accuracy and accuracy_norm are what lm-evaluation-harness calls acc and acc_norm, the latter by UTF-8 bytes.

Arrays: N rows, O options of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftune.metrics import Score
from ftune.metrics.bootstrap import ratio
from ftune.metrics.labels import finite


def options(
    scores: Sequence[np.ndarray],
    num_bytes: Sequence[np.ndarray],
    correct: Sequence[int],
    metrics: Sequence[str],
    *,
    intervals: bool,
) -> dict[str, Score]:
    """Those of accuracy and accuracy_norm that `metrics` names: how often the right option has the largest score.

    Args:
        scores: log-probability of each option in nats, float [O] of each of N rows.
        num_bytes: UTF-8 bytes of each option, > 0; accuracy_norm divides by them.
        correct: which option is right, from 0, [N].
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row. The first of equal options is taken.

    Raises:
        DivergedError: a score is not finite.
    """
    if len(scores) == 0:
        return {}
    finite(np.array([row.sum() for row in scores]))
    per_byte = [row / size for row, size in zip(scores, num_bytes, strict=True)]
    rows = {"accuracy": scores, "accuracy_norm": per_byte}
    chosen = {name: [int(row.argmax()) for row in some] for name, some in rows.items() if name in metrics}
    right = {name: np.array(some) == np.asarray(correct) for name, some in chosen.items()}
    every = np.ones(len(scores))
    return {name: ratio(hits.astype(np.float64), every, intervals=intervals) for name, hits in right.items()}
