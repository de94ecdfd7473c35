"""Examples, what became of a row, and what happens to token ids that are longer than `max_length`.

Pads do not exist here: they are added by length, in batches.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from ftune.data.shape import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding

Overlong = Literal["error", "drop", "truncate_prompt", "truncate", "split"]
KEPT, BAD_ROW, TOO_LONG = "", "bad_row", "too_long"
"""What became of a row besides reasons for dropping: kept, or refused for what is wrong with it or for its length."""


@dataclass(frozen=True)
class Example:
    """One encoded row, one window of a long text, or one answer of a chat with what stands before it.

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
        return int(np.count_nonzero(self.is_target))

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, of the text and of an answer."""
        return len(self.ids) + (0 if self.answer is None else len(self.answer))

    @property
    def place(self) -> str:
        """`file:row`."""
        return f"{self.file}:{self.number}"


class Encoded(NamedTuple):
    """What became of one row.

    Args:
        examples: one, the windows of a long text, or one for each answer of a chat; none where the row is left out.
        reason: why it is left out: `overlong`, `no_targets`, BAD_ROW, TOO_LONG; KEPT if it is not.
        message: of a refused row, what is wrong with it.
        truncated: whether it was cut to size.
        merges: whether a token spells the end of a prompt and the start of its answer.
        lost: words without a token of their own.
        note: what the report should say of such rows: lines, or nothing.
    """

    examples: Sequence[Example] = ()
    reason: str = KEPT
    message: str = ""
    truncated: bool = False
    merges: bool = False
    lost: int = 0
    note: str = ""


class Spelling(Protocol):
    """Knows what tokens spell."""

    def num_bytes(self, ids: np.ndarray, first: int, last: int) -> int:
        """UTF-8 bytes that tokens `first` to `last - 1`, with these ids, add to those before them."""


class Tokens(NamedTuple):
    """One row before it is cut to size.

    Args:
        ids, is_target: with the special tokens around, [T].
        front: how many special tokens at the start stay when a prompt is shortened.
        merges: whether a token spells the end of a prompt and the start of its answer.
        spelled: text and places of the tokens.
        shift: the target at position t is token t + shift of the text.
        removable: ranges of positions before the first target that may go, oldest first; None for all of the prompt.
    """

    ids: np.ndarray
    is_target: np.ndarray
    front: int
    merges: bool
    spelled: Spelling
    shift: int
    removable: tuple[tuple[int, int], ...] | None = None


class Spelled(NamedTuple):
    """The text that tokens spell. The places of tokens never go back, so borders are found by halving.

    Args:
        text: what was tokenised.
        encoding: its tokens.
        silent: which token ids are of a template and spell nothing, bool [V], or None for a text without any.
    """

    text: str
    encoding: Encoding
    silent: np.ndarray | None

    def touching(self, start: int, end: int) -> tuple[int, int]:
        """First token that reaches beyond character `start`, and first that begins at `end` or later."""
        size, place = len(self.encoding), self._place
        first, last = 0, size
        if size and place(0)[1] <= start:
            first = bisect.bisect_right(range(size), start, key=lambda token: place(token)[1])
        if first < size and place(size - 1)[0] >= end:
            last = bisect.bisect_left(range(size), end, lo=first, key=lambda token: place(token)[0])
        return first, last

    def inside(self, start: int, end: int) -> tuple[int, int]:
        """First token that is all in text[start:end], and the one after the last but one: a token of it stays."""
        first, last = self.touching(start, end)
        first += self.begins_before(first, start)
        last -= last > first and self._place(last - 1)[1] > end
        return first, max(first, last - 1)

    def begins_before(self, token: int, start: int) -> bool:
        """Whether a token covers a character before `start`."""
        return token < len(self.encoding) and self._place(token)[0] < start

    def num_bytes(self, ids: np.ndarray, first: int, last: int) -> int:
        """UTF-8 bytes that tokens `first` to `last - 1`, with these ids, add to those before them.

        A character spread over several tokens counts at the first, and one without a token at the next or, at the end
        of the text, at the last; so the sum is that of the text, whatever the tokenizer leaves out.
        """
        size = self._bytes(first, last)
        if self.silent is not None:
            for token in self.silent[ids].nonzero()[0]:
                size -= self._bytes(first + int(token), first + int(token) + 1)
        return size

    def _bytes(self, first: int, last: int) -> int:
        last = min(last, len(self.encoding))  # an EOS was put behind
        if first >= last:
            return 0
        start = self._place(first - 1)[1] if first else 0
        end = len(self.text) if last == len(self.encoding) else self._place(last - 1)[1]
        return end - start if self.text.isascii() else len(self.text[start:end].encode())

    def _place(self, token: int) -> tuple[int, int]:
        return self.encoding.token_to_chars(token) or (0, 0)


def fitted(sample: Sample, tokens: Tokens, max_length: int, policy: Overlong) -> Encoded:
    """Apply the overlong policy."""
    length = len(tokens.ids)
    if not tokens.is_target.any():
        return Encoded(reason="no_targets", merges=tokens.merges)
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
        return Encoded(reason="overlong", merges=tokens.merges)
    else:
        what = "What is trained on is" if tokens.removable is None else "What has to stay of this chat is"
        hint = f"{what} too long by itself: raise data.max_length or use overlong: drop."
        if policy == "error":
            hint = "Raise data.max_length or set data.overlong: drop, truncate_prompt or truncate."
        message = f"has {length} tokens, more than max_length {max_length}. {hint}"
        return Encoded(reason=TOO_LONG, message=message, merges=tokens.merges)
    examples = [example for piece in pieces if (example := _example(sample, tokens, piece)) is not None]
    if not examples:
        return Encoded(reason="no_targets", merges=tokens.merges)
    return Encoded(examples, truncated=length > max_length and policy != "split", merges=tokens.merges)


def _shorten_prompt(tokens: Tokens, max_length: int) -> Tokens | None:
    """Drop the oldest tokens that may go, keeping BOS and the whole answer; None if what stays does not fit."""
    excess = len(tokens.ids) - max_length
    first_target = int(tokens.is_target.argmax())
    ranges = tokens.removable
    if ranges is None:
        ranges = ((tokens.front, first_target - (0 if tokens.front else 1)),)
    keep = np.ones(len(tokens.ids), dtype=bool)
    left = excess
    for first, last in ranges:
        gone = max(0, min(left, last - first))
        keep[first : first + gone] = False
        left -= gone
    if left:
        return None
    return tokens._replace(ids=tokens.ids[keep], is_target=tokens.is_target[keep], shift=tokens.shift + excess)


def _example(sample: Sample, tokens: Tokens, piece: slice) -> Example | None:
    """One window, or None when nothing in it is to be learned."""
    ids, is_target = tokens.ids[piece], tokens.is_target[piece].copy()
    is_target[0] = False  # nothing stands before it to predict it from
    borders = [int(at) + 1 for at in (is_target[1:] != is_target[:-1]).nonzero()[0]]
    if not borders:
        return None
    borders += [len(ids)] if len(borders) % 2 else []
    shift = tokens.shift + piece.start
    spans = zip(borders[::2], borders[1::2], strict=True)
    num_bytes = sum(tokens.spelled.num_bytes(ids[a:b], a + shift, b + shift) for a, b in spans)
    return Example(ids, is_target, num_bytes, sample.row.file, sample.row.number)
