"""Rows that are tokens already become examples: no template, no tokenizer, only the policy for long rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ftune.data.encode import BATCH, Example, Overlong, Report, Tokens, _fit
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError, RowProblem


def encode_tokens(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> tuple[list[Example], Report]:
    """Examples of rows with token ids, whose targets are those that the row marks; the first token never is one.

    Bytes are counted as the tokenizer spells the targets.

    Raises:
        DataError: ids that the tokenizer does not have, or rows that are too long under `error`.
    """
    report, problems = Report(rows=len(samples)), list[RowProblem]()
    examples: list[Example] = []
    size = len(renderer.tokenizer)
    for number, sample in enumerate(samples):
        if number % BATCH == 0:
            tick(number)
        largest = max(sample.ids)
        if largest >= size:
            problems.append(
                sample.row.problem(f"has the token id {largest}, but the tokenizer has ids 0 to {size - 1} only.")
            )
            continue
        is_target = np.array(sample.learned, dtype=bool)
        tokens = Tokens(
            ids=np.array(sample.ids, dtype=np.int32),
            is_target=is_target,
            num_bytes=_bytes_of(sample.ids, renderer),
            front=int(sample.ids[0] == renderer.tokenizer.bos_token_id),
            merges=False,
        )
        examples += _fit(sample, tokens, max_length, overlong or "error", report, problems)
    tick(len(samples))
    if problems:
        raise DataError(problems=problems)
    report.count(examples)
    return examples, report


def _bytes_of(ids: Sequence[int], renderer: Renderer) -> np.ndarray:
    """UTF-8 bytes of each token by itself, one for what is part of a character; special tokens have none."""
    own = sorted(set(ids) - renderer.special_ids)
    words = renderer.tokenizer.batch_decode([[i] for i in own], clean_up_tokenization_spaces=False)
    sizes = {i: len(word.replace("\ufffd", "?").encode()) for i, word in zip(own, words, strict=True)}
    return np.array([sizes.get(i, 0) for i in ids])
