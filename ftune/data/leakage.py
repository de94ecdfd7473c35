"""Rows that are trained on and scored: the same word for word, or nearly the same.

Held-out rows are indexed, training rows stream past them. Two rows are compared by what is asked (the prompt with its
columns, or the text a label belongs to) and, where there is an answer, by question and answer together. Either being
near makes a leak: who has seen the question has seen the row. Words that a template puts into many rows do not count,
and texts with too few words of their own are compared word for word only.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ftune.data.near import NearIndex, templates_in, without_templates, words_of
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import digest
from ftune.errors import DataError, RowProblem

AUTO = 0.8
"""Threshold of `near_duplicates: auto`."""
AUTO_ROWS = 100_000
"""Rows of train, eval and test together up to which `auto` looks for near duplicates: some 20 seconds."""
NOTED = 5
"""Pairs that the report names."""
TRAIN = "train"


@dataclass(frozen=True)
class Pair:
    """Two rows that are the same or nearly so.

    Args:
        row, other: the row that gives it away, and the held-out one.
        splits: of both.
        similarity: Jaccard, or None where they are the same word for word.
    """

    row: Row
    other: Row
    splits: tuple[str, str]
    similarity: float | None

    def __str__(self) -> str:
        alike = "word for word" if self.similarity is None else f"{self.similarity:.2f}"
        return f"{self.row.file}:{self.row.number} ~ {self.other.file}:{self.other.number} ({alike})"

    def problem(self) -> RowProblem:
        """The pair as a problem of its first row."""
        alike = "word for word" if self.similarity is None else f"nearly, with similarity {self.similarity:.2f}"
        place = f"{self.other.file}:{self.other.number}"
        return self.row.problem(f"of {self.splits[0]} is also in {self.splits[1]}, {alike}: {place}.")


@dataclass(frozen=True)
class Leaks:
    """What train, eval and test share.

    Args:
        train: positions of training rows that are also held out, int64[L].
        found: of (split, held-out split): its rows, and how many of them the other has word for word and nearly.
        pairs: one for each row that gives a held-out row away, with the nearest of those.
        threshold: least similarity of near duplicates; None where only equal rows were looked for.
        remark: why near duplicates were not looked for, or nothing.
    """

    train: np.ndarray
    found: dict[tuple[str, str], tuple[int, int, int]]
    pairs: tuple[Pair, ...]
    threshold: float | None
    remark: str = ""

    @property
    def exact(self) -> int:
        """Held-out rows that are trained on word for word."""
        return sum(exact for (split, _), (_, exact, _) in self.found.items() if split == TRAIN)

    @property
    def near(self) -> int:
        """Held-out rows that are nearly trained on, besides those."""
        return sum(near for (split, _), (_, _, near) in self.found.items() if split == TRAIN)

    def notes(self) -> list[str]:
        """Counts for each two splits, the first pairs, and what was not looked at."""
        lines = []
        for (split, held), (rows, exact, near) in self.found.items():
            nearly = "" if self.threshold is None else f", {near} nearly (similarity >= {self.threshold:g})"
            lines.append(f"{exact + near} of {rows} rows of {held} are also in {split}: {exact} word for word{nearly}.")
        lines += [str(pair) for pair in self.pairs[:NOTED]]
        if len(self.pairs) > NOTED:
            lines.append(f"and {len(self.pairs) - NOTED} more pairs")
        return [f"leakage: {line}" for line in [*lines, *filter(None, [self.remark])]]

    def refuse(self) -> None:
        """Accept no leak.

        Raises:
            DataError: there is one; names every pair.
        """
        if self.pairs:
            raise DataError(
                "rows that are scored are also trained on, or are in eval and test (data.leakage: error). Remove them, "
                "or set data.leakage to drop or warn.",
                problems=[pair.problem() for pair in self.pairs],
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes the same again."""
        places = [(one.row.file, one.row.number, one.other.file, one.other.number) for one in self.pairs]
        return {
            "train": self.train.tolist(),
            "found": [[*splits, *counts] for splits, counts in self.found.items()],
            "pairs": [[*place, *one.splits, one.similarity] for place, one in zip(places, self.pairs, strict=True)],
            "threshold": self.threshold,
            "remark": self.remark,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Leaks:
        """Read what `to_json` wrote."""
        return cls(
            np.array(stored["train"], dtype=np.int64),
            {(one, other): (rows, exact, near) for one, other, rows, exact, near in stored["found"]},
            tuple(
                Pair(Row(file, number, {}), Row(its_file, its_number, {}), (split, held), similarity)
                for file, number, its_file, its_number, split, held, similarity in stored["pairs"]
            ),
            stored["threshold"],
            stored["remark"],
        )


def threshold_of(near: Literal["auto"] | float | None, rows: int) -> float | None:
    """Least similarity that `data.near_duplicates` asks for among so many rows; None looks for equal rows only."""
    return near if near != "auto" else AUTO if rows <= AUTO_ROWS else None


def find_leaks(
    train: Iterable[Sample],
    held: Mapping[str, Iterable[Sample]],
    *,
    near: Literal["auto"] | float | None,
    rows: int,
    tick: Callable[[str, int, int], None],
) -> Leaks:
    """Compare training rows with those of every other split, and these among each other. Reads each iterable once.

    Args:
        train: training rows.
        held: the other splits by name, in the order in which a later one is compared with those before.
        near: `data.near_duplicates`.
        rows: of all splits.
        tick: hears of progress; may raise to stop.
    """
    threshold = threshold_of(near, rows)
    remark = ""
    if near == "auto" and threshold is None:
        remark = (
            f"near duplicates were not looked for among {rows} rows (auto does up to {AUTO_ROWS}). "
            f"Set data.near_duplicates to {AUTO} to look."
        )
    index = _Held(held, threshold)
    tally = _Tally(index)
    between = [
        tally.note(index.splits[key], row, index.matches(index.contents[key], index.words[key]))
        for key, row in enumerate(index.rows)
        if index.splits[key] != index.splits[-1]  # the last split has none to be compared with
    ]
    leaked, pairs = [], []
    for position, sample in enumerate(train):
        if position % 1000 == 0:
            tick("comparing train with held-out rows", position, 0)
        pair = tally.note(TRAIN, sample.row, index.matches(digest(sample.content), index.words_of(sample)))
        if pair is not None:
            leaked.append(position)
            pairs.append(pair)
    pairs += [pair for pair in between if pair is not None]
    return Leaks(np.array(leaked, dtype=np.int64), tally.counts(), tuple(pairs), threshold, remark)


Words = tuple[Sequence[str], Sequence[str]]
"""Of what is asked, and of the answer; or, without templates, of what is asked, and of question and answer together."""
Match = tuple[int, float | None]
"""Number of a held-out row and its similarity, None where it is the same word for word."""


class _Held:
    """Rows of eval and test, to be found by content and by likeness."""

    def __init__(self, held: Mapping[str, Iterable[Sample]], threshold: float | None) -> None:
        self.splits: list[str] = []
        self.rows: list[Row] = []
        self.contents: list[int] = []
        self.by_content: dict[int, list[int]] = defaultdict(list)
        words: list[tuple[list[str], list[str]]] = []
        for name, samples in held.items():
            for sample in samples:
                self.contents.append(digest(sample.content))
                self.by_content[self.contents[-1]].append(len(self.rows))
                self.splits.append(name)
                self.rows.append(Row(sample.row.file, sample.row.number, {}))
                if threshold is not None:
                    words.append(_words(sample))
        one_of_each = {tuple(asked): asked + said for asked, said in words}
        self.templates = templates_in(one_of_each.values())
        self.words = [self._own(*texts) for texts in words] or [((), ())] * len(self.rows)
        self.indexes = () if threshold is None else (NearIndex(threshold), NearIndex(threshold))
        for key, texts in enumerate(self.words):
            for index, own in zip(self.indexes, texts, strict=False):
                index.add(key, own)

    def words_of(self, sample: Sample) -> Words:
        """What a row is compared by."""
        return self._own(*_words(sample)) if self.indexes else ((), ())

    def _own(self, asked: list[str], said: list[str]) -> Words:
        whole = without_templates(asked + said, self.templates) if said else ()
        return without_templates(asked, self.templates), whole

    def matches(self, content: int, words: Words) -> Iterator[Match]:
        """Every held-out row that is the same or near; it may come twice, by question and as a whole."""
        same = self.by_content.get(content, [])
        yield from ((key, None) for key in same)
        for index, own in zip(self.indexes, words, strict=False):
            yield from (match for match in index.matches(own) if match[0] not in same)


class _Tally:
    """Which held-out rows are in which split before theirs."""

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._sizes = Counter(held.splits)
        names = [TRAIN, *self._sizes]
        self._found: dict[tuple[str, str], dict[int, bool]] = {
            (one, other): {} for i, one in enumerate(names) for other in names[i + 1 :]
        }

    def note(self, split: str, row: Row, matches: Iterable[Match]) -> Pair | None:
        """Count the held-out rows that a row of `split` gives away; returns the nearest."""
        best: tuple[float, int] | None = None
        for key, similarity in matches:
            found = self._found.get((split, self._held.splits[key]))
            if found is not None:
                found[key] = found.get(key, False) or similarity is None
                likeness = math.inf if similarity is None else similarity
                if best is None or likeness > best[0]:
                    best = likeness, key
        if best is None:
            return None
        likeness, key = best
        splits = split, self._held.splits[key]
        return Pair(row, self._held.rows[key], splits, None if math.isinf(likeness) else likeness)

    def counts(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """`Leaks.found`."""
        return {
            splits: (self._sizes[splits[1]], sum(found.values()), len(found) - sum(found.values()))
            for splits, found in self._found.items()
            if found
        }


def _words(sample: Sample) -> tuple[list[str], list[str]]:
    asked, said = texts_of(sample)
    return words_of(asked), words_of(said)


def texts_of(sample: Sample) -> tuple[str, str]:
    """What is asked, and what is answered (empty where a row has no answer). A system text is no part of either."""
    first = next((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), len(sample.turns))
    said = " ".join(turn.content for turn in sample.turns[first:])
    if sample.shown:  # a template of the user's shows these columns and nothing else
        values = ((sample.fields or {}).get(name) for name in sample.shown)
        asked = " ".join(str(value) for value in values if value is not None)
    elif sample.turns:
        asked = " ".join(turn.content for turn in sample.turns[:first] if turn.role != "system")
    else:
        asked = " ".join(sample.words) or f"{sample.text} {sample.text_pair}"
    return asked, said
