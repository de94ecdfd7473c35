"""Few-shot prompts: which training rows stand before a row as demonstrations, and how they are written.

In-context learning is Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2. Which demonstrations are near is
Liu et al. 2022, https://arxiv.org/abs/2101.06804: by the cosine of embeddings, the nearest right before the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ftune.data.chat import Turn
from ftune.data.order import derived_seed, permutation
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Demonstrations = Literal["random", "balanced", "nearest"]
SEPARATOR = "\n\n"
"""Between demonstrations where no chat template is: a blank line."""
ANSWERS = frozenset(
    {"answer", "answer_index", "answer_letter", "answer_text", "completion", "label", "labels", "output", "target"}
)
"""Columns that say what is right; two rows with the same others have the same text."""


@dataclass
class Pool:
    """Training rows that may be shown, in an order that the seed draws.

    Args:
        train: rows of the recipe's train split.
        held_out: every row that is, or may be, scored. A row with the text of one of them is never shown.
        seed: the recipe's.
    """

    train: Sequence[Sample]
    held_out: Iterable[Sample]
    seed: int
    _found: list[Sample] = field(default_factory=list)
    _walk: Iterator[Sample] | None = None

    def first(self, count: int) -> list[Sample]:
        """The first `count` rows of the order, of which no two have the same text. More begin with fewer.

        Raises:
            DataError: there are not so many.
        """
        self._walk = self._walk or self._allowed()
        while len(self._found) < count:
            sample = next(self._walk, None)
            if sample is None:
                raise self._too_few(count)
            self._found.append(sample)
        return self._found[:count]

    def balanced(self, count: int) -> list[Sample]:
        """A row of each label in turn, labels and rows in the order that was drawn.

        Raises:
            DataError: there are not so many.
        """
        by_label: dict[str, list[Sample]] = {}
        for sample in self.all():
            by_label.setdefault(label_of(sample), []).append(sample)
        longest = max(map(len, by_label.values()), default=0)
        rounds = [rows[i] for i in range(longest) for rows in by_label.values() if i < len(rows)]
        if len(rounds) < count:
            raise self._too_few(count)
        return rounds[:count]

    def all(self) -> list[Sample]:
        """Every row that may be shown."""
        self._walk = self._walk or self._allowed()
        self._found += list(self._walk)
        return self._found

    def _allowed(self) -> Iterator[Sample]:
        seen = {text_of(sample) for sample in self.held_out}
        for place in permutation(derived_seed("shots", self.seed), 0, len(self.train)):
            sample = self.train[int(place)]
            text = text_of(sample)
            if text not in seen and _answered(sample):
                seen.add(text)
                yield sample

    def _too_few(self, count: int) -> DataError:
        return DataError(
            f"shots: expected {count} demonstrations, but data.train has {len(self.all())} rows with an answer and a "
            "text that no other row has and no scored row. Ask for fewer shots, or give data.train more rows."
        )


def text_of(sample: Sample) -> str:
    """What a row asks, in one spelling: two rows of equal text are the same question, whatever their answers."""
    text = sample.group
    if not text:  # a template shows columns of other names
        fields = sample.fields or {}
        text = " ".join(str(fields.get(name)) for name in sample.shown if name not in ANSWERS)
    return " ".join(text.split()).casefold()


def label_of(sample: Sample) -> str:
    """The label of a row, or its answer."""
    return sample.label if isinstance(sample.label, str) else sample.turns[-1].content.strip()


def _answered(sample: Sample) -> bool:
    if sample.turns:
        ends = [turn for turn in sample.turns if turn.role == "assistant"]
        return bool(ends and ends[-1].weight)
    return isinstance(sample.label, str)


def shown_before(sample: Sample, demonstrations: Sequence[Sample], renderer: Renderer) -> Sample:
    """A row with demonstrations before it, which are never scored.

    Where a chat template renders, they are earlier turns, and the system message is the row's own. Elsewhere they are
    rendered prompts with their answers, each followed by a blank line.

    Raises:
        DataError: a demonstration cannot be rendered.
    """
    if not demonstrations:
        return sample
    if renderer.mode == "chat":
        system = [turn for turn in sample.turns if turn.role == "system"]
        own = [turn for turn in sample.turns if turn.role != "system"]
        before = [turn for one in demonstrations for turn in _told(one)]
        return replace(sample, turns=(*system, *before, *own))
    return replace(sample, before="".join(written(one, renderer) for one in demonstrations))


def _told(sample: Sample) -> list[Turn]:
    """The turns of a conversation up to its last answer, none of them to be scored."""
    last = max(number for number, turn in enumerate(sample.turns) if turn.role == "assistant")
    turns = [turn for turn in sample.turns[: last + 1] if turn.role != "system"]
    return [replace(turn, weight=0) if turn.role == "assistant" else turn for turn in turns]


def written(sample: Sample, renderer: Renderer) -> str:
    """One demonstration as text, with the blank line after it.

    Raises:
        DataError: it cannot be rendered.
    """
    try:
        return f"{renderer.prompt(sample)}{sample.turns[-1].content}{SEPARATOR}"
    except ValueError as error:
        raise DataError(
            f"{sample.row.file}:{sample.row.number}: cannot be shown as a demonstration: {error}."
        ) from error


def nearest(rows: np.ndarray, pool: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` nearest vectors by cosine, int64 [R, count], the nearest last; of equal ones the first.

    Args:
        rows: float [R, D].
        pool: float [P, D], of which P >= count.
        count: how many.
    """
    closeness = _unit(rows) @ _unit(pool).T  # [R, P]
    return np.argsort(-closeness, axis=1, kind="stable")[:, :count][:, ::-1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def embeddings(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    pad_id: int,
    batch_size: int,
    max_length: int | None,
    tick: Callable[[int, int], None],
) -> np.ndarray:
    """The mean of the last hidden states over the words of each row, without template and answer, float32 [R, D].

    Args:
        model: the language model that is scored, on its device.
        samples: R rows.
        renderer: its tokenizer is used.
        pad_id: fills short rows; masked.
        batch_size: rows of a forward.
        max_length: words beyond so many tokens are not read; None reads all.
        tick: called with (done, in all); may raise to stop.
    """
    import torch

    from ftune.compiled import uncompiled
    from ftune.methods._feature_model import hidden_states, num_layers_of, pooled

    body = model.base_model
    device, last = next(model.parameters()).device, num_layers_of(body)
    ids = [renderer.prompt_ids(_words(sample) or " ", raw=True)[:max_length] for sample in samples]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        tick(start, len(order))
        some = order[start : start + batch_size]
        width = len(ids[some[0]])
        tokens = torch.tensor([ids[i] + [pad_id] * (width - len(ids[i])) for i in some], device=device)
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in some], device=device)
        with uncompiled():
            means = pooled(hidden_states(body, tokens, mask, (last,)), mask, "mean")[:, 0]
        found |= dict(zip(some, means.cpu().numpy(), strict=True))
    return np.stack([found[i] for i in range(len(ids))])


def _words(sample: Sample) -> str:
    asked = "\n".join(turn.content for turn in sample.turns if turn.role == "user")
    return asked or f"{sample.text} {sample.text_pair}".strip() or text_of(sample)
