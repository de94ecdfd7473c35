"""Texts go through the tokenizer in batches, in a thread of their own, while Python prepares and digests others.

The tokenizer is called below transformers, whose lists of masks and places would cost more than the tokens themselves.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ftune.data.shape import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

BATCH, CHARACTERS = 1024, 1 << 19
"""Rows that are tokenised together: at most so many, of so many characters, which bounds the memory they take."""
AHEAD = 2
"""Batches that wait for the tokenizer, so that it never waits for us."""
Item = TypeVar("Item")
Text = str | tuple[str, str]


class Prepared(NamedTuple, Generic[Item]):
    """A sample on its way: what it was rendered to, and the texts to tokenise; or why it cannot be rendered."""

    sample: Sample
    item: Item | None
    texts: tuple[Text, ...]
    message: str = ""


class Tokenised(NamedTuple, Generic[Item]):
    """A sample with the tokens of each of its texts; or why it cannot be rendered."""

    sample: Sample
    item: Item | None
    encodings: list[Encoding]
    message: str


@contextmanager
def core_of(tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Iterator[Tokenizer]:
    """The tokenizer below transformers, for whole texts.

    Args:
        tokenizer: left as it was.
        special: whether it puts its own special tokens around a text. If not, its post-processor is away too, which
            would only trim the spaces off the places of tokens, as Llama 3's does.
    """
    tokenizer("a")  # which also takes away padding and truncation that came with its file
    core: Tokenizer = tokenizer.backend_tokenizer
    kept = core.post_processor
    if not special:
        core.post_processor = None
    try:
        yield core
    finally:
        core.post_processor = kept


@contextmanager
def few_collections() -> Iterator[None]:
    """Spares the garbage collector what is there already, such as all of torch, which it would walk through often."""
    if gc.get_freeze_count():  # somebody else's, and theirs to give back
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tokenised(
    samples: Iterable[Sample],
    render: Callable[[Sample], tuple[Item, tuple[Text, ...]]],
    core: Tokenizer,
    *,
    special: bool,
    tick: Callable[[int], None],
) -> Iterator[Tokenised[Item]]:
    """Every sample in order, with the tokens of its texts.

    Args:
        samples: any number.
        render: says what a sample is rendered to and which texts are to be tokenised; raises ValueError for one that
            cannot be rendered.
        core: see `core_of`.
        special: whether special tokens are put around.
        tick: called with the number of rows that are done, before each batch; may raise to stop.
    """
    waiting: deque[tuple[list[Prepared[Item]], Future[list[Encoding]]]] = deque()
    done = 0
    rows = iter(samples)
    with ThreadPoolExecutor(max_workers=1) as thread:
        while True:
            batch = _batch(rows, render)
            if batch:
                texts = [text for one in batch for text in one.texts]
                waiting.append((batch, thread.submit(core.encode_batch, texts, add_special_tokens=special)))
            while len(waiting) > (AHEAD if batch else 0):
                tick(done)
                ready, future = waiting.popleft()
                encodings = iter(future.result())
                for one in ready:
                    yield Tokenised(one.sample, one.item, [next(encodings) for _ in one.texts], one.message)
                done += len(ready)
            if not batch:
                return


def _batch(rows: Iterator[Sample], render: Callable[[Sample], tuple[Item, tuple[Text, ...]]]) -> list[Prepared[Item]]:
    found: list[Prepared[Item]] = []
    size = 0
    while len(found) < BATCH and size < CHARACTERS and (sample := next(rows, None)) is not None:
        one = _prepared(sample, render)
        found.append(one)
        size += sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in one.texts)
    return found


def _prepared(sample: Sample, render: Callable[[Sample], tuple[Item, tuple[Text, ...]]]) -> Prepared[Item]:
    try:
        return Prepared(sample, *render(sample))
    except ValueError as error:
        return Prepared(sample, None, (), f"{str(error).rstrip('.')}.")
