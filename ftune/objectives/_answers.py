"""What a head said of each row, in the names of its labels.

Arrays: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

MOST_PROBABLE = 10
"""Labels of which a row's probability is kept."""

Label = str | list[str] | float
"""One label, several labels, labels of words, or a number."""


class Answer(NamedTuple):
    """What was expected of a row, what the head said, and how sure it was.

    Args:
        expected: as the row has it.
        received: as the head has it.
        probabilities: of the most probable labels, falling; None where the head has none for whole rows.
    """

    expected: Label
    received: Label
    probabilities: dict[str, float] | None


def one_label(scores: np.ndarray, gold: np.ndarray, names: Sequence[str]) -> list[Answer]:
    """The label with the highest score, the first of equals.

    Args:
        scores: float [N, C]; logits.
        gold: int [N], in 0..C-1.
        names: of the C labels.
    """
    from scipy.special import softmax

    chosen = scores.argmax(axis=1)
    rows = zip(gold.tolist(), chosen.tolist(), softmax(scores.astype("float64"), axis=1), strict=True)
    return [Answer(names[true], names[given], _likeliest(p, names)) for true, given, p in rows]


def several_labels(scores: np.ndarray, gold: np.ndarray, names: Sequence[str]) -> list[Answer]:
    """Labels whose logit is above 0, a probability above one half.

    Args:
        scores: float [N, C]; logits.
        gold: 0 or 1, [N, C].
        names: of the C labels.
    """
    from scipy.special import expit

    def named(flags: np.ndarray) -> list[str]:
        return [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]

    rows = zip(gold > 0.5, scores > 0, expit(scores.astype("float64")), strict=True)
    return [Answer(named(true), named(given), _likeliest(p, names)) for true, given, p in rows]


def numbers(predicted: np.ndarray, gold: np.ndarray) -> list[Answer]:
    """The numbers themselves, both float [N]."""
    return [Answer(true, given, None) for true, given in zip(gold.tolist(), predicted.tolist(), strict=True)]


def word_labels(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> list[Answer]:
    """The label of each word of each row."""
    return [Answer(list(true), list(given), None) for true, given in zip(gold, predicted, strict=True)]


def _likeliest(probabilities: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    order = (-probabilities).argsort(kind="stable")[:MOST_PROBABLE]
    return {names[i]: round(float(probabilities[i]), 6) for i in order}
