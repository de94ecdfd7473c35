"""Rows on disk: samples as JSON in an Arrow file, of which a batch is in memory, and a few numbers of each beside it.

The Arrow file is read in plain reads and not mapped, so that memory does not grow with what was looked at.
R rows, P labels of rows.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from ftune.data.cache import Entry, facts_of
from ftune.data.columns import Columns, ColumnsWriter, chunks, joined, numbered
from ftune.data.labelled import label_names
from ftune.data.line import from_json, to_json
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import digest, group_of
from ftune.errors import RowProblem

BATCH_ROWS = 1024
BATCH_BYTES = 4 << 20
"""A batch of rows ends at either."""
KEPT_PROBLEMS = 1000
"""Problems that are kept with their words; the others are counted."""
_FILE = "rows.arrow"
_TYPES = {
    "content": "u8",
    "group": "u8",
    "number": "i8",
    "file": "i4",
    "answered": "u1",
    "label": "i4",
    "label_end": "i8",
}


class TableWriter:
    """Writes samples into a folder, one after the other. Use as a context manager.

    Args:
        folder: to be filled.
        group_by: column whose value is a row's group; None takes the first question, or the document.
    """

    def __init__(self, folder: Path, group_by: str | None = None) -> None:
        self._folder = folder
        self._group_by = group_by
        self._columns = ColumnsWriter(folder, _TYPES)
        self._waiting: list[bytes] = []
        self._numbers: dict[str, list[int]] = {name: [] for name in _TYPES}
        self._starts = [0]
        self._files: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._num_labels = self._size = 0
        self._problems: list[tuple[int, int, str, str, bool]] = []
        self._bad_rows = self._num_problems = 0

    def __enter__(self) -> TableWriter:
        import pyarrow

        self._columns.__enter__()
        self._schema = pyarrow.schema([("sample", pyarrow.large_binary())])
        self._arrow = pyarrow.ipc.new_file(str(self._folder / _FILE), self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._columns.__exit__(kind, error, at)
        self._arrow.close()

    def add(self, sample: Sample) -> None:
        """Write one row."""
        line = to_json(sample)
        self._waiting.append(line)
        row, numbers = sample.row, self._numbers
        numbers["content"].append(digest(sample.content))
        numbers["group"].append(digest(group_of(sample, self._group_by)))
        numbers["number"].append(row.number)
        numbers["file"].append(self._files.setdefault(row.file, len(self._files)))
        numbers["answered"].append(bool(sample.turns))
        label = sample.label
        names = (label,) if isinstance(label, str) else sorted(set(label)) if isinstance(label, tuple) else ()
        numbers["label"] += [self._labels.setdefault(name, len(self._labels)) for name in names]
        self._num_labels += len(names)
        numbers["label_end"].append(self._num_labels)
        self._size += len(line)
        if len(self._waiting) >= BATCH_ROWS or self._size >= BATCH_BYTES:
            self._flush()

    def refuse(self, problems: Sequence[RowProblem]) -> None:
        """Note everything that is wrong with one row."""
        self._bad_rows += 1
        self._num_problems += len(problems)
        for one in problems:
            if len(self._problems) >= KEPT_PROBLEMS and not one.ends:
                continue
            number = self._files.setdefault(one.file, len(self._files))
            self._problems.append((number, one.row, one.message, one.field, one.ends))

    def _flush(self) -> None:
        import pyarrow

        if not self._waiting:
            return
        column = pyarrow.array(self._waiting, pyarrow.large_binary())
        self._arrow.write_batch(pyarrow.record_batch([column], schema=self._schema))
        for name, numbers in self._numbers.items():
            self._columns.add(name, numbers)
            numbers.clear()
        self._starts.append(self._starts[-1] + len(self._waiting))
        self._waiting.clear()
        self._size = 0

    def facts(self, named: Sequence[str]) -> dict[str, Any]:
        """What `SampleTable` needs to know besides the files; call it when all is written.

        Args:
            named: files of the source in their order. Rows refer to them by number, so that files may move.
        """
        return {
            "rows": self._starts[-1],
            "starts": self._starts,
            "files": [named.index(file) if file in named else file for file in self._files],
            "labels": list(self._labels),
            "problems": self._problems,
            "num_problems": self._num_problems,
            "bad_rows": self._bad_rows,
        }


class SampleTable(Sequence[Sample]):
    """Rows of one source.

    Args:
        entry: what a `TableWriter` wrote.
        named: files of the source, in the order they had then.
    """

    def __init__(self, entry: Entry, named: Sequence[str]) -> None:
        import pyarrow

        self._keeper = entry.keeper
        self.facts = facts_of(entry.folder)
        self.files = tuple(named[file] if isinstance(file, int) else str(file) for file in self.facts["files"])
        self.columns = Columns(entry.folder)
        self._starts = np.array(self.facts["starts"])
        self._reader = pyarrow.ipc.open_file(pyarrow.OSFile(str(entry.folder / _FILE)))
        self._batch: tuple[int, list[bytes]] = (-1, [])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Sample | Rows:
        """One row, or a view of some."""
        if isinstance(place, slice):
            return Rows((self,), numbered(len(self))[place])
        place = range(len(self))[place]
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        if self._batch[0] != number:
            self._batch = (number, self._reader.get_batch(number).column(0).to_pylist())
        file, line = self.place(place)
        return from_json(self._batch[1][place - int(self._starts[number])], Row(file, line, {}))

    def place(self, place: int) -> tuple[str, int]:
        """File and number of a row, as errors name them."""
        return self.files[self.columns.one("file", place)], self.columns.one("number", place)

    def take(self, name: str, places: np.ndarray) -> np.ndarray:
        """A number of some rows: content, group, answered; or drawn.

        That is a digest of a row's file name and number, uint64: moving a project does not change it.
        """
        if name != "drawn":
            return self.columns.take(name, places)
        names = np.array([digest(Path(file).name) for file in self.files] or [0], dtype=np.uint64)
        odd = np.uint64(0x9E3779B97F4A7C15)  # so nothing collides
        spread = self.columns.take("number", places).astype(np.uint64) * odd
        return np.asarray(names[self.columns.take("file", places)] + spread)

    @property
    def problems(self) -> list[RowProblem]:
        """What is wrong with the first bad rows, and wherever the rest of a file could not be read."""
        return [RowProblem(self.files[file], *rest) for file, *rest in self.facts["problems"]]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Sample]):
    """A view of rows of some tables, in order.

    Args:
        tables: one for each source.
        chosen: numbers of the rows, counted through all tables, int32 or int64 [R], ascending.
    """

    tables: tuple[SampleTable, ...]
    chosen: np.ndarray

    @classmethod
    def all(cls, tables: Sequence[SampleTable]) -> Rows:
        """Every row of some tables."""
        return cls(tuple(tables), numbered(sum(map(len, tables))))

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Sample | Rows:
        """One row, or a view of some."""
        if isinstance(place, slice):
            return Rows(self.tables, self.chosen[place])
        table, row = self._find(int(self.chosen[place]))
        return self.tables[table][row]

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))

    def _find(self, row: int) -> tuple[int, int]:
        table = int(np.searchsorted(self.starts, row, side="right")) - 1
        return table, row - int(self.starts[table])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Number of each table's first row, and of all rows, int64[tables + 1]."""
        return np.cumsum([0, *map(len, self.tables)])

    def where(self, which: np.ndarray) -> Rows:
        """Those rows for which `which`, bool[R], is true; or those it names, int64."""
        return Rows(self.tables, self.chosen[which])

    def parts(self) -> list[np.ndarray]:
        """Rows of each table, as it counts them."""
        bounds = np.searchsorted(self.chosen, self.starts)
        pairs = zip(bounds[:-1], bounds[1:], self.starts[:-1], strict=True)
        return [self.chosen[low:high] - int(start) for low, high, start in pairs]

    def place(self, place: int) -> str:
        """`file:row`."""
        table, row = self._find(int(self.chosen[place]))
        file, number = self.tables[table].place(row)
        return f"{file}:{number}"

    def numbers(self, name: str) -> np.ndarray:
        """A number of each row: content, group, drawn or answered."""
        return joined(self.pieces(name), len(self))

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """The same in pieces, of which one is in memory."""
        for table, rows in zip(self.tables, self.parts(), strict=True):
            for some in chunks(rows):
                yield table.take(name, some)

    @property
    def identity(self) -> str:
        """SHA-256 over what these rows say and where they are, in order."""
        digest = hashlib.sha256(json.dumps([table.files for table in self.tables]).encode())
        for name in ("content", "drawn"):
            for piece in self.pieces(name):
                digest.update(piece.tobytes())
        return digest.hexdigest()

    def label_pairs(self, names: Sequence[str]) -> np.ndarray:
        """(row, position in `names`) of every label of every row, int64[P, 2]; -1 for other labels."""
        return np.concatenate([np.zeros((0, 2), np.int64), *self._label_pieces(names)])

    def _label_pieces(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        known = {name: number for number, name in enumerate(names)}
        first = 0
        for table, rows in zip(self.tables, self.parts(), strict=True):
            ours = np.array([known.get(name, -1) for name in table.facts["labels"]] or [-1])
            for some in chunks(rows) if table.facts["labels"] else ():
                ends = table.columns.take("label_end", some)
                counts = ends - table.columns.before("label_end", some)
                offsets = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
                owners = np.repeat(np.arange(first, first + len(some)), counts)
                yield np.stack([owners, ours[table.columns.take("label", offsets)]], axis=1)
                first += len(some)
            first += 0 if table.facts["labels"] else len(rows)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label of these rows, in the order of a model's outputs."""
        every = label_names([name for table in self.tables for name in table.facts["labels"]])
        counts = self.label_counts(every)
        return label_names(name for name in every if counts[name])

    def label_counts(self, names: Sequence[str]) -> dict[str, int]:
        """How many rows have each label."""
        counts = np.zeros(len(names) + 1, np.int64)
        for piece in self._label_pieces(names):
            counts += np.bincount(piece[:, 1] + 1, minlength=len(counts))
        return dict(zip(names, counts[1:].tolist(), strict=True))
