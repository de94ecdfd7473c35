"""`data:` of a recipe becomes the examples of each split, with a report of what became of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ftune.data.cache import Cache
from ftune.data.columns import chunks
from ftune.data.encode import BAD_ROW, Example
from ftune.data.encoder import Encoder, TokenMaker
from ftune.data.order import Mix
from ftune.data.render import Renderer
from ftune.data.samples import Reader, Samples, Tick, read_samples
from ftune.data.table import Rows
from ftune.data.tally import DUPLICATE, LEAKED, Outcome, Report, nothing_left, refuse, refuse_losses
from ftune.data.tokens import Examples
from ftune.errors import DataError
from ftune.objectives import Objective
from ftune.quantities import is_share, parse_share
from ftune.recipe import Data, Source, sources


@dataclass(frozen=True)
class Split:
    """One encoded split.

    Args:
        examples: what a model sees.
        samples: the rows they came from, for generation; rows that gave no example are among them.
        report: counts that reconcile to the rows of the source.
        fingerprint: equal when, and only when, training would see the same.
        mix: how often an epoch sees the examples of each source, in train; None sees each once.
        hides: whether an objective hides parts of these rows: plain texts, neither with an answer nor with a label.
    """

    examples: Sequence[Example]
    samples: Rows
    report: Report
    fingerprint: str
    hides: bool
    mix: Mix | None = None

    @property
    def per_epoch(self) -> int:
        """Examples that an epoch sees."""
        return len(self.examples) if self.mix is None else sum(self.mix.per_epoch)


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
    found = {name: finished(name, outcome, samples, data) for name, outcome in outcomes.items()}
    _refuse_losses(found, data)
    as_it_is = samples.formats == ("text",) or (labelled and renderer.template is None)
    template = "no template: text as it is" if as_it_is else renderer.description
    guarded = {name.removeprefix("guard "): split for name, split in found.items() if name.startswith("guard ")}
    return Dataset(
        found["train"], found.get("eval"), found.get("test"), samples.formats, template, labels, guarded,
        cache.story, (*cache.notes, *samples.readings),
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


def finished(name: str, outcome: Outcome, samples: Samples, data: Data) -> Split:
    """A split with its report, in which every row of the source has its place.

    Raises:
        DataError: nothing is left to learn from.
    """
    report, examples, rows = outcome.report(), outcome.examples, outcome.rows
    report.labels = rows.label_counts(samples.labels)
    if not len(examples):
        raise nothing_left(report, name)
    if skipped := samples.bad_rows.get(name, 0):
        report.leave_out(BAD_ROW, skipped)
        report.notes += [f"dropped ({BAD_ROW}): {problem}" for problem in samples.skipped[name][: DataError.SHOWN]]
    if name == "train":
        report.leave_out(DUPLICATE, len(samples.duplicates))
        report.leave_out(LEAKED, len(samples.leaked))
        report.notes += [*samples.notes, *samples.leaks.notes()]
    if len(rows) < (held := samples.held.get(name, 0)):
        report.notes.append(f"{len(rows)} of {held} rows are scored (eval.max_rows).")
    hides = not any(file.has_answers or file.has_labels for file in outcome.files)
    mix = _mixed(examples, sources(data.train), report) if name == "train" else None
    return Split(examples, rows, report, _identity(examples, mix), hides, mix)


def encode_split(name: str, rows: Rows, encoder: Encoder, samples: Samples, *, tick: Tick, cache: Cache) -> Split:
    """Encode the rows of one split.

    Raises:
        DataError: rows that cannot be rendered or fitted, or none is left to learn from.
    """
    outcome = TokenMaker(encoder, cache, tick).outcome(name, rows, samples.keys, whole=False)
    refuse([outcome], skip_bad_rows=encoder.data.on_bad_row == "skip")
    return finished(name, outcome, samples, encoder.data)


def _mixed(examples: Examples, blocks: Sequence[Source], report: Report) -> Mix | None:
    """The weights of the training sources, and what they come to in `report`; None where each example counts once."""
    if all(block.weight == 1 for block in blocks) or len(blocks) != len(examples.files):
        return None
    mix = Mix(examples.source, tuple(block.path for block in blocks), tuple(block.weight for block in blocks))
    report.notes += mix.notes()
    report.tokens, report.targets = (mix.expected(counts) for counts in (examples.num_tokens, examples.num_targets))
    return mix


def _identity(examples: Examples, mix: Mix | None) -> str:
    """Equal when, and only when, training would see the same."""
    if mix is None:
        return examples.fingerprint
    digest = hashlib.sha256(f"({examples.fingerprint!r}, {mix.weights!r}, [".encode())
    for number, piece in enumerate(chunks(mix.source)):
        digest.update(f"{', ' if number else ''}{', '.join(map(str, piece.tolist()))}".encode())
    digest.update(b"])")
    return digest.hexdigest()
