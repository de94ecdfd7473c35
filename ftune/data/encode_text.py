"""Rendered rows become token ids with a mask of what is supervised. A token that touches a supervised span is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ftune.data.conversation import Part, Rendered, TrainOn
from ftune.data.encode import BAD_ROW, KEPT, TOO_LONG, Encoded, Overlong, Spelled, Tokens, fitted
from ftune.data.pipeline import core_of, tokenised
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.data.shorten import Shortener

if TYPE_CHECKING:
    from tokenizers import Encoding


def encode_rows(
    samples: Iterable[Sample],
    renderer: Renderer,
    *,
    train_on: TrainOn,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> Iterator[Encoded]:
    """What becomes of each sample, in order.

    Args:
        samples: rows in one shape.
        renderer: how they become text.
        train_on: which part is supervised.
        max_length: longest example, in tokens.
        overlong: what happens to longer rows; None splits text and refuses anything else.
        tick: called with the number of rows done, often; may raise to stop.
    """
    silent = np.zeros(1 + max(renderer.special_ids, default=0), dtype=bool)
    silent[list(renderer.special_ids)] = True  # ends of turns are no more text than an EOS is
    silent = np.concatenate([silent, np.zeros(max(0, len(renderer.tokenizer) - len(silent)), dtype=bool)])
    bos, eos = renderer.tokenizer.bos_token_id, renderer.tokenizer.eos_token_id
    _ = renderer.around  # asked of the whole tokenizer, before a part is taken away

    def render(sample: Sample) -> tuple[tuple[Part, ...], tuple[str, ...]]:
        parts = renderer.parts(sample, train_on)
        return parts, tuple(part.rendered.text for part in parts)

    def marked(item: Rendered, encoding: Encoding) -> Tokens:
        return _with_ends(item, renderer, Spelled(item.text, encoding, None if item.special else silent), bos, eos)

    with core_of(renderer.tokenizer, special=False) as core:
        shortener = Shortener(renderer, functools.partial(core.encode, add_special_tokens=False), marked, max_length)
        for sample, parts, encodings, message in tokenised(samples, render, core, special=False, tick=tick):
            if parts is None:
                yield Encoded(reason=BAD_ROW, message=message)
                continue
            policy, found = overlong or ("error" if sample.turns else "split"), []
            for part, encoding in zip(parts, encodings, strict=True):
                tokens = marked(part.rendered, encoding)
                too_long = len(tokens.ids) > max_length and bool(part.rendered.spans)
                if too_long and policy == "truncate_prompt" and renderer.mode == "chat":
                    tokens = shortener.shorten(sample, part, encoding)
                one = fitted(sample, tokens, max_length, policy)
                found.append(one._replace(truncated=bool(one.examples)) if too_long and policy != "split" else one)
            notes = dict.fromkeys(note for part in parts for note in part.rendered.notes)
            whole = found[0] if len(found) == 1 else _together(found)
            yield whole._replace(note="\n".join(notes)) if notes else whole


def _together(found: Sequence[Encoded]) -> Encoded:
    """What becomes of a row whose answers are examples of their own. One that may not stay takes the row with it."""
    merges = any(one.merges for one in found)
    for number, one in enumerate(found, 1):
        if one.reason == "overlong":
            return one._replace(merges=merges)
        if one.reason == TOO_LONG:
            return one._replace(message=f"up to its answer {number}, {one.message}", merges=merges)
    examples = [example for one in found for example in one.examples]
    cut = any(one.truncated or not one.examples for one in found)  # of some, the whole answer was cut off
    return Encoded(examples, reason=KEPT if examples else "no_targets", truncated=cut and bool(examples), merges=merges)


def _with_ends(item: Rendered, renderer: Renderer, spelled: Spelled, bos: int | None, eos: int | None) -> Tokens:
    """Mark the supervised tokens and put special tokens around, one BOS at most and one terminator."""
    ids = spelled.encoding.ids
    front = renderer.missing_front(ids, special=item.special)
    back = [eos] if not item.ends and eos is not None and ids[-1:] != [eos] else []
    written = 0 if front or bos is None else int(ids[:1] == [bos])
    is_target = np.zeros(len(front) + len(ids) + len(back), dtype=bool)
    merges = False
    for start, end in item.spans:
        first, last = spelled.touching(start, end)
        is_target[len(front) + first : len(front) + last] = True
        merges |= spelled.begins_before(first, start)
    is_target[len(front) + len(ids) :] = True
    return Tokens(
        ids=np.array([*front, *ids, *back] if front or back else ids, dtype=np.int32),
        is_target=is_target,
        front=len(front) + written,
        merges=merges,
        spelled=spelled,
        shift=-len(front),
    )
