"""Options of a row scored by their likelihood: the choices of a question, or the labels of a text. Nothing is written.

    score(option) = log p(option | prompt)  [- log p(option | prompt without content)]

The second term is contextual calibration: Zhao et al. 2021, https://arxiv.org/abs/2102.09690, section 5, whose diagonal
W divides each probability by that of a content-free prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ftune.data.chat import Turn
from ftune.data.choices import LETTERS, Choices
from ftune.data.encode import Example
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError
from ftune.metrics import Score, names_of

OptionTexts = Literal["letters", "texts"]
DEFAULT_TEMPLATE = "{{ text }}{% if text_pair %}\n{{ text_pair }}{% endif %}"
"""What a language model reads of a row with a label, where no template says otherwise."""
LABEL = "\nLabel:"
"""What follows it."""
CONTENT_FREE = "N/A"
"""In place of all that a row says, where scores are calibrated; the first of the three texts of Zhao et al."""
OPTION_METRICS = names_of("options")
LABEL_METRICS = (*names_of("single_label"), "accuracy_norm")


@dataclass(frozen=True)
class Question:
    """A row with options.

    Args:
        sample: the row, whose last turn is the right option as a model would write it.
        options: texts as a model would write them after the prompt, with a space before them where one is needed.
        correct: which of them is right, from 0.
    """

    sample: Sample
    options: tuple[str, ...]
    correct: int

    @property
    def num_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each option, without the space before it."""
        return np.array([len(option.strip().encode()) for option in self.options])


def letters_or_texts(renderer: Renderer, shown: Sequence[str]) -> OptionTexts:
    """Which options suit a prompt: letters where it shows the choices beside letters, as training had it; else texts.

    Args:
        renderer: of the prompts.
        shown: columns that its template shows.
    """
    return "texts" if renderer.mode == "prompt" and "choices" not in shown else "letters"


def question_of(
    sample: Sample, labels: Sequence[str], texts: OptionTexts, renderer: Renderer, *, spaced: bool
) -> Question:
    """A row as a question: one with choices, or else one with a label.

    Args:
        sample: the row.
        labels: the options of rows with a label.
        texts: what the options of rows with choices are.
        renderer: of the prompts.
        spaced: whether a space goes before the option where the prompt does not end in white space.

    Raises:
        DataError: the prompt cannot be rendered, or no training row has the label.
    """
    row = sample.row
    if sample.choices:
        options = LETTERS[: len(sample.choices)] if texts == "letters" else sample.choices
        correct = LETTERS.index(sample.turns[-1].content)
        asked = sample.turns[:-1]
    else:
        options, asked = tuple(labels), (Turn("user", sample.text),)
        if sample.label not in labels:
            known = ", ".join(labels)
            raise DataError(f"{row.file}:{row.number}: label {sample.label!r} is in no training row. Known: {known}.")
        correct = labels.index(str(sample.label))
    bare = replace(sample, turns=asked)
    try:
        prompt = renderer.prompt(bare)
    except ValueError as error:
        raise DataError(f"{row.file}:{row.number}: {error}.") from error
    space = " " if spaced and prompt and not prompt[-1].isspace() else ""
    written = tuple(f"{space}{option}" for option in options)
    return Question(replace(bare, turns=(*asked, Turn("assistant", written[correct]))), written, correct)


def content_free(question: Question) -> Question:
    """The same question without content: `N/A` for the text, or for the question and each of its choices."""
    sample = question.sample
    fields = {name: _emptied(value) for name, value in (sample.fields or {}).items()}
    count = len(sample.choices)
    words = Choices(CONTENT_FREE, (CONTENT_FREE,) * count, 0).prompt if count else CONTENT_FREE
    turns = (Turn("user", words), sample.turns[-1])
    return replace(question, sample=replace(sample, turns=turns, fields=fields, text=CONTENT_FREE))


def _emptied(value: Any) -> Any:
    if isinstance(value, list):
        return [_emptied(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _emptied(one) for name, one in value.items()}
    return CONTENT_FREE if value not in (None, "") else value


def option_examples(questions: Sequence[Question], shown: Sequence[Sample], renderer: Renderer) -> list[Example]:
    """Every option of every question after its prompt, as tokens of which those of the option are the targets.

    Args:
        questions: N rows.
        shown: the same rows with their demonstrations, [N].
        renderer: of the prompts.
    """
    pairs = []
    for question, sample in zip(questions, shown, strict=True):
        prompt = renderer.prompt(sample)
        pairs += [(sample, prompt, option) for option in question.options]
    texts = [f"{prompt}{option}" for _, prompt, option in pairs]
    encoded = renderer.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for (sample, prompt, option), ids, offsets in zip(
        pairs, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        front = renderer.missing_front(ids, special=renderer.mode != "chat")
        # a token that spells the end of the prompt and the start of the option belongs to the option
        first = next(place for place, (_, end) in enumerate(offsets) if end > len(prompt))
        is_target = np.arange(len(front) + len(ids)) >= max(1, len(front) + first)
        tokens = np.array([*front, *ids], dtype=np.int32)
        found.append(Example(tokens, is_target, len(option.encode()), sample.row.file, sample.row.number))
    return found


Nats = Callable[[Sequence[Example], Sequence[int]], np.ndarray]
"""From examples [N] and the question of each, -log p of their targets, float64 [N]."""


def log_probabilities(
    questions: Sequence[Question], shown: Sequence[Sample], renderer: Renderer, nats: Nats, *, at_once: int
) -> list[np.ndarray]:
    """Log-probability in nats of each option of each question, given its prompt.

    Args:
        questions: N rows.
        shown: the same rows with their demonstrations, [N].
        renderer: of the prompts.
        nats: the model.
        at_once: questions whose options are in memory at a time.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(questions), at_once):
        some = questions[start : start + at_once]
        examples = option_examples(some, shown[start : start + at_once], renderer)
        sizes = [len(question.options) for question in some]
        owners = np.repeat(np.arange(len(some)), sizes)
        scores = -nats(examples, owners.tolist())
        found += np.split(scores, np.cumsum(sizes)[:-1])
    return found


def option_scores(
    questions: Sequence[Question], scores: Sequence[np.ndarray], metrics: Sequence[str], *, labelled: bool
) -> dict[str, Score]:
    """Those of `metrics` that score options, with intervals.

    Args:
        questions: N rows.
        scores: of the options of each.
        metrics: names; others are passed over.
        labelled: whether all rows have the same options, the labels: then metrics of labels are there too.
    """
    from ftune.metrics.labels import single_label
    from ftune.metrics.options import options

    correct = np.array([question.correct for question in questions])
    sizes = [question.num_bytes for question in questions]
    found = options(scores, sizes, correct.tolist(), metrics, intervals=True)
    if labelled and len(scores):
        found |= single_label(np.stack(scores), correct, metrics, intervals=True)
    return {name: found[name] for name in metrics if name in found}
