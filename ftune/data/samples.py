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

from ftune.data import hygiene
from ftune.data.cache import Cache, code_version, key_of
from ftune.data.leakage import Leaks
from ftune.data.read import files_of, locate, named, read_source
from ftune.data.render import template_columns
from ftune.data.shape import Sample, detect_format, named_columns, reach, reading_notes, to_sample
from ftune.data.split import cut_document, group_problem
from ftune.data.table import Rows, SampleTable, TableWriter
from ftune.errors import DataError, RowProblem
from ftune.manifest import sha256_of
from ftune.quantities import is_share
from ftune.recipe import Data, Source, sources

Tick = Callable[[str, int, int], None]
"""Called with (what is going on, done, in all); may raise to stop."""
Follow = Callable[[Iterator[Sample]], None]
"""Takes every sample of a source while it is read."""
NOT_OF_ROWS = {
    "train", "eval", "test", "template", "train_on", "max_length", "overlong", "packing", "on_bad_row", "max_dropped",
    "seed", "group_by", "stratify", "near_duplicates", "leakage",
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
        leaks: what train, eval and test share.
        leaked: training rows that were left out for it.
        notes: what else a user should know.
        readings: how rows were read.
        bad_rows: rows that were skipped, by split.
        skipped: the first of them, for people.
        held: how many rows eval and each guard set have, of which those that are scored may be a part.
        keys: of the tables, None for one that is not kept.
    """

    train: Rows
    eval: Rows
    test: Rows
    formats: tuple[str, ...]
    duplicates: Rows
    leaks: Leaks
    leaked: Rows
    notes: list[str]
    readings: list[str]
    guard: dict[str, Rows]
    bad_rows: dict[str, int]
    skipped: dict[str, list[RowProblem]]
    held: dict[str, int]
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
    readings: list[str] = field(default_factory=list)
    keys: dict[SampleTable, str | None] = field(default_factory=dict)

    def table(self, block: Source, follow: Follow = exhaust) -> SampleTable:
        """The rows of one source, from the cache or its files; `follow` takes each sample as it is read."""
        files = locate(block, self.folder)
        named = [str(file) for file in files or []]
        key = self.key(block)

        def write(folder: Path) -> dict[str, Any]:
            found: dict[str, Any] = {}
            with TableWriter(folder, self._group_by(block)) as writer:
                follow(self._samples(block, writer, found))
            return {**writer.facts(named), **found}

        entry = self.cache.entry("rows", key, write, lambda: self.tick("waiting for another process", 0, 0))
        table = SampleTable(entry, named)
        self.formats.append(table.facts["format"])
        self.readings.extend(f"{block.path}: {note}" for note in table.facts["readings"])
        self.keys[table] = key
        return table

    def _group_by(self, block: Source) -> str | None:
        return self.data.group_by if is_share(self.data.eval) and block in sources(self.data.train) else None

    def key(self, block: Source) -> str | None:
        """Everything that the table of a source depends on; None where that cannot be told."""
        files = None if locate(block, self.folder) is None else files_of(block, self.folder)
        if files is None and not re.fullmatch(r"[0-9a-f]{40}", block.revision or ""):
            return None  # what the hub has now may be something else tomorrow
        content = [block.path] if files is None else [_identity(file) for file in files]
        return key_of({
            "code": _code(),
            "content": content,
            "source": block.model_dump(mode="json", exclude={"path", "weight"}),
            "data": self.data.model_dump(mode="json", exclude=NOT_OF_ROWS),
            "group_by": self._group_by(block),
            "shown": template_columns(self.data.template),
            "accepted": sorted(self.accepted),
        })  # fmt: skip

    def _samples(self, block: Source, writer: TableWriter, found: dict[str, Any]) -> Iterator[Sample]:
        """All rows of a source, each once it is written; puts format and notes into `found` at the end.

        Raises:
            DataError: a column is named that no row has.
        """
        mapping = self.data.columns if block.columns is None else block.columns
        chosen: str = block.format or self.data.format
        shown, unseen, bad = template_columns(self.data.template), named_columns(mapping), 0
        readings: list[str] | None = None
        group_by = self._group_by(block)
        for count, row in enumerate(read_source(block, self.folder)):
            if count % 1000 == 0:
                self.tick(f"reading {block.path}", count, 0)
            if isinstance(row, RowProblem):
                writer.refuse([row])
                bad += 1
                continue
            row = reach(row, mapping)
            if readings is None:
                auto = chosen == "auto"
                chosen = detect_format(list(row.values), mapping, row.file, self.accepted) if auto else chosen
                readings = reading_notes(row, chosen, mapping, auto=auto, shown=shown)
            unseen -= row.values.keys()
            sample = to_sample(row, chosen, mapping, shown, self.data.roles)
            problem = group_problem(row, group_by)
            if isinstance(sample, Sample) and problem is None:
                writer.add(sample)
                if not (bad and self.data.on_bad_row == "error"):  # nothing will come of the others
                    yield sample
            else:
                wrong = [] if isinstance(sample, Sample) else sample
                writer.refuse(wrong if problem is None else [*wrong, problem])
                bad += 1
        if unseen and not bad:  # an optional column: of any other, each row would have told
            raise DataError(
                f"{block.path}: no row has the columns that data.columns names: {', '.join(sorted(unseen))}."
            )
        found.update({"format": chosen, "readings": readings or []})

    def cut(self, table: SampleTable, share: float) -> SampleTable:
        """A table of a single document in two parts, the second to be held out."""
        whole = self.keys[table]
        key = None if whole is None else key_of({"whole": whole, "share": share})
        named = list(table.files)

        def write(folder: Path) -> dict[str, Any]:
            with TableWriter(folder) as writer:
                for part in cut_document(table[0], share):
                    writer.add(part)
            return {**writer.facts(named), "format": table.facts["format"], "readings": []}

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
        max_eval_rows: at most so many of them are kept, and of each set of `guard`; None keeps all.
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
    guards = {f"guard {name}": [source] for name, source in named(sources(list(guard))).items()}
    tables = {
        name: [ahead(reader, block) if name == "train" else reader.table(block) for block in each]
        for name, each in (blocks | guards).items()
    }
    _refuse_bad_rows(tables, data)
    rows = {name: Rows.all(each) for name, each in tables.items()}
    train, held = rows["train"], rows["eval"]
    duplicates, notes = train[:0], list[str]()
    if is_share(data.eval):
        train, held, duplicates = hygiene.hold_out(data, train, seed, reader.cut, notes)
    train, leaks, leaked = hygiene.without_leaks(data, train, held, rows["test"], reader.cache, tick)
    return Samples(
        train=train,
        eval=hygiene.drawn(held, max_eval_rows, seed),
        test=rows["test"],
        formats=tuple(dict.fromkeys(reader.formats)),
        duplicates=duplicates,
        leaks=leaks,
        leaked=leaked,
        notes=notes,
        readings=list(dict.fromkeys(reader.readings)),
        guard={name.removeprefix("guard "): hygiene.drawn(rows[name], max_eval_rows, seed) for name in guards},
        bad_rows={name: sum(table.facts["bad_rows"] for table in each) for name, each in tables.items()},
        skipped={name: [one for table in each for one in table.problems] for name, each in tables.items()},
        held={"eval": len(held), **{name: len(rows[name]) for name in guards}},
        keys=reader.keys,
    )


def _refuse_bad_rows(tables: dict[str, list[SampleTable]], data: Data) -> None:
    every = [table for each in tables.values() for table in each]
    total = sum(table.facts["num_problems"] for table in every)
    if total and data.on_bad_row == "error":
        raise DataError(problems=[problem for table in every for problem in table.problems], total=total)
    if cut := [problem for table in every for problem in table.problems if problem.ends]:
        raise DataError("data.on_bad_row: skip leaves out rows, not the rest of a file that cannot be read.", cut)
    if empty := [name for name, each in tables.items() if each and not sum(map(len, each))]:
        problems = [problem for table in tables[empty[0]] for problem in table.problems]
        raise DataError(f"data.{empty[0]}: every row is bad.", problems=problems)


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
