"""Rendered rows become token ids with a mask of what is supervised, no longer than `max_length`.

A token that touches a supervised span is supervised. Pads do not exist here: they are added by length, in batches.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ftune.data.render import Rendered, Renderer, TrainOn
from ftune.data.shape import Sample
from ftune.errors import DataError, RowProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["error", "drop", "truncate_prompt", "truncate", "split"]
BATCH = 256


@dataclass(frozen=True)
class Example:
    """One encoded row, or one window of a long text.

    Args:
        ids: int32 token ids, [T].
        is_target: bool; what enters the loss, of the shape of `answer` or `labels` where there is one. Else [T]: token
            t is to be predicted from those before it, and the first never is.
        num_bytes: UTF-8 bytes of the text that the targets spell; special tokens around it and of templates have none.
        file: where the row came from.
        number: its line or row, from 1.
        answer: int32 ids that a decoder writes after an encoder read `ids`, [N].
        labels: int32 label of each token, [T], or of the row, [1]; float32 number of the row, [1], or 0 and 1, [K].
        features: float32 features of a frozen body instead of tokens, [D] or [N, D].
    """

    ids: np.ndarray
    is_target: np.ndarray
    num_bytes: int
    file: str
    number: int
    answer: np.ndarray | None = None
    labels: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def num_targets(self) -> int:
        """Positions that enter the loss."""
        return int(self.is_target.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, of the text and of an answer."""
        return len(self.ids) + (0 if self.answer is None else len(self.answer))

    @property
    def place(self) -> str:
        """`file:row`."""
        return f"{self.file}:{self.number}"


@dataclass
class Report:
    """What became of the rows of one split; `rows == kept + sum(dropped)`."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    truncated_rows: list[str] = field(default_factory=list)
    windows: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, examples: Sequence[Example]) -> None:
        """Note how much there is to train on."""
        self.tokens = sum(example.num_tokens for example in examples)
        self.targets = sum(example.num_targets for example in examples)
        self.longest = max((example.num_tokens for example in examples), default=0)

    def drop(self, reason: str, place: str) -> None:
        """Count one row that is not trained on."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self.dropped[reason] <= DataError.SHOWN:
            self.notes.append(f"dropped ({reason}): {place}")


@dataclass(frozen=True)
class Tokens:
    """One row before it is cut to size.

    Args:
        ids, is_target, num_bytes: of each token, [T].
        front: how many special tokens at the start stay when a prompt is shortened.
        merges: whether a token spells the end of a prompt and the start of its answer.
    """

    ids: np.ndarray
    is_target: np.ndarray
    num_bytes: np.ndarray
    front: int
    merges: bool


def encode_all(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    train_on: TrainOn,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> tuple[list[Example], Report]:
    """Encode every sample.

    Args:
        samples: rows in one shape.
        renderer: how they become text.
        train_on: which part is supervised.
        max_length: longest example, in tokens.
        overlong: what happens to longer rows; None splits text and refuses anything else.
        tick: called with the number of rows done, often; may raise to stop.

    Raises:
        DataError: rows that cannot be rendered, are too long under `error`, or leave nothing to learn.
    """
    examples: list[Example] = []
    report = Report(rows=len(samples))
    problems: list[RowProblem] = []
    merged = 0
    noted: Counter[str] = Counter()
    for start in range(0, len(samples), BATCH):
        tick(start)
        for sample, tokens in _tokenised(samples[start : start + BATCH], renderer, train_on, problems, noted):
            merged += tokens.merges
            policy = overlong or ("error" if sample.turns else "split")
            examples += _fit(sample, tokens, max_length, policy, report, problems)
    tick(len(samples))
    if problems:
        raise DataError(problems=problems)
    report.notes += [f"{count} rows: {note}." for note, count in noted.items()]
    if merged:
        report.notes.append(
            f"{merged} rows: one token spells the end of the prompt and the start of the answer, so a prompt alone is "
            "tokenised otherwise. End prompts without a space, and begin answers with one."
        )
    report.count(examples)
    return examples, report


def _tokenised(
    samples: Sequence[Sample],
    renderer: Renderer,
    train_on: TrainOn,
    problems: list[RowProblem],
    noted: Counter[str],
) -> Iterator[tuple[Sample, Tokens]]:
    rendered: list[tuple[Sample, Rendered]] = []
    for sample in samples:
        try:
            rendered.append((sample, renderer.render(sample, train_on)))
        except ValueError as error:
            problems.append(sample.row.problem(f"{str(error).rstrip('.')}."))
    if not rendered:
        return
    noted.update(note for _, item in rendered for note in item.notes)
    with whole_offsets(renderer.tokenizer):
        encoded = renderer.tokenizer(
            [item.text for _, item in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
    for (sample, item), ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield sample, _with_ends(item, renderer, ids, offsets)


@contextmanager
def whole_offsets(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Without its post-processor, which here would only trim the spaces off the places of tokens, as Llama 3's does."""
    core = tokenizer.backend_tokenizer
    kept = core.post_processor
    core.post_processor = None
    try:
        yield
    finally:
        core.post_processor = kept


def _with_ends(item: Rendered, renderer: Renderer, ids: list[int], offsets: list[tuple[int, int]]) -> Tokens:
    """Mark the supervised tokens and put special tokens around, one BOS at most and one terminator."""
    places = np.fromiter(itertools.chain.from_iterable(offsets), dtype=np.int64, count=2 * len(ids))
    starts, stops = places[::2], places[1::2]
    is_target = np.zeros(len(ids), dtype=bool)
    merges = False
    for start, end in item.spans:
        reaches = stops > start
        is_target |= (starts < end) & reaches
        merges |= bool((reaches & (starts < start)).any())
    tokenizer = renderer.tokenizer
    front = renderer.missing_front(ids, special=item.special)
    eos = tokenizer.eos_token_id
    back = [int(eos)] if not item.ends and eos is not None and ids[-1:] != [eos] else []
    written = 0 if front or tokenizer.bos_token_id is None else int(ids[:1] == [tokenizer.bos_token_id])
    num_bytes = _bytes_of(item.text, stops)
    if not item.special:
        special = renderer.special_ids  # ends of turns are no more text than an EOS is
        num_bytes[[place for place, i in enumerate(ids) if i in special]] = 0
    return Tokens(
        ids=np.array([*front, *ids, *back], dtype=np.int32),
        is_target=np.concatenate([np.zeros(len(front), bool), is_target, np.ones(len(back), bool)]),
        num_bytes=np.concatenate([np.zeros(len(front), int), num_bytes, np.zeros(len(back), int)]),
        front=len(front) + written,
        merges=merges,
    )


def _bytes_of(text: str, stops: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each token adds to those before it.

    A character spread over several tokens counts at the first, and one without a token at the next; so the sum is that
    of the text, whatever the tokenizer leaves out.
    """
    if len(stops) == 0:
        return np.zeros(0, int)
    reached = np.maximum.accumulate(stops)
    reached[-1] = len(text)
    return np.diff(_widths(text)[reached], prepend=0)


def _widths(text: str) -> np.ndarray:
    """UTF-8 bytes before each character, and of all."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (points > 0x7F).astype(int) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])


def _fit(
    sample: Sample,
    tokens: Tokens,
    max_length: int,
    policy: Overlong,
    report: Report,
    problems: list[RowProblem],
) -> list[Example]:
    """Apply the overlong policy; count what it does."""
    place = f"{sample.row.file}:{sample.row.number}"
    length = len(tokens.ids)
    if not tokens.is_target.any():
        report.drop("no_targets", place)
        return []
    if length <= max_length:
        pieces = [slice(0, length)]
    elif policy == "split":
        # windows share one token: the last target of one is the first context of the next, so each is trained once
        pieces = [slice(start, start + max_length) for start in range(0, length - 1, max_length - 1)]
    elif policy == "truncate":
        pieces = [slice(0, max_length)]
    elif policy == "truncate_prompt" and (shorter := _shorten_prompt(tokens, max_length)) is not None:
        tokens, pieces = shorter, [slice(0, max_length)]
    elif policy == "drop":
        report.drop("overlong", place)
        return []
    else:
        hint = "What is trained on is too long by itself: raise data.max_length or use overlong: drop."
        if policy == "error":
            hint = "Raise data.max_length or set data.overlong: drop, truncate_prompt or truncate."
        problems.append(sample.row.problem(f"has {length} tokens, more than max_length {max_length}. {hint}"))
        return []
    examples = [example for piece in pieces if (example := _example(sample, tokens, piece)).num_targets > 0]
    if not examples:
        report.drop("no_targets", place)
        return []
    report.kept += 1
    report.windows += len(examples)
    if length > max_length and policy != "split":
        report.truncated += 1
        report.truncated_rows += [place][: DataError.SHOWN - len(report.truncated_rows)]
    return examples


def _shorten_prompt(tokens: Tokens, max_length: int) -> Tokens | None:
    """Drop the oldest tokens of the prompt, keeping BOS and the whole answer; None if the answer does not fit."""
    excess = len(tokens.ids) - max_length
    first_target = int(tokens.is_target.argmax())
    if first_target - tokens.front - excess < (0 if tokens.front else 1):
        return None
    keep = np.ones(len(tokens.ids), dtype=bool)
    keep[tokens.front : tokens.front + excess] = False
    return Tokens(tokens.ids[keep], tokens.is_target[keep], tokens.num_bytes[keep], tokens.front, tokens.merges)


def _example(sample: Sample, tokens: Tokens, piece: slice) -> Example:
    is_target = tokens.is_target[piece].copy()
    is_target[0] = False  # nothing stands before it to predict it from
    num_bytes = int(tokens.num_bytes[piece][is_target].sum())
    return Example(tokens.ids[piece], is_target, num_bytes, sample.row.file, sample.row.number)
