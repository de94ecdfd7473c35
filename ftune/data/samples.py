"""`data:` of a recipe becomes the rows of each split, in one shape and on disk, before any tokenizer.

Each source is read once and kept in the cache as a table; a split is a choice of rows of tables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data import split as splits
from ftune.data.cache import Cache, code_version, key_of
from ftune.data.read import locate, read_source
from ftune.data.render import template_columns
from ftune.data.shape import Sample, detect_format, to_sample
from ftune.data.table import Rows, SampleTable, TableWriter
from ftune.errors import DataError, RowProblem
from ftune.manifest import sha256_of
from ftune.quantities import is_share, parse_share
from ftune.recipe import Data, Source, sources

Tick = Callable[[str, int, int], None]
"""Called with (what is going on, done, in all); may raise to stop."""
Follow = Callable[[Iterator[Sample]], None]
"""Takes every sample of a source while it is read."""
NOT_OF_ROWS = {
    "train", "eval", "test", "template", "train_on", "max_length", "overlong", "packing", "on_bad_row", "max_dropped",
}  # fmt: skip
"""Keys of `data` that do not shape the rows of a source. What is not named here is part of the key of its table."""


def exhaust(rows: Iterator[Sample]) -> None:
    """Let all rows be read."""
    for _ in rows:
        pass


@dataclass(frozen=True)
class Samples:
    """Rows of each split in one shape, before any tokenizer.

    Args:
        train, eval, test, guard: rows; of eval and guard, those that are scored.
        formats: of all sources.
        duplicates: rows that were left out of train as they say what another says.
        overlap: how many rows of eval and test are also in train.
        bad_rows: rows that were skipped, by split.
        skipped: the first of them, for people.
        held: how many rows were held out, of which `eval` may be a part.
        weights: of the sources of train.
        keys: of the tables, None for one that is not kept.
    """

    train: Rows
    eval: Rows
    test: Rows
    formats: tuple[str, ...]
    duplicates: Rows
    overlap: int
    guard: dict[str, Rows]
    bad_rows: dict[str, int]
    skipped: dict[str, list[RowProblem]]
    held: int
    weights: tuple[float, ...]
    keys: dict[SampleTable, str | None] = field(repr=False)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label of the training rows, in the order of a model's outputs."""
        return self.train.labels


@dataclass(frozen=True)
class Reader:
    """Reads sources, each into a table of its own."""

    data: Data
    folder: Path
    accepted: frozenset[str]
    cache: Cache
    tick: Tick
    formats: list[str] = field(default_factory=list)
    keys: dict[SampleTable, str | None] = field(default_factory=dict)

    def table(self, block: Source, follow: Follow = exhaust) -> SampleTable:
        """The rows of one source, from the cache or its files; `follow` takes each sample as it is read."""
        files = locate(block, self.folder)
        named = [str(file) for file in files or []]
        key = self.key(block)

        def write(folder: Path) -> dict[str, Any]:
            found: list[str] = []
            with TableWriter(folder) as writer:
                follow(self._samples(block, writer, found))
            return {**writer.facts(named), "format": found[0]}

        entry = self.cache.entry("rows", key, write, lambda: self.tick("waiting for another process", 0, 0))
        table = SampleTable(entry, named)
        self.formats.append(table.facts["format"])
        self.keys[table] = key
        return table

    def key(self, block: Source) -> str | None:
        """Everything that the table of a source depends on; None where that cannot be told."""
        files = locate(block, self.folder)
        if files is None and not re.fullmatch(r"[0-9a-f]{40}", block.revision or ""):
            return None  # what the hub has now may be something else tomorrow
        content = [block.path] if files is None else [_identity(file) for file in files]
        return key_of({
            "code": _code(),
            "content": content,
            "source": block.model_dump(mode="json", exclude={"path", "weight"}),
            "data": self.data.model_dump(mode="json", exclude=NOT_OF_ROWS),
            "shown": template_columns(self.data.template),
            "accepted": sorted(self.accepted),
        })  # fmt: skip

    def _samples(self, block: Source, writer: TableWriter, found: list[str]) -> Iterator[Sample]:
        """All rows of a source, each once it is written; puts their format into `found` at the end.

        Raises:
            DataError: a column is named that no row has.
        """
        mapping = self.data.columns if block.columns is None else block.columns
        chosen: str = block.format or self.data.format
        shown, unseen, bad = template_columns(self.data.template), set(mapping.values()), 0
        for count, row in enumerate(read_source(block, self.folder)):
            if count % 1000 == 0:
                self.tick(f"reading {block.path}", count, 0)
            if isinstance(row, RowProblem):
                writer.refuse([row])
                bad += 1
                continue
            if chosen == "auto":
                chosen = detect_format(list(row.values), mapping, row.file, self.accepted)
            unseen -= row.values.keys()
            sample = to_sample(row, chosen, mapping, shown)
            if isinstance(sample, Sample):
                writer.add(sample)
                yield sample
            else:
                writer.refuse(sample)
                bad += 1
        if unseen and not bad:  # an optional column: of any other, each row would have told
            raise DataError(
                f"{block.path}: no row has the columns that data.columns names: {', '.join(sorted(unseen))}."
            )
        found.append(chosen)

    def cut(self, table: SampleTable, share: float) -> SampleTable:
        """A table of a single document in two parts, the second to be held out."""
        whole = self.keys[table]
        key = None if whole is None else key_of({"whole": whole, "share": share})
        named = list(table.files)

        def write(folder: Path) -> dict[str, Any]:
            with TableWriter(folder) as writer:
                for part in splits.cut_document(table[0], share):
                    writer.add(part)
            return {**writer.facts(named), "format": table.facts["format"]}

        parts = SampleTable(self.cache.entry("rows", key, write, lambda: self.tick("waiting", 0, 0)), named)
        self.keys[parts] = key
        return parts


def read_samples(
    data: Data,
    folder: Path,
    *,
    accepted: frozenset[str],
    seed: int,
    max_eval_rows: int | None,
    tick: Tick,
    guard: Sequence[str | Source] = (),
    cache: Cache | None = None,
    ahead: Callable[[Reader, Source], SampleTable] = Reader.table,
) -> Samples:
    """Read and check every row of a recipe; needs no tokenizer.

    Args:
        data: what the recipe says.
        folder: the recipe's.
        accepted: formats that the objective learns from.
        seed: chooses held-out rows.
        max_eval_rows: at most so many of them are kept.
        tick: hears of progress.
        guard: other rows that are scored before and after.
        cache: where tables are kept; None keeps none.
        ahead: makes the tables of the training rows, and what it likes besides.

    Raises:
        DataError: rows that cannot be read, by file and row.
    """
    reader = Reader(data, folder, accepted, cache or Cache(), tick)
    blocks = {"train": sources(data.train), "test": sources(data.test)}
    blocks["eval"] = [] if is_share(data.eval) else sources(data.eval)
    named = {f"guard {name}": [source] for name, source in _named(sources(list(guard))).items()}
    tables = {
        name: [ahead(reader, block) if name == "train" else reader.table(block) for block in each]
        for name, each in (blocks | named).items()
    }
    _refuse_bad_rows(tables, data)
    rows = {name: Rows.all(each) for name, each in tables.items()}
    train, held = rows["train"], rows["eval"]
    duplicates = train.where(np.zeros(len(train), dtype=bool))
    if is_share(data.eval):
        train, held, duplicates = _held_out(train, parse_share(str(data.eval)), seed, reader)
    content = train.numbers("content")
    common = sum(int(splits.overlap(content, other.numbers("content")).sum()) for other in (held, rows["test"]))
    return Samples(
        train=train,
        eval=_drawn(held, max_eval_rows, seed),
        test=rows["test"],
        formats=tuple(dict.fromkeys(reader.formats)),
        duplicates=duplicates,
        overlap=common,
        guard={name.removeprefix("guard "): _drawn(rows[name], max_eval_rows, seed) for name in named},
        bad_rows={name: sum(table.facts["bad_rows"] for table in each) for name, each in tables.items()},
        skipped={name: [one for table in each for one in table.problems] for name, each in tables.items()},
        held=len(held),
        weights=tuple(block.weight for block in blocks["train"]),
        keys=reader.keys,
    )


def _refuse_bad_rows(tables: dict[str, list[SampleTable]], data: Data) -> None:
    every = [table for each in tables.values() for table in each]
    total = sum(table.facts["num_problems"] for table in every)
    if total and data.on_bad_row == "error":
        raise DataError(problems=[problem for table in every for problem in table.problems], total=total)
    if empty := [name for name, each in tables.items() if each and not sum(map(len, each))]:
        problems = [problem for table in tables[empty[0]] for problem in table.problems]
        raise DataError(f"data.{empty[0]}: every row is bad.", problems=problems)


def _held_out(train: Rows, share: float, seed: int, reader: Reader) -> tuple[Rows, Rows, Rows]:
    """Training rows, held-out rows and the duplicates that are neither."""
    again = splits.duplicates(train.numbers("content"))
    train, duplicates = train.where(~again), train.where(again)
    if len(train) == 1 and not train.numbers("answered")[0]:
        table = next(table for table, part in zip(train.tables, train.parts(), strict=True) if len(part))
        parts = Rows.all([reader.cut(table, share)])
        return parts[:1], parts[1:], duplicates
    held = splits.held_out(train.numbers("group"), share, seed, None)
    return train.where(~held), train.where(held), duplicates


def _drawn(rows: Rows, max_rows: int | None, seed: int) -> Rows:
    return rows.where(splits.subset(rows.numbers("drawn"), max_rows, seed))


def _named(blocks: list[Source]) -> dict[str, Source]:
    """Sources by the name of their file, with a number where two have the same."""
    named: dict[str, Source] = {}
    for block in blocks:
        stem = Path(block.path).stem
        same = sum(name == stem or name.startswith(f"{stem}_") for name in named)
        named[f"{stem}_{same + 1}" if same else stem] = block
    return named


def _identity(file: Path) -> list[str]:
    """What a file holds and how it is read; not what it is called, nor when it was written.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return ["".join(file.suffixes[-2:]).lower(), sha256_of(file)]
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from error


@functools.cache
def _code() -> str:
    return code_version(Path(__file__).parent)
