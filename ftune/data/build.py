"""`data:` of a recipe becomes the examples of each split, with a report of what became of every row."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data import split as splits
from ftune.data.cache import Cache, Entry, Write, code_version, key_of
from ftune.data.encode import BAD_ROW, Encoded, Example, encode_rows
from ftune.data.encode_labels import Labelling, encode_row_labels, encode_token_labels
from ftune.data.encode_pairs import encode_pairs, encode_windows
from ftune.data.render import Renderer
from ftune.data.samples import Reader, Samples, Tick, read_samples
from ftune.data.shape import Sample
from ftune.data.table import Rows, SampleTable
from ftune.data.tally import DUPLICATE, Outcome, Report, refuse, refuse_losses
from ftune.data.tokens import Examples, TokenFile, write_tokens
from ftune.errors import DataError
from ftune.objectives import Objective
from ftune.quantities import is_share, parse_share
from ftune.recipe import Data, Source

NOT_OF_TOKENS = {"train", "eval", "test", "format", "columns", "on_bad_row", "max_dropped"}
"""Keys of `data` that do not shape tokens, or do so through the rows. All others are part of a token file's key."""


@dataclass(frozen=True)
class Split:
    """One encoded split.

    Args:
        examples: what a model sees.
        samples: the rows they came from, for generation; rows that gave no example are among them.
        report: counts that reconcile to the rows of the source.
        fingerprint: equal when, and only when, training would see the same.
        hides: whether an objective hides parts of these rows: plain texts, neither with an answer nor with a label.
    """

    examples: Sequence[Example]
    samples: Rows
    report: Report
    fingerprint: str
    hides: bool

    def examples_of(self, place: int) -> list[Example]:
        """What became of `samples[place]`: its example or windows in order, none for a row that was left out."""
        if not isinstance(self.examples, Examples):
            raise ValueError("features are no longer known by their rows")
        chosen = np.flatnonzero(self.examples.rows == self.samples.chosen[place])
        return [self.examples[int(number)] for number in chosen]


@dataclass(frozen=True)
class Dataset:
    """All splits of a recipe, encoded; `eval` and `test` are None where the recipe has none.

    `labels` are the names of a classification head's outputs, empty without one; `guard` has other rows by name, that
    are scored before and after training. `story` says whether the work was done now or taken from the cache.
    """

    train: Split
    eval: Split | None
    test: Split | None
    formats: tuple[str, ...]
    template: str
    labels: tuple[str, ...] = ()
    guard: dict[str, Split] = field(default_factory=dict)
    story: str = ""
    notes: tuple[str, ...] = ()

    @property
    def label_counts(self) -> dict[str, int]:
        """Training rows that have each label."""
        return self.train.report.labels


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

    def encode(self, rows: Iterable[Sample], tick: Callable[[int], None], *, answered: bool) -> Iterator[Encoded]:
        """What becomes of each of `rows`, in order; `answered` says whether they have answers or are plain text."""
        data, kind = self.data, self.objective.encoding
        sizes: dict[str, Any] = {"max_length": self.max_length, "overlong": data.overlong, "tick": tick}
        if kind == "next_token":
            return encode_rows(rows, self.renderer, train_on=data.train_on, **sizes)
        if kind in ("row_labels", "token_labels"):
            how = Labelling(self.renderer, self.labels, self.max_length, data.overlong, self.encoder_decoder)
            if kind == "row_labels":
                return encode_row_labels(rows, how, tick)
            return encode_token_labels(rows, how, self.objective.label_at, tick)
        return encode_pairs(rows, self.renderer, **sizes) if answered else encode_windows(rows, self.renderer, **sizes)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes tokens besides the rows."""
        tokenizer, objective = self.renderer.tokenizer, self.objective
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return {
            "code": code_version(Path(__file__).parent),
            "libraries": {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")},
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special": [type(tokenizer).__name__, special, tokenizer.split_special_tokens],
            "chat_template": tokenizer.chat_template,
            "data": self.data.model_dump(mode="json", exclude=NOT_OF_TOKENS),
            "max_length": self.max_length,
            "encoding": [objective.encoding, objective.label_at, self.encoder_decoder],
            "labels": self.labels,
        }


@dataclass(frozen=True)
class TokenMaker:
    """Encodes the rows of tables, each table once.

    Args:
        encoder: how.
        cache: where token files are kept.
        tick: hears of progress.
        made: files by table and, where only some of its rows are encoded, by these.
    """

    encoder: Encoder
    cache: Cache
    tick: Tick
    made: dict[tuple[SampleTable, str], TokenFile] = field(default_factory=dict)

    def ahead(self, reader: Reader, block: Source) -> SampleTable:
        """Read a source and encode its rows on the way: one thread waits for the other's work less than for its own."""
        tables: list[SampleTable] = []

        def write(folder: Path) -> dict[str, Any]:
            facts: dict[str, Any] = {}

            def follow(rows: Iterator[Sample]) -> None:
                first = next(rows, None)
                every = itertools.chain(() if first is None else (first,), rows)
                answered = first is not None and bool(first.turns)
                encoded = self.encoder.encode(every, lambda done: None, answered=answered)
                facts.update(write_tokens(folder, itertools.count(), encoded))

            tables.append(reader.table(block, follow))
            return facts or self._write(folder, "train", tables[-1], np.arange(len(tables[-1])))

        entry = self._entry(reader.key(block), "all", write)
        table = tables[-1] if tables else reader.table(block)
        self.made[table, "all"] = TokenFile(entry, table)
        self.tick("tokenising train", len(table), len(table))
        return table

    def outcome(self, name: str, rows: Rows, keys: Mapping[SampleTable, str | None], *, whole: bool) -> Outcome:
        """What becomes of the rows of one split.

        Args:
            name: of the split, for people.
            rows: of one or more tables.
            keys: of the tables.
            whole: encode all rows of the tables, as another split will ask for the others or ask again.

        Raises:
            DataError: some have an answer and some are plain text, which these objectives learn from in other ways.
        """
        answered = rows.numbers("answered")
        if self.encoder.objective.encoding in ("pairs", "hidden_tokens") and 0 < answered.sum() < len(answered):
            plain = len(answered) - answered.sum()
            raise DataError(f"{answered.sum()} rows have an answer and {plain} are plain text. Use one kind.")
        every = [np.arange(len(table)) for table in rows.tables] if whole else rows.parts()
        pairs = zip(rows.tables, every, strict=True)
        return Outcome.of(rows, [self._file(name, table, some, keys[table]) for table, some in pairs])

    def _file(self, name: str, table: SampleTable, rows: np.ndarray, key: str | None) -> TokenFile:
        drawn = "all" if len(rows) == len(table) else hashlib.sha256(rows.tobytes()).hexdigest()
        if (table, drawn) not in self.made:
            entry = self._entry(key, drawn, lambda folder: self._write(folder, name, table, rows))
            self.made[table, drawn] = TokenFile(entry, table)
        return self.made[table, drawn]

    def _entry(self, rows: str | None, drawn: str, write: Write) -> Entry:
        key = None if rows is None else key_of({"rows": rows, "drawn": drawn, **self._identity})
        return self.cache.entry("tokens", key, write, lambda: self.tick("waiting for another process", 0, 0))

    def _write(self, folder: Path, name: str, table: SampleTable, rows: np.ndarray) -> dict[str, Any]:
        def told(done: int) -> None:
            self.tick(f"tokenising {name}", done, len(rows))

        answered = bool(table.columns["answered"].any())
        encoded = self.encoder.encode(Rows((table,), rows), told, answered=answered)
        facts = write_tokens(folder, rows, encoded)
        told(len(rows))
        return facts

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return self.encoder.identity


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
    cache: Cache | None = None,
) -> Dataset:
    """Read, split and encode, for a model that may be an encoder-decoder. Without a `cache`, nothing is kept.

    Raises:
        DataError: rows that cannot be read, rendered or fitted, too many of them, or nothing is left to learn.
    """
    cache = cache or Cache()
    maker = TokenMaker(Encoder(data, objective, renderer, max_length, (), encoder_decoder), cache, tick)
    labelled = objective.encoding in ("row_labels", "token_labels")  # all rows must be read before labels are numbered
    samples = read_samples(
        data, folder, accepted=accepted, seed=seed, max_eval_rows=max_eval_rows, tick=tick, guard=guard, cache=cache,
        ahead=Reader.table if labelled else maker.ahead,
    )  # fmt: skip
    labels = samples.labels
    if labelled:
        maker = TokenMaker(replace(maker.encoder, labels=labels), cache, tick)
    rows = {"train": samples.train, "eval": samples.eval, "test": samples.test}
    rows |= {f"guard {name}": some for name, some in samples.guard.items()}
    shared = set(samples.train.tables)
    outcomes = {
        name: maker.outcome(name, some, samples.keys, whole=bool(shared & set(some.tables)))
        for name, some in rows.items()
        if some
    }
    refuse(list(outcomes.values()), skip_bad_rows=data.on_bad_row == "skip")
    found = {name: finished(name, outcome, samples, data, seed) for name, outcome in outcomes.items()}
    _refuse_losses(found, data)
    template = "no template: text as it is" if samples.formats == ("text",) else renderer.description
    guarded = {name.removeprefix("guard "): split for name, split in found.items() if name.startswith("guard ")}
    return Dataset(
        found["train"], found.get("eval"), found.get("test"), samples.formats, template, labels, guarded,
        cache.story, tuple(cache.notes),
    )  # fmt: skip


def _refuse_losses(found: dict[str, Split], data: Data) -> None:
    """Stop when more rows were dropped than the recipe allows, of a share that was held out together with the others.

    Raises:
        DataError: more were dropped.
    """
    reports = {name: [split.report] for name, split in found.items()}
    if is_share(data.eval):
        reports["train"] += reports.pop("eval", [])
    for name, each in reports.items():
        refuse_losses(each, name, parse_share(data.max_dropped))


def finished(name: str, outcome: Outcome, samples: Samples, data: Data, seed: int) -> Split:
    """A split with its report, in which every row of the source has its place.

    Raises:
        DataError: nothing is left to learn from.
    """
    report, examples, rows = outcome.report(), outcome.examples, outcome.rows
    report.labels = rows.label_counts(samples.labels)
    if not len(examples):
        raise DataError(f"data.{name}: no row is left to learn from: {report.dropped}. See data.overlong.")
    if skipped := samples.bad_rows.get(name, 0):
        report.leave_out(BAD_ROW, skipped)
        report.notes += [f"dropped ({BAD_ROW}): {problem}" for problem in samples.skipped[name][: DataError.SHOWN]]
    if name == "train":
        report.leave_out(DUPLICATE, len(samples.duplicates))
    if name == "train":
        if samples.overlap:
            report.notes.append(f"{samples.overlap} rows of eval and test are also in train, word for word.")
        examples = _weighted(examples, samples.weights, report, seed)
    if name == "eval" and len(rows) < samples.held:
        report.notes.append(f"{len(rows)} of {samples.held} rows are scored (eval.max_rows).")
    hides = not any(file.has_answers or file.has_labels for file in outcome.files)
    return Split(examples, rows, report, examples.fingerprint, hides)


def encode_split(name: str, rows: Rows, encoder: Encoder, samples: Samples, *, tick: Tick, cache: Cache) -> Split:
    """Encode the rows of one split.

    Raises:
        DataError: rows that cannot be rendered or fitted, or none is left to learn from.
    """
    outcome = TokenMaker(encoder, cache, tick).outcome(name, rows, samples.keys, whole=False)
    refuse([outcome], skip_bad_rows=encoder.data.on_bad_row == "skip")
    return finished(name, outcome, samples, encoder.data, 0)


def _weighted(examples: Examples, weights: Sequence[float], report: Report, seed: int) -> Examples:
    """The training examples of each source as often as its weight says."""
    if set(weights) <= {1.0} or len(weights) != len(examples.files):
        return examples
    chosen = splits.weighted(examples.drawn, np.array(weights)[examples.source], seed)
    report.notes.append(f"weights: an epoch has {len(chosen)} examples, made of {len(examples)}.")
    weighed = Examples(examples.files, examples.chosen[chosen])
    report.count(weighed)
    return weighed
