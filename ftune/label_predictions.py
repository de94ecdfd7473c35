"""What a classifier said of each held-out row, to be read by people and counted again by programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftune.data.shape import Sample
from ftune.evaluation import RowLosses
from ftune.objectives import Objective

if TYPE_CHECKING:
    from ftune.objectives._answers import Label

TEXT = 1000
"""Characters of a row's text that are kept beside its label."""


@dataclass(frozen=True)
class LabelPrediction:
    """What was expected of one row, and what came.

    Args:
        file, number: where the row came from.
        text: the first `TEXT` characters of what was labelled.
        expected, received: a label, a list of labels, a number, or the labels of the words.
        probabilities: of the most probable labels; None for numbers and for words.
    """

    file: str
    number: int
    text: str
    expected: Label
    received: Label
    probabilities: dict[str, float] | None

    @property
    def exact(self) -> bool:
        """Whether all of it is right."""
        return self.expected == self.received


def label_predictions(
    losses: RowLosses, objective: Objective, labels: Sequence[str], samples: Iterable[Sample]
) -> list[LabelPrediction]:
    """A prediction for each scored row, in their order; none for language models.

    Args:
        losses: of the rows, with what the head said.
        objective: knows what the head's outputs mean.
        labels: names of the outputs.
        samples: rows that the scored ones are among.
    """
    if losses.outputs is None:
        return []
    answers = objective.answers(losses.outputs, losses.examples, labels)
    texts = {(sample.row.file, sample.row.number): _text(sample) for sample in samples} if answers else {}
    return [
        LabelPrediction(e.file, e.number, texts.get((e.file, e.number), ""), *answer)
        for e, answer in zip(losses.examples, answers, strict=True)
    ]


def class_table(losses: RowLosses, objective: Objective, labels: Sequence[str]) -> dict[str, Any]:
    """What happened to each label, see `Objective.class_table`; empty for language models."""
    return {} if losses.outputs is None else objective.class_table(losses.outputs, losses.examples, labels)


def _text(sample: Sample) -> str:
    text = " ".join(sample.words) or "\n".join(part for part in (sample.text, sample.text_pair) if part)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"
