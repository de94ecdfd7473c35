"""What the model sees of a row, for people: text, what of it is learned, where it was cut, and the labels.

Everything is read off the encoded example, ids and mask, as training gets it, and not off the rendered text. So what
is shown as supervised is supervised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ftune.data.encode import Example
from ftune.data.spell import spell
from ftune.objectives import Encoding


@dataclass(frozen=True)
class Token:
    """One token.

    Args:
        id: its number.
        start, end: its range of characters in the text of its side.
        target: whether it enters the loss.
        special: whether it is one of the tokenizer's special tokens.
        label: the label that is learned at it, or what is to be guessed in its place.
    """

    id: int
    start: int
    end: int
    target: bool
    special: bool
    label: str | None = None


@dataclass(frozen=True)
class Span:
    """A supervised range of characters, made of targets side by side, with what is to be learned there.

    Args:
        start, end: the range.
        target: the text itself, the text that was hidden there, or the label.
    """

    start: int
    end: int
    target: str


@dataclass(frozen=True)
class Cut:
    """A place, before character `at`, where the overlong policy took out so many tokens."""

    at: int
    tokens: int


@dataclass(frozen=True)
class Side:
    """What is read, or what a decoder writes."""

    text: str
    tokens: tuple[Token, ...]
    spans: tuple[Span, ...]
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Word:
    """A labelled word, and the number of the token that has its label; without `word` where it cannot be told."""

    word: str | None
    label: str
    label_id: int
    token: int


@dataclass(frozen=True)
class View:
    """One example. When rows are packed, their borders belong beside the cuts of a side.

    Args:
        file, row: where the row is.
        window, windows: which part of its row it is, from 1, and of how many.
        answers: whether the parts are answers of a chat, each with what stands before it, and not windows of a text.
        times: how often an epoch has it.
        reads: text that the model reads.
        writes: text that a decoder learns to write.
        labels: number and name of each label of the row, where rows have labels.
        value: the number to be predicted.
        words: labelled words, where words have labels.
        dropped: why the row is not trained on.
    """

    file: str
    row: int
    reads: Side
    window: int = 1
    windows: int = 1
    answers: bool = False
    times: float = 1.0
    writes: Side | None = None
    labels: tuple[tuple[int, str], ...] | None = None
    value: float | None = None
    words: tuple[Word, ...] | None = None
    dropped: str | None = None

    @property
    def part(self) -> str:
        """Which part of its row it is, in words; nothing for a whole row."""
        kind = "answer" if self.answers else "window"
        return f"{kind} {self.window} of {self.windows}" if self.windows > 1 else ""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The one or two texts."""
        return (self.reads,) if self.writes is None else (self.reads, self.writes)


@dataclass(frozen=True)
class Lens:
    """How examples become views.

    Args:
        decode: spells token ids, special ones too.
        special_ids: of the tokenizer.
        encoding: of the objective.
        names: labels in the order of a head's outputs.
    """

    decode: Callable[[list[int]], str]
    special_ids: frozenset[int]
    encoding: Encoding
    names: tuple[str, ...]

    def view(self, example: Example, *, drawn: Example, whole: Example | None, words: Sequence[str] = ()) -> View:
        """What there is to see of an example.

        Args:
            example: one of a split.
            drawn: the same with parts hidden, where the objective hides any.
            whole: the same before it was cut to size, where it was.
            words: of the row, in order, where words have labels.
        """
        reads, writes = self._reads(drawn), None
        if whole is not None:
            reads = _cut(reads, example.ids, whole.ids)
        if drawn.answer is not None:
            writes = self._side(drawn.answer, drawn.is_target)
            if whole is not None and example.answer is not None and whole.answer is not None:
                writes = _cut(writes, example.answer, whole.answer)
            elif whole is not None and np.array_equal(drawn.answer, example.ids):  # BART writes the whole text again
                writes = _cut(writes, example.ids, whole.ids)
        view = View(example.file, example.number, reads, writes=writes)
        if self.encoding == "token_labels":
            return replace(view, words=self._words(example, whole or example, words))
        return replace(view, **self._row_labels(example)) if self.encoding == "row_labels" else view

    def _reads(self, example: Example) -> Side:
        """The text, with what is learned at its own tokens."""
        if self.encoding in ("row_labels", "pairs") or example.answer is not None:
            return self._side(example.ids, np.zeros(len(example.ids), dtype=bool))
        if self.encoding == "token_labels" and example.labels is not None:
            named = [self.names[label] for label in example.labels]
            return self._side(example.ids, example.is_target, labels=named)
        return self._side(example.ids, example.is_target, hidden=example.labels)

    def _side(
        self,
        ids: np.ndarray,
        is_target: np.ndarray,
        *,
        hidden: np.ndarray | None = None,
        labels: Sequence[str] | None = None,
    ) -> Side:
        """A text with its targets: each with a label of its own, with something else to be guessed, or themselves."""
        text, ranges = spell(ids.tolist(), self.decode)
        told: dict[int, str] = {}
        spans: list[Span] = []
        for first, last in _runs(is_target, one_by_one=labels is not None):
            start, end = ranges[first][0], ranges[last - 1][1]
            if labels is not None:
                target = told[first] = labels[first]
            elif hidden is not None:
                target = self.decode(hidden[first:last].tolist())
                told |= {t: self.decode([int(hidden[t])]) for t in range(first, last)}
            else:
                target = text[start:end]
            if spans and start < spans[-1].end and labels is None and hidden is None:
                # two targets of one character, with something between that is none
                start = spans.pop().start
                target = text[start:end]
            spans.append(Span(start, end, target))
        tokens = (
            Token(int(i), *ranges[t], bool(is_target[t]), int(i) in self.special_ids, told.get(t))
            for t, i in enumerate(ids)
        )
        return Side(text, tuple(tokens), tuple(spans))

    def _row_labels(self, example: Example) -> dict[str, Any]:
        given = example.labels
        if given is None:
            return {}
        if not self.names:
            return {"value": float(given[0])}
        chosen = np.flatnonzero(given) if given.dtype == np.float32 else given
        return {"labels": tuple((int(i), self.names[int(i)]) for i in chosen)}

    def _words(self, example: Example, whole: Example, words: Sequence[str]) -> tuple[Word, ...]:
        """Each label with its token; and with its word, unless some word of the row has no token of its own."""
        if example.labels is None:
            return ()
        known = whole.num_targets == len(words)
        return tuple(
            Word(words[n] if known else None, self.names[example.labels[t]], int(example.labels[t]), int(t))
            for n, t in enumerate(np.flatnonzero(example.is_target))
        )


def _runs(is_target: np.ndarray, *, one_by_one: bool) -> list[tuple[int, int]]:
    """Ranges of tokens, [first, last), that are targets side by side."""
    if one_by_one:
        return [(int(t), int(t) + 1) for t in np.flatnonzero(is_target)]
    edges = np.flatnonzero(np.diff(is_target.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _cut(side: Side, kept: np.ndarray, whole: np.ndarray) -> Side:
    """The side with a mark where `kept` lacks tokens of `whole`: at the end, or before all that ends both.

    Counted from the end, as hiding may shorten a text.
    """
    missing = len(whole) - len(kept)
    if missing <= 0:
        return side
    after = 0
    if not np.array_equal(kept, whole[: len(kept)]):
        differs = kept != whole[missing:]
        after = len(kept) if not differs.any() else int(differs[::-1].argmax())
    at = side.tokens[-after].start if after else len(side.text)
    return replace(side, cuts=(Cut(at, missing),))


def view_json(view: View, *, tokens: bool) -> dict[str, Any]:
    """A view as `ftune data --json` prints it; `docs/look_at_data.md` has the schema."""
    found: dict[str, Any] = {"row": view.row, "file": view.file, "window": view.window, "windows": view.windows}
    if view.answers:
        found["parts"] = "answers"
    if view.times != 1:
        found["times"] = view.times
    if view.dropped is not None:
        found["dropped"] = view.dropped
    found |= _side_json(view.reads, tokens=tokens)
    if view.writes is not None:
        found["answer"] = _side_json(view.writes, tokens=tokens)
    if view.value is not None:
        found["value"] = view.value
    if view.words is not None:
        found["words"] = [asdict(word) for word in view.words]
    if view.labels is not None:
        found["labels"] = [{"id": number, "name": name} for number, name in view.labels]
    return found


def _side_json(side: Side, *, tokens: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": side.text,
        "spans": [asdict(span) for span in side.spans],
        "cuts": [asdict(cut) for cut in side.cuts],
    }
    return found | ({"tokens": [asdict(token) for token in side.tokens]} if tokens else {})
