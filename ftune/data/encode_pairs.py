"""Rows for models that do not predict the next token: prompt and answer for encoder-decoders, text to hide parts of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ftune.data.encode import BAD_ROW, TOO_LONG, Encoded, Example, Overlong
from ftune.data.pipeline import core_of, tokenised
from ftune.data.render import Renderer
from ftune.data.shape import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding


def encode_pairs(
    samples: Iterable[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> Iterator[Encoded]:
    """What an encoder reads and what its decoder writes, each with the tokenizer's own special tokens and EOS.

    `max_length` holds for either side. `truncate_prompt` cuts the beginning of the prompt, `truncate` the end of both.
    What is read keeps its special tokens then. An answer loses its EOS with the rest: a cut is no end to learn.
    """
    front, end = _around(renderer)
    ends = () if renderer.around[1] else end

    def render(sample: Sample) -> tuple[str, tuple[str, str]]:
        target = renderer.answer(sample)
        return target, (renderer.prompt(sample), target)

    with core_of(renderer.tokenizer, special=True) as core:
        for sample, target, encodings, message in tokenised(samples, render, core, special=True, tick=tick):
            if target is None:
                yield Encoded(reason=BAD_ROW, message=message)
                continue
            prompt, answer = ([*encoding.ids, *ends] for encoding in encodings)
            too_long = len(prompt) > max_length or len(answer) > max_length
            if too_long and overlong == "drop":
                yield Encoded(reason="overlong")
            elif too_long and not _cuttable(len(answer), max_length, overlong):
                sizes = f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens"
                message = f"has {sizes}, more than max_length {max_length}. "
                yield Encoded(reason=TOO_LONG, message=f"{message}Raise it, or set data.overlong: drop or truncate.")
            else:
                ids = np.array(_cut(prompt, len(front), len(end), max_length, overlong), dtype=np.int32)
                written = np.array(answer[:max_length], dtype=np.int32)
                every, size = np.ones(len(written), dtype=bool), _num_bytes(target, encodings[1], max_length)
                example = Example(ids, every, size, sample.row.file, sample.row.number, answer=written)
                yield Encoded((example,), truncated=too_long)


def _num_bytes(text: str, encoding: Encoding, limit: int) -> int:
    """UTF-8 bytes of the text that its first `limit` tokens spell; a character counts at the first of its tokens."""
    if len(encoding.offsets) > limit:
        text = text[: max(end for _, end in encoding.offsets[:limit])]
    return len(text.encode())


def _around(renderer: Renderer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids before a text, and after it with EOS."""
    front = renderer.around[0]
    return front, tuple(renderer.encoder_ids("")[len(front) :])


def _cuttable(answer: int, limit: int, overlong: Overlong | None) -> bool:
    return overlong == "truncate" or (overlong == "truncate_prompt" and answer <= limit)


def _cut(prompt: list[int], front: int, back: int, limit: int, overlong: Overlong | None) -> list[int]:
    """A prompt of at most `limit` tokens; the special ones at both ends stay."""
    if len(prompt) <= limit:
        return prompt
    keep = limit - front - back
    middle = prompt[front : len(prompt) - back]
    middle = middle[-keep:] if overlong == "truncate_prompt" else middle[:keep]
    return [*prompt[:front], *middle, *prompt[len(prompt) - back :]]


def encode_windows(
    samples: Iterable[Sample], renderer: Renderer, *, max_length: int, overlong: Overlong | None,
    tick: Callable[[int], None],
) -> Iterator[Encoded]:  # fmt: skip
    """Texts to hide parts of, each window between the tokenizer's own special tokens, which are never hidden.

    Longer texts are split, so that every token is read once an epoch; windows of two documents never mix.
    """
    front, back = _around(renderer)
    room = max_length - len(front) - len(back)

    def example(sample: Sample, piece: list[int]) -> Example:
        hideable = np.zeros(len(front) + len(piece) + len(back), dtype=bool)
        hideable[len(front) : len(front) + len(piece)] = True
        window = np.array([*front, *piece, *back], dtype=np.int32)
        return Example(window, hideable, 0, sample.row.file, sample.row.number)

    def render(sample: Sample) -> tuple[str, tuple[str]]:
        return "", (sample.text,)

    with core_of(renderer.tokenizer, special=False) as core:
        for sample, _, encodings, _ in tokenised(samples, render, core, special=False, tick=tick):
            ids, policy = encodings[0].ids, overlong or "split"
            if not ids or (len(ids) > room and policy == "drop"):
                yield Encoded(reason="overlong" if ids else "no_targets")
            elif len(ids) > room and policy not in ("split", "truncate"):
                message = f"has {len(ids)} tokens, more than the {room} of a window. Use data.overlong: split."
                yield Encoded(reason=TOO_LONG, message=message)
            else:
                cut = len(ids) > room and policy == "truncate"
                pieces = [ids[:room]] if cut else [ids[start : start + room] for start in range(0, len(ids), room)]
                yield Encoded([example(sample, piece) for piece in pieces], truncated=cut)
