"""Encoded examples on disk: flat arrays that are read where they are needed, and what became of every row.

E examples, R encoded rows, T tokens of all examples.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ftune.data.cache import Entry, facts_of
from ftune.data.columns import Columns, ColumnsWriter, chunks, joined, numbered
from ftune.data.encode import Encoded, Example
from ftune.data.pipeline import few_collections
from ftune.data.table import KEPT_PROBLEMS, SampleTable
from ftune.errors import RowProblem

FLUSH = 512
"""Rows whose examples are written together."""
_TYPES = {
    "ids": "i4", "is_target": "u1", "end": "i8", "target_end": "i8", "num_bytes": "i8", "num_targets": "i8", "of": "i8",
    "digest": "u8", "row": "i8", "reason": "u1", "truncated": "u1", "merges": "u1", "lost": "i4", "note": "u1",
}  # fmt: skip
"""Arrays that every file has: of tokens, of examples, of rows."""
_OPTIONAL = ("answer", "answer_end", "labels", "label_end")
_PARTS = {"ids": "end", "is_target": "target_end", "answer": "answer_end", "labels": "label_end"}
"""Arrays that are laid end to end, and where the part of each example ends."""


def write_tokens(folder: Path, rows: Iterable[int], encoded: Iterable[Encoded]) -> dict[str, Any]:
    """Write what became of rows into `folder`; returns the facts that `TokenFile` needs besides the files.

    Args:
        folder: to be filled.
        rows: numbers of the rows in their table, at least R.
        encoded: what became of each, R.
    """
    reasons: dict[str, int] = {"": 0}
    notes: dict[str, int] = {"": 0}
    problems: list[tuple[int, str]] = []
    ends = dict.fromkeys(_PARTS.values(), 0)
    with ColumnsWriter(folder, _TYPES) as columns, few_collections():
        waiting: dict[str, list[Any]] = {name: [] for name in (*_TYPES, *_OPTIONAL)}

        def flush() -> None:
            for name, values in waiting.items():
                if values:
                    columns.add(name, np.concatenate(values) if name in _PARTS else np.array(values))
                    values.clear()

        position = -1
        for position, (one, row) in enumerate(zip(encoded, rows, strict=False)):
            waiting["row"].append(row)
            waiting["reason"].append(reasons.setdefault(one.reason, len(reasons)))
            waiting["truncated"].append(one.truncated)
            waiting["merges"].append(one.merges)
            waiting["lost"].append(one.lost)
            waiting["note"].append(notes.setdefault(one.note, len(notes)))
            if one.message and len(problems) < KEPT_PROBLEMS:
                problems.append((position, one.message))
            for example in one.examples:
                _lay_out(example, position, waiting, ends)
            if (position + 1) % FLUSH == 0:
                flush()
        flush()
    return {"rows": position + 1, "reasons": list(reasons), "notes": list(notes), "problems": problems}


def _lay_out(example: Example, position: int, waiting: dict[str, list[Any]], ends: dict[str, int]) -> None:
    """Append one example to the arrays."""
    told = []
    for name, end in _PARTS.items():
        values = getattr(example, name)
        if values is None:
            told.append(b"\xff")
            continue
        told += len(values).to_bytes(4, "little"), values.tobytes()
        ends[end] += len(values)
        waiting[name].append(values)
        waiting[end].append(ends[end])
    waiting["num_bytes"].append(example.num_bytes)
    waiting["num_targets"].append(example.num_targets)
    waiting["of"].append(position)
    waiting["digest"] += struct.unpack("<QQ", hashlib.blake2b(b"".join(told), digest_size=16).digest())


class TokenFile(Sequence[Example]):
    """Examples of rows of one table.

    Args:
        entry: what `write_tokens` wrote.
        table: where the rows are.
    """

    def __init__(self, entry: Entry, table: SampleTable) -> None:
        self._keeper = entry.keeper
        self.facts = facts_of(entry.folder)
        self.table = table
        self.columns = Columns(entry.folder)
        self.has_answers, self.has_labels = "answer" in self.columns, "labels" in self.columns

    def __len__(self) -> int:
        return self.columns.size("of")

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Examples: ...
    def __getitem__(self, number: int | slice) -> Example | Examples:
        """One example, or a view of some."""
        if isinstance(number, slice):
            return Examples((self,), numbered(len(self))[number])
        number = range(len(self))[number]
        file, line = self.table.place(self.columns.one("row", self.columns.one("of", number)))
        return Example(
            ids=self._part("ids", "end", number),
            is_target=self._part("is_target", "target_end", number).view(bool),
            num_bytes=self.columns.one("num_bytes", number),
            file=file,
            number=line,
            answer=self._part("answer", "answer_end", number) if self.has_answers else None,
            labels=self._part("labels", "label_end", number) if self.has_labels else None,
        )

    def _part(self, name: str, end: str, number: int) -> np.ndarray:
        start, stop = self.columns.part(end, number - 1, number + 1) if number else (0, self.columns.one(end, 0))
        return self.columns.part(name, int(start), int(stop))

    def num_tokens(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of each of some examples that a model reads, int64."""
        ends = ("end", "answer_end") if self.has_answers else ("end",)
        return np.asarray(sum(self.columns.take(end, numbers) - self.columns.before(end, numbers) for end in ends))

    def digests(self, numbers: np.ndarray) -> np.ndarray:
        """16 bytes for all that training sees of each of some examples, uint64 [., 2]."""
        places = np.stack([2 * numbers.astype(np.int64), 2 * numbers.astype(np.int64) + 1], axis=1)
        return self.columns.take("digest", places)

    def problems(self, chosen: np.ndarray) -> list[RowProblem]:
        """What is wrong with the first of the encoded rows for which `chosen`, bool [R], is true."""
        found = [
            (self.table.place(self.columns.one("row", at)), what) for at, what in self.facts["problems"] if chosen[at]
        ]
        return [RowProblem(file, line, what) for (file, line), what in found]


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """A view of examples of some files, in order.

    Args:
        files: one for each source.
        chosen: numbers of the examples, counted through all files, int32 or int64 [E], ascending.
    """

    files: tuple[TokenFile, ...]
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Examples: ...
    def __getitem__(self, place: int | slice) -> Example | Examples:
        """One example, or a view of some."""
        if isinstance(place, slice):
            return Examples(self.files, self.chosen[place])
        number = int(self.chosen[place])
        file = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.files[file][number - int(self.starts[file])]

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Number of each file's first example, and of all, int64 [files + 1]."""
        return np.cumsum([0, *map(len, self.files)])

    @property
    def source(self) -> np.ndarray:
        """Number of each example's file, int32 [E]."""
        return np.repeat(np.arange(len(self.files), dtype=np.int32), [len(part) for part in self._parts()])

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each example, int64 [E]."""
        return joined((file.num_tokens(some) for file, some in self._pieces()), len(self))

    @property
    def num_targets(self) -> np.ndarray:
        """Targets of each example, int64 [E]."""
        return joined((file.columns.take("num_targets", some) for file, some in self._pieces()), len(self))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all examples in order: equal when, and only when, training would see the same."""
        digest = hashlib.sha256()
        for file, some in self._pieces():
            digest.update(file.digests(some).tobytes())
        return digest.hexdigest()

    def _parts(self) -> list[np.ndarray]:
        """Examples of each file, as it counts them."""
        bounds = np.searchsorted(self.chosen, self.starts)
        pairs = zip(bounds[:-1], bounds[1:], self.starts[:-1], strict=True)
        return [self.chosen[low:high] - int(start) for low, high, start in pairs]

    def _pieces(self) -> Iterator[tuple[TokenFile, np.ndarray]]:
        """Some examples of a file at a time, in order."""
        for file, part in zip(self.files, self._parts(), strict=True):
            for some in chunks(part):
                yield file, some
