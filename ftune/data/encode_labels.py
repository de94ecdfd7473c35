"""Rows with labels become token ids: one label for the row, or one for each word.

The text is laid between the tokenizer's own special tokens, as it was in pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ftune.data.encode import BAD_ROW, TOO_LONG, Encoded, Example, Overlong
from ftune.data.pipeline import Text, core_of, tokenised
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import suggestion

if TYPE_CHECKING:
    from tokenizers import Encoding

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


def encode_row_labels(samples: Iterable[Sample], how: Labelling, tick: Callable[[int], None]) -> Iterator[Encoded]:
    """One label, several labels or one number for each row."""
    ends = () if how.renderer.around[1] else _around(how)[1]

    def render(sample: Sample) -> tuple[Sample, tuple[Text]]:
        text = how.renderer.text(sample)
        return sample, ((text, sample.text_pair) if sample.text_pair else text,)

    with core_of(how.renderer.tokenizer, special=True) as core:
        for sample, item, encodings, message in tokenised(samples, render, core, special=True, tick=tick):
            if item is None:
                yield Encoded(reason=BAD_ROW, message=message)
                continue
            labels = _vector(sample, how.names)
            if isinstance(labels, str):
                yield Encoded(reason=BAD_ROW, message=labels)
                continue
            ids = np.array([*encodings[0].ids, *ends], dtype=np.int32)
            kept = _kept(len(ids), how)
            if isinstance(kept, Encoded):
                yield kept
                continue
            every, row = np.ones(len(labels), dtype=bool), sample.row
            example = Example(ids[kept], every, 0, row.file, row.number, labels=labels)
            yield Encoded((example,), truncated=len(kept) < len(ids))


def _vector(sample: Sample, names: tuple[str, ...]) -> np.ndarray | str:
    """A number as float32 [1], a label's position as int32 [1], several labels as float32 zeros and ones [K]."""
    label = sample.label
    if label is None or isinstance(label, float):
        return np.array([label], dtype=np.float32)
    for name in (label,) if isinstance(label, str) else label:
        if name not in names:
            return f"label {name!r} is in no training row.{suggestion(name, names)}"
    if isinstance(label, str):
        return np.array([names.index(label)], dtype=np.int32)
    return np.array([name in label for name in names], dtype=np.float32)


def encode_token_labels(
    samples: Iterable[Sample], how: Labelling, align: Align, tick: Callable[[int], None]
) -> Iterator[Encoded]:
    """One label for each word, put on the first or last of its tokens; the word's other tokens are no targets.

    Words are joined by spaces and found again by the places of tokens in the text, so that any fast tokenizer will do.
    """
    numbers = {name: number for number, name in enumerate(how.names)}
    front, back = _around(how)

    def render(sample: Sample) -> tuple[Sample, tuple[str]]:
        return sample, (" ".join(sample.words),)

    with core_of(how.renderer.tokenizer, special=False) as core:
        for sample, _, encodings, _ in tokenised(samples, render, core, special=False, tick=tick):
            tags = sample.label if isinstance(sample.label, tuple) else ()
            if unknown := sorted(set(tags) - numbers.keys()):
                hint = suggestion(unknown[0], how.names)
                yield Encoded(reason=BAD_ROW, message=f"tag {unknown[0]!r} is in no training row.{hint}")
                continue
            ids = np.array([*front, *encodings[0].ids, *back], dtype=np.int32)
            kept = _kept(len(ids), how)
            if isinstance(kept, Encoded):
                yield kept
                continue
            owner = _owners(sample, encodings[0], align)
            words = np.concatenate([np.full(len(front), -1), owner, np.full(len(back), -1)])[kept]
            labels = np.array([numbers[tags[w]] if w >= 0 else 0 for w in words], dtype=np.int32)
            example = Example(ids[kept], words >= 0, 0, sample.row.file, sample.row.number, labels=labels)
            some = bool((words >= 0).any())
            yield Encoded(
                (example,) if some else (),
                reason="" if some else "no_targets",
                truncated=len(kept) < len(ids),
                lost=len(sample.words) - int((words >= 0).sum()),
            )


def _owners(sample: Sample, encoding: Encoding, align: Align) -> np.ndarray:
    """For each token the number of the word whose label it has, or -1."""
    lengths = np.array([len(word) for word in sample.words])
    stops = np.cumsum(lengths + 1) - 1
    starts = stops - lengths
    offsets = encoding.offsets
    owner = np.full(len(offsets), -1)
    order = range(len(offsets)) if align == "last" else reversed(range(len(offsets)))
    chosen: dict[int, int] = {}
    for token in order:  # the last assignment stays
        begin, end = offsets[token]
        word = int(np.searchsorted(stops, begin, side="right"))
        if word < len(starts) and begin < stops[word] and end > starts[word]:
            chosen[word] = token
    for word, token in chosen.items():
        owner[token] = word
    return owner


def word_owners(renderer: Renderer, sample: Sample, align: Align) -> list[int]:
    """Numbers of the words that have a token with their label, in order; a word of nothing visible has none."""
    with core_of(renderer.tokenizer, special=False) as core:
        encoding = core.encode(" ".join(sample.words), add_special_tokens=False)
    return [int(word) for word in _owners(sample, encoding, align) if word >= 0]


def _around(how: Labelling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids before and after a text."""
    front, back = how.renderer.around
    eos = how.renderer.tokenizer.eos_token_id
    return front, (int(eos),) if how.ends and not back and eos is not None else back


def _kept(length: int, how: Labelling) -> np.ndarray | Encoded:
    """Positions that stay of a text: all, or all but some before its special tokens; or why the row is left out."""
    limit = how.max_length
    if length <= limit:
        return np.arange(length)
    if how.overlong == "drop":
        return Encoded(reason="overlong")
    if how.overlong != "truncate":
        hint = "Raise data.max_length or set data.overlong: drop or truncate."
        return Encoded(reason=TOO_LONG, message=f"has {length} tokens, more than max_length {limit}. {hint}")
    back = len(_around(how)[1])
    return np.concatenate([np.arange(limit - back), np.arange(length - back, length)])
