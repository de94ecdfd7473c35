"""Rows with labels become token ids: one label for the row, or one for each word.

The text is laid between the tokenizer's own special tokens, as it was in pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ftune.data.encode import BATCH, Example, Overlong, Report, whole_offsets
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError, RowProblem, suggestion

Align = Literal["first", "last"]


@dataclass(frozen=True)
class Labelling:
    """How rows with labels become examples.

    Args:
        renderer: how they become text.
        names: every label, in the order of the model's outputs; empty for regression.
        max_length: longest example, in tokens.
        overlong: what happens to longer rows.
        ends: put EOS after the text where the tokenizer does not: encoder-decoders pool there.
    """

    renderer: Renderer
    names: tuple[str, ...]
    max_length: int
    overlong: Overlong | None
    ends: bool


def encode_row_labels(
    samples: Sequence[Sample], how: Labelling, tick: Callable[[int], None]
) -> tuple[list[Example], Report]:
    """One label, several labels or one number for each row.

    Raises:
        DataError: rows that are too long under `error`, or whose label is not among `how.names`.
    """
    report, problems = Report(rows=len(samples)), list[RowProblem]()
    examples = []
    for sample, ids in _token_ids(samples, how, problems, tick):
        found = _vector(sample, how.names)
        if isinstance(found, RowProblem):
            problems.append(found)
            continue
        fitted = _fitted(sample, ids, how, report, problems)
        if fitted is not None:
            every = np.ones(len(found), dtype=bool)
            examples.append(Example(fitted, every, 0, sample.row.file, sample.row.number, labels=found))
    return _finished(examples, report, problems)


def _vector(sample: Sample, names: tuple[str, ...]) -> np.ndarray | RowProblem:
    """A number as float32 [1], a label's position as int32 [1], several labels as float32 zeros and ones [K]."""
    label = sample.label
    if label is None or isinstance(label, float):
        return np.array([label], dtype=np.float32)
    for name in (label,) if isinstance(label, str) else label:
        if name not in names:
            return sample.row.problem(f"label {name!r} is in no training row.{suggestion(name, names)}")
    if isinstance(label, str):
        return np.array([names.index(label)], dtype=np.int32)
    return np.array([name in label for name in names], dtype=np.float32)


def encode_token_labels(
    samples: Sequence[Sample], how: Labelling, align: Align, tick: Callable[[int], None]
) -> tuple[list[Example], Report]:
    """One label for each word, put on the first or last of its tokens; the word's other tokens are no targets.

    Words are joined by spaces and found again by the places of tokens in the text, so that any fast tokenizer will do.

    Raises:
        DataError: rows that are too long under `error`, or a tag that is not among `how.names`.
    """
    report, problems = Report(rows=len(samples)), list[RowProblem]()
    numbers = {name: number for number, name in enumerate(how.names)}
    examples, lost = [], 0
    for start in range(0, len(samples), BATCH):
        tick(start)
        batch = samples[start : start + BATCH]
        for sample, (ids, words) in zip(batch, _words_of_tokens(batch, how, align), strict=True):
            tags = sample.label if isinstance(sample.label, tuple) else ()
            unknown = sorted(set(tags) - numbers.keys())
            if unknown:
                hint = suggestion(unknown[0], how.names)
                problems.append(sample.row.problem(f"tag {unknown[0]!r} is in no training row.{hint}"))
                continue
            fitted = _fitted(sample, ids, how, report, problems)
            if fitted is None:
                continue
            words = _shortened(words, ids, fitted, how)
            lost += len(sample.words) - int((words >= 0).sum())
            if not (words >= 0).any():
                report.kept -= 1
                report.drop("no_targets", f"{sample.row.file}:{sample.row.number}")
                continue
            labels = np.array([numbers[tags[w]] if w >= 0 else 0 for w in words], dtype=np.int32)
            examples.append(Example(fitted, words >= 0, 0, sample.row.file, sample.row.number, labels=labels))
    if lost:
        report.notes.append(f"{lost} words have no token of their own (cut off, or unknown to the tokenizer).")
    tick(len(samples))
    return _finished(examples, report, problems)


def _words_of_tokens(
    samples: Sequence[Sample], how: Labelling, align: Align
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids of each sample, and for each token the number of the word whose label it has, or -1."""
    texts = [" ".join(sample.words) for sample in samples]
    with whole_offsets(how.renderer.tokenizer):
        encoded = how.renderer.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
    front, back = _around(how)
    for sample, ids, offsets in zip(samples, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        lengths = np.array([len(word) for word in sample.words])
        stops = np.cumsum(lengths + 1) - 1
        starts = stops - lengths
        owner = np.full(len(ids), -1)
        order = range(len(ids)) if align == "last" else reversed(range(len(ids)))
        chosen: dict[int, int] = {}
        for token in order:  # the last assignment stays
            begin, end = offsets[token]
            word = int(np.searchsorted(stops, begin, side="right"))
            if word < len(starts) and begin < stops[word] and end > starts[word]:
                chosen[word] = token
        for word, token in chosen.items():
            owner[token] = word
        whole = np.array([*front, *ids, *back], dtype=np.int32)
        yield whole, np.concatenate([np.full(len(front), -1), owner, np.full(len(back), -1)])


def _around(how: Labelling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids before and after a text."""
    front, back = how.renderer.around
    eos = how.renderer.tokenizer.eos_token_id
    return front, (int(eos),) if how.ends and not back and eos is not None else back


def _token_ids(
    samples: Sequence[Sample], how: Labelling, problems: list[RowProblem], tick: Callable[[int], None]
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Ids of each text, or pair of texts, with special tokens around it."""
    _, back = _around(how)
    own = how.renderer.around[1]
    for start in range(0, len(samples), BATCH):
        tick(start)
        good, texts = [], []
        for sample in samples[start : start + BATCH]:
            try:
                texts.append(how.renderer.text(sample))
                good.append(sample)
            except ValueError as error:
                problems.append(sample.row.problem(f"{str(error).rstrip('.')}."))
        if not good:
            continue
        pairs = [sample.text_pair for sample in good] if any(sample.text_pair for sample in good) else None
        encoded = how.renderer.tokenizer(texts, pairs, return_attention_mask=False, verbose=False)["input_ids"]
        for sample, ids in zip(good, encoded, strict=True):
            yield sample, np.array([*ids, *(() if own else back)], dtype=np.int32)
    tick(len(samples))


def _fitted(
    sample: Sample, ids: np.ndarray, how: Labelling, report: Report, problems: list[RowProblem]
) -> np.ndarray | None:
    """The ids, cut before the special tokens at the end under `truncate`; None when the row is left out."""
    place, length, limit = f"{sample.row.file}:{sample.row.number}", len(ids), how.max_length
    if length > limit and how.overlong == "drop":
        report.drop("overlong", place)
        return None
    if length > limit and how.overlong != "truncate":
        hint = "Raise data.max_length or set data.overlong: drop or truncate."
        problems.append(sample.row.problem(f"has {length} tokens, more than max_length {limit}. {hint}"))
        return None
    report.kept += 1
    if length <= limit:
        return ids
    report.truncated += 1
    report.truncated_rows += [place][: DataError.SHOWN - len(report.truncated_rows)]
    return np.asarray(ids[_kept(length, how)])


def _kept(length: int, how: Labelling) -> np.ndarray:
    """Positions that stay of `length` when the text is cut to size."""
    back = len(_around(how)[1])
    return np.concatenate([np.arange(how.max_length - back), np.arange(length - back, length)])


def _shortened(words: np.ndarray, ids: np.ndarray, fitted: np.ndarray, how: Labelling) -> np.ndarray:
    return words if len(fitted) == len(ids) else words[_kept(len(ids), how)]


def _finished(examples: list[Example], report: Report, problems: list[RowProblem]) -> tuple[list[Example], Report]:
    if problems:
        raise DataError(problems=problems)
    report.windows = len(examples)
    report.count(examples)
    return examples, report
