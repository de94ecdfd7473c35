"""`data:` of a recipe becomes the examples of each split, with a report of what became of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data import hygiene
from ftune.data.encode import Example, Report, encode_all
from ftune.data.encode_labels import Labelling, encode_row_labels, encode_token_labels
from ftune.data.encode_pairs import encode_pairs, encode_windows
from ftune.data.labelled import label_names
from ftune.data.leakage import Leaks
from ftune.data.order import Mix
from ftune.data.read import named, read_source
from ftune.data.render import Renderer, template_columns
from ftune.data.shape import Sample, detect_format, to_sample
from ftune.errors import DataError, RowProblem
from ftune.objectives import Objective
from ftune.quantities import is_share
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
        mix: how often an epoch sees the examples of each source, in train; None sees each once.
    """

    examples: list[Example]
    samples: list[Sample]
    report: Report
    mix: Mix | None = None

    @property
    def per_epoch(self) -> int:
        """Examples that an epoch sees."""
        return len(self.examples) if self.mix is None else sum(self.mix.per_epoch)

    @property
    def hides(self) -> bool:
        """Whether an objective hides parts of these rows: plain texts, neither with an answer nor with a label."""
        return all(example.answer is None and example.labels is None for example in self.examples)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids and masks in order: equal when, and only when, training would see the same."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example.ids).to_bytes(4, "little") + example.ids.tobytes() + example.is_target.tobytes())
            for part in (example.answer, example.labels):
                digest.update(b"" if part is None else part.tobytes())
        if self.mix is not None:
            digest.update(repr((self.mix.weights, self.mix.source.tolist())).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Samples:
    """Rows of each split in one shape, before any tokenizer."""

    train: list[Sample]
    eval: list[Sample]
    test: list[Sample]
    formats: tuple[str, ...]
    duplicates: list[Sample]
    leaks: Leaks
    leaked: list[Sample]
    notes: list[str]
    guard: dict[str, list[Sample]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of the training rows, in the order of a model's outputs."""
        return label_names(sample.label for sample in self.train)


@dataclass(frozen=True)
class Dataset:
    """All splits of a recipe, encoded; `eval` and `test` are None where the recipe has none.

    `labels` are the names of a classification head's outputs, empty without one; `guard` has other rows by name, that
    are scored before and after training.
    """

    train: Split
    eval: Split | None
    test: Split | None
    formats: tuple[str, ...]
    template: str
    labels: tuple[str, ...] = ()
    guard: dict[str, Split] = field(default_factory=dict)

    @property
    def label_counts(self) -> dict[str, int]:
        """Training rows that have each label."""
        given = [sample.label for sample in self.train.samples]
        each = [names if isinstance(names, tuple) else (names,) for names in given]
        return {label: sum(label in names for names in each) for label in self.labels}


def read_samples(
    data: Data,
    folder: Path,
    *,
    accepted: frozenset[str],
    seed: int,
    max_eval_rows: int | None,
    tick: Tick,
    guard: Sequence[str | Source] = (),
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

    Raises:
        DataError: rows that cannot be read, by file and row.
    """
    formats: list[str] = []
    problems: list[RowProblem] = []

    def read(blocks: list[Source]) -> list[Sample]:
        return _read(data, blocks, folder, accepted, formats, problems, tick)

    train, test = read(sources(data.train)), read(sources(data.test))
    held = [] if is_share(data.eval) else read(sources(data.eval))
    guarded = {name: read([source]) for name, source in named(sources(list(guard))).items()}
    if problems:
        raise DataError(problems=problems)
    duplicates: list[Sample] = []
    notes: list[str] = []
    if is_share(data.eval):
        train, held, duplicates = hygiene.hold_out(data, train, seed, notes)
    train, leaks, leaked = hygiene.without_leaks(data, train, held, test, tick)
    held = hygiene.drawn(held, max_eval_rows, seed)
    guarded = {name: hygiene.drawn(rows, max_eval_rows, seed) for name, rows in guarded.items()}
    return Samples(train, held, test, tuple(dict.fromkeys(formats)), duplicates, leaks, leaked, notes, guarded)


def _read(
    data: Data,
    blocks: Sequence[Source],
    folder: Path,
    accepted: frozenset[str],
    formats: list[str],
    problems: list[RowProblem],
    tick: Tick,
) -> list[Sample]:
    """Samples of the good rows; `formats` and `problems` grow."""
    samples: list[Sample] = []
    shown = template_columns(data.template)
    for number, block in enumerate(blocks):
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
                chosen = detect_format(list(row.values), mapping, row.file, accepted)
            unseen -= row.values.keys()
            sample = to_sample(row, chosen, mapping, shown)
            if isinstance(sample, Sample):
                samples.append(replace(sample, source=number) if number else sample)
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
    objective: Objective,
    *,
    accepted: frozenset[str],
    guard: Sequence[str | Source],
    max_length: int,
    seed: int,
    max_eval_rows: int | None,
    encoder_decoder: bool,
    tick: Tick,
) -> Dataset:
    """Read, split and encode, for a model that may be an encoder-decoder.

    Raises:
        DataError: rows that cannot be read, rendered or fitted, or nothing is left to learn.
    """
    samples = read_samples(
        data, folder, accepted=accepted, seed=seed, max_eval_rows=max_eval_rows, tick=tick, guard=guard
    )
    labels = samples.labels
    problems: list[RowProblem] = []
    encoder = Encoder(data, objective, renderer, max_length, labels, encoder_decoder)

    def encoded(name: str, rows: list[Sample]) -> Split | None:
        try:
            return encode_split(name, rows, encoder, tick=tick) if rows else None
        except DataError as error:
            if not error.problems:
                raise
            problems.extend(error.problems)
            return None

    train, held, test = encoded("train", samples.train), encoded("eval", samples.eval), encoded("test", samples.test)
    guarded = {name: encoded(f"guard {name}", rows) for name, rows in samples.guard.items()}
    if problems or train is None:  # without rows, reading has failed before
        raise DataError(problems=problems)
    _note(train.report, samples)
    train = _weighted(train, sources(data.train))
    template = "no template: text as it is" if samples.formats == ("text",) else renderer.description
    kept = {name: split for name, split in guarded.items() if split is not None}
    return Dataset(train, held, test, samples.formats, template, labels, kept)


@dataclass(frozen=True)
class Encoder:
    """How samples become examples.

    Args:
        data: supervised part, overlong policy.
        objective: kind of example.
        renderer: of the model's tokenizer.
        max_length: in tokens.
        labels: names of the head's outputs.
        encoder_decoder: whether the model is one.
    """

    data: Data
    objective: Objective
    renderer: Renderer
    max_length: int
    labels: tuple[str, ...]
    encoder_decoder: bool

    def encode(self, rows: list[Sample], tick: Callable[[int], None]) -> tuple[list[Example], Report]:
        """Examples in the order of `rows`, and what became of each.

        Raises:
            DataError: rows that cannot be rendered or fitted, or that do not belong together.
        """
        data, kind = self.data, self.objective.encoding
        sizes: dict[str, Any] = {"max_length": self.max_length, "overlong": data.overlong, "tick": tick}
        if kind == "next_token":
            return encode_all(rows, self.renderer, train_on=data.train_on, **sizes)
        if kind in ("row_labels", "token_labels"):
            how = Labelling(self.renderer, self.labels, self.max_length, data.overlong, self.encoder_decoder)
            if kind == "row_labels":
                return encode_row_labels(rows, how, tick)
            return encode_token_labels(rows, how, self.objective.label_at, tick)
        answered = sum(bool(sample.turns) for sample in rows)
        if 0 < answered < len(rows):
            raise DataError(f"{answered} rows have an answer and {len(rows) - answered} are plain text. Use one kind.")
        return encode_pairs(rows, self.renderer, **sizes) if answered else encode_windows(rows, self.renderer, **sizes)


def encode_split(name: str, rows: list[Sample], encoder: Encoder, *, tick: Tick) -> Split:
    """Encode the rows of one split.

    Raises:
        DataError: rows that cannot be rendered or fitted, or none is left to learn from.
    """
    examples, report = encoder.encode(rows, lambda done: tick(f"tokenising {name}", done, len(rows)))
    if not examples:
        raise DataError(f"data.{name}: no row is left to learn from: {report.dropped}. See data.overlong.")
    return Split(examples, rows, report)


def _weighted(train: Split, blocks: list[Source]) -> Split:
    """The training split with the weights of its sources."""
    if all(block.weight == 1 for block in blocks):
        return train
    source_of = {(sample.row.file, sample.row.number): sample.source for sample in train.samples}
    numbers = [source_of[example.file, example.number] for example in train.examples]
    mix = Mix(np.array(numbers), tuple(block.path for block in blocks), tuple(block.weight for block in blocks))
    train.report.notes += mix.notes()
    train.report.tokens = mix.expected([example.num_tokens for example in train.examples])
    train.report.targets = mix.expected([example.num_targets for example in train.examples])
    return replace(train, mix=mix)


def _note(report: Report, samples: Samples) -> None:
    """Add what happened before encoding to the report of the training split."""
    for reason, rows in (("duplicate", samples.duplicates), ("leaked", samples.leaked)):
        if rows:
            report.rows += len(rows)
            report.dropped[reason] = len(rows)
    report.notes += [*samples.notes, *samples.leaks.notes()]
