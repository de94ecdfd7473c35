"""Which rows go together into one forward: end to end, side by side, or so many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftune.data.encode import Example


@dataclass(frozen=True)
class Cut:
    """How the rows of a step are cut into forwards.

    Args:
        rows: so many rows a forward, where `tokens` is None.
        tokens: at most so many tokens a forward, pads included; a longer row has a forward of its own.
        overhead: what a forward costs besides its tokens, in tokens.
        packed: rows are laid end to end instead of side by side.
    """

    rows: int
    tokens: int | None = None
    overhead: int = 0
    packed: bool = False

    def of(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Forwards of `examples`, which come from the longest to the shortest."""
        if self.packed and self.tokens is not None:
            return first_fit(examples, self.tokens)
        return [[*examples[part]] for part in self.side_by_side(examples)]

    def side_by_side(self, examples: Sequence[Example]) -> list[slice]:
        """Neighbours that are padded to the longest of them, also where training packs."""
        if self.tokens is None:
            return [slice(i, i + self.rows) for i in range(0, len(examples), self.rows)]
        return least_padded(examples, self.tokens, self.overhead)


def first_fit(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    """Put examples into packs of at most `capacity` tokens each, in the order given: the first pack with room.

    On examples from the longest to the shortest this is first-fit-decreasing, which needs at most 11/9 of the fewest
    packs and one more (Johnson 1973). An example above the capacity has a pack of its own.
    """
    packs: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        size = example.num_tokens
        number = next((i for i, left in enumerate(room) if left >= size), None)
        if number is None:
            packs.append([example])
            room.append(capacity - size)
        else:
            packs[number].append(example)
            room[number] -= size
    return packs


def least_padded(examples: Sequence[Example], capacity: int, overhead: int) -> list[slice]:
    """Cut examples into runs of neighbours that cost least in all, by dynamic programming from the last to the first.

    A run costs its rows times its longest text and its longest answer, and `overhead`. On examples sorted by length,
    without answers, no other grouping costs less: a row that changes places with a longer one never makes it cheaper.

    Args:
        examples: from the longest to the shortest.
        capacity: the most tokens of a run, pads included; one example may have more.
        overhead: what a run costs besides its tokens, in tokens.
    """
    count = len(examples)
    texts = np.array([len(example.ids) for example in examples], dtype=np.int64)
    answers = np.array([0 if example.answer is None else len(example.answer) for example in examples], dtype=np.int64)
    cost = np.zeros(count + 1, dtype=np.int64)
    stop = np.zeros(count, dtype=np.int64)
    for start in reversed(range(count)):
        most = min(count, start + max(1, capacity // max(1, int(texts[start] + answers[start]))))
        longest = np.maximum.accumulate(texts[start:most]) + np.maximum.accumulate(answers[start:most])
        padded = np.arange(1, most - start + 1) * longest
        padded = padded[: max(1, int(np.searchsorted(padded, capacity, side="right")))]
        options = padded + cost[start + 1 : start + 1 + len(padded)]
        best = int(np.argmin(options))
        stop[start], cost[start] = start + 1 + best, overhead + options[best]
    runs, start = list[slice](), 0
    while start < count:
        runs.append(slice(start, int(stop[start])))
        start = int(stop[start])
    return runs
