"""Which examples each step sees: a pure function of (seed, epoch), so that a run can be cut and go on anywhere.

Step s of an epoch takes rows s*B .. (s+1)*B - 1 of that epoch's permutation; the last window of an epoch is short
rather than mixed with the next. Micro-batches are dealt to ranks in turn. Neither the number of processes nor the
place where a run was cut changes what a step learns from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ftune.data.encode import Example


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine and version."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size). Sorts raw generator output, which numpy keeps stable over its versions."""
    keys = np.random.Philox(key=derived_seed("order", seed, epoch)).random_raw(size)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True)
class Window:
    """The examples of one optimizer step, cut into micro-batches.

    Args:
        step: the step they belong to, from 0.
        micro_batches: examples of each micro-batch of the whole window, over all ranks.
    """

    step: int
    micro_batches: tuple[tuple[Example, ...], ...]

    @property
    def num_targets(self) -> int:
        """Targets of the window over all ranks."""
        return sum(example.num_targets for batch in self.micro_batches for example in batch)

    @property
    def num_tokens(self) -> int:
        """Tokens, without pads, of the window over all ranks."""
        return sum(example.num_tokens for batch in self.micro_batches for example in batch)

    def of_rank(self, rank: int, num_ranks: int) -> list[tuple[int, tuple[Example, ...]]]:
        """This rank's micro-batches with their number in the window. A rank may have none."""
        return [(i, batch) for i, batch in enumerate(self.micro_batches) if i % num_ranks == rank]


Draw = Callable[[Example, int], Example]
"""What an objective hides of an example, as a function of a seed."""


def draw_seed(seed: int, epoch: int, index: int) -> int:
    """What an epoch of training hides of example `index`."""
    return derived_seed("draw", seed, epoch, index)


def held_out_seed(index: int) -> int:
    """What every evaluation hides of example `index`."""
    return derived_seed("held-out", index)


def window(
    examples: Sequence[Example],
    step: int,
    *,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    draw: Draw | None = None,
) -> Window:
    """The window of `step`. Inside it, examples are sorted by length, so that little is padded.

    What `draw` hides depends on (seed, epoch, example): another epoch hides something else.
    """
    per_epoch = steps_per_epoch(len(examples), batch_size)
    epoch, position = divmod(step, per_epoch)
    chosen = permutation(seed, epoch, len(examples))[position * batch_size : (position + 1) * batch_size]
    drawn = (examples[i] if draw is None else draw(examples[i], draw_seed(seed, epoch, int(i))) for i in chosen)
    by_length = sorted(drawn, key=lambda example: -example.num_tokens)
    starts = range(0, len(by_length), micro_batch_size)
    return Window(step, tuple(tuple(by_length[i : i + micro_batch_size]) for i in starts))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer steps that see every example once."""
    return -(-num_examples // batch_size)
