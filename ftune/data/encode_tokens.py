"""Rows that are tokens already become examples: no template, no tokenizer, only the policy for long rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ftune.data.encode import BAD_ROW, Encoded, Overlong, Tokens, fitted
from ftune.data.pipeline import BATCH
from ftune.data.render import Renderer
from ftune.data.shape import Sample


class Counted(NamedTuple):
    """Bytes of tokens that came without a text.

    Args:
        sizes: UTF-8 bytes of each token, int [T].
    """

    sizes: np.ndarray

    def num_bytes(self, ids: np.ndarray, first: int, last: int) -> int:
        """UTF-8 bytes of tokens `first` to `last - 1`."""
        return int(self.sizes[first:last].sum())


def encode_tokens(
    samples: Iterable[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> Iterator[Encoded]:
    """What becomes of each row of token ids. Targets are those that the row marks; the first token never is one.

    Bytes are counted as the tokenizer spells the targets.
    """
    size = len(renderer.tokenizer)
    for number, sample in enumerate(samples):
        if number % BATCH == 0:
            tick(number)
        largest = max(sample.ids)
        if largest >= size:
            message = f"has the token id {largest}, but the tokenizer has ids 0 to {size - 1} only."
            yield Encoded(reason=BAD_ROW, message=message)
            continue
        tokens = Tokens(
            ids=np.array(sample.ids, dtype=np.int32),
            is_target=np.array(sample.learned, dtype=bool),
            front=int(sample.ids[0] == renderer.tokenizer.bos_token_id),
            merges=False,
            spelled=Counted(_bytes_of(sample.ids, renderer)),
            shift=0,
        )
        yield fitted(sample, tokens, max_length, overlong or "error")


def _bytes_of(ids: Sequence[int], renderer: Renderer) -> np.ndarray:
    """UTF-8 bytes of each token by itself, one for what is part of a character; special tokens have none."""
    own = sorted(set(ids) - renderer.special_ids)
    words = renderer.tokenizer.batch_decode([[i] for i in own], clean_up_tokenization_spaces=False)
    sizes = {i: len(word.replace("\ufffd", "?").encode()) for i, word in zip(own, words, strict=True)}
    return np.array([sizes.get(i, 0) for i in ids])
