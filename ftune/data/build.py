"""`data:` of a recipe becomes the examples of each split, with a report of what became of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftune.data import split as splits
from ftune.data.encode import Example, Report, encode_all
from ftune.data.read import read_source
from ftune.data.render import Renderer, template_columns
from ftune.data.shape import Sample, detect_format, to_sample
from ftune.errors import DataError, RowProblem
from ftune.quantities import is_share, parse_share
from ftune.recipe import Data, Source, sources

Tick = Callable[[str, int, int], None]
"""Called with (what is going on, done, in all); may raise to stop."""


@dataclass(frozen=True)
class Split:
    """One encoded split.

    Args:
        examples: what a model sees.
        samples: the rows they came from, for generation; rows that gave no example are among them.
        report: counts that reconcile to the rows of the source.
    """

    examples: list[Example]
    samples: list[Sample]
    report: Report

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids and masks in order: equal when, and only when, training would see the same."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example.ids).to_bytes(4, "little") + example.ids.tobytes() + example.is_target.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Samples:
    """Rows of each split in one shape, before any tokenizer."""

    train: list[Sample]
    eval: list[Sample]
    test: list[Sample]
    formats: tuple[str, ...]
    duplicates: list[Sample]
    overlap: int


@dataclass(frozen=True)
class Dataset:
    """All splits of a recipe, encoded; `eval` and `test` are None where the recipe has none."""

    train: Split
    eval: Split | None
    test: Split | None
    formats: tuple[str, ...]
    template: str


def read_samples(data: Data, folder: Path, *, seed: int, max_eval_rows: int | None, tick: Tick) -> Samples:
    """Read and check every row of a recipe; needs no tokenizer.

    Raises:
        DataError: rows that cannot be read, by file and row.
    """
    formats: list[str] = []
    problems: list[RowProblem] = []

    def read(blocks: list[Source]) -> list[Sample]:
        return _read(data, blocks, folder, formats, problems, tick)

    train, test = read(sources(data.train)), read(sources(data.test))
    held = [] if is_share(data.eval) else read(sources(data.eval))
    if problems:
        raise DataError(problems=problems)
    duplicates: list[Sample] = []
    if is_share(data.eval):
        train, duplicates = splits.without_duplicates(train)
        train, held = splits.hold_out(train, parse_share(str(data.eval)), seed)
    common = splits.overlap(train, [*held, *test])
    held = splits.subset(held, max_eval_rows, seed)
    return Samples(train, held, test, tuple(dict.fromkeys(formats)), duplicates, common)


def _read(
    data: Data, blocks: Sequence[Source], folder: Path, formats: list[str], problems: list[RowProblem], tick: Tick
) -> list[Sample]:
    """Samples of the good rows; `formats` and `problems` grow."""
    samples: list[Sample] = []
    shown = template_columns(data.template)
    for block in blocks:
        mapping = data.columns if block.columns is None else block.columns
        chosen: str = block.format or data.format
        unseen = set(mapping.values())
        for count, row in enumerate(read_source(block, folder)):
            if count % 1000 == 0:
                tick(f"reading {block.path}", count, 0)
            if isinstance(row, RowProblem):
                problems.append(row)
                continue
            if chosen == "auto":
                chosen = detect_format(list(row.values), mapping, row.file)
            unseen -= row.values.keys()
            sample = to_sample(row, chosen, mapping, shown)
            if isinstance(sample, Sample):
                samples.append(sample)
            else:
                problems += sample
        formats.append(chosen)
        if unseen and not problems:  # an optional column: of any other, each row would have told
            raise DataError(
                f"{block.path}: no row has the columns that data.columns names: {', '.join(sorted(unseen))}."
            )
    return samples


def build_data(
    data: Data,
    folder: Path,
    renderer: Renderer,
    *,
    max_length: int,
    seed: int,
    max_eval_rows: int | None,
    tick: Tick,
) -> Dataset:
    """Read, split and encode.

    Raises:
        DataError: rows that cannot be read, rendered or fitted, or nothing is left to learn.
    """
    samples = read_samples(data, folder, seed=seed, max_eval_rows=max_eval_rows, tick=tick)
    problems: list[RowProblem] = []

    def encoded(name: str, rows: list[Sample]) -> Split | None:
        try:
            return encode_split(name, rows, data, renderer, max_length=max_length, tick=tick) if rows else None
        except DataError as error:
            if not error.problems:
                raise
            problems.extend(error.problems)
            return None

    train, held, test = encoded("train", samples.train), encoded("eval", samples.eval), encoded("test", samples.test)
    if problems or train is None:  # without rows, reading has failed before
        raise DataError(problems=problems)
    _note(train.report, samples)
    template = "no template: text as it is" if samples.formats == ("text",) else renderer.description
    return Dataset(train, held, test, samples.formats, template)


def encode_split(
    name: str, rows: list[Sample], data: Data, renderer: Renderer, *, max_length: int, tick: Tick
) -> Split:
    """Encode the rows of one split as `data` says.

    Raises:
        DataError: rows that cannot be rendered or fitted, or none is left to learn from.
    """
    examples, report = encode_all(
        rows,
        renderer,
        train_on=data.train_on,
        max_length=max_length,
        overlong=data.overlong,
        tick=lambda done: tick(f"tokenising {name}", done, len(rows)),
    )
    if not examples:
        raise DataError(f"data.{name}: no row is left to learn from: {report.dropped}. See data.overlong.")
    return Split(examples, rows, report)


def _note(report: Report, samples: Samples) -> None:
    """Add what happened before encoding to the report of the training split."""
    if samples.duplicates:
        report.rows += len(samples.duplicates)
        report.dropped["duplicate"] = len(samples.duplicates)
    if samples.overlap:
        report.notes.append(f"{samples.overlap} rows of eval and test are also in train, word for word.")
