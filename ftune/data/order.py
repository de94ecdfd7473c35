"""Which examples each step sees: a pure function of (seed, epoch), so that a run can be cut and go on anywhere.

Step s of an epoch takes rows s*B .. (s+1)*B - 1 of that epoch's permutation; the last window of an epoch is short
rather than mixed with the next. Micro-batches are dealt to ranks in turn. Neither the number of processes nor the
place where a run was cut changes what a step learns from.

Where sources have weights, an epoch sees a part of one source, or all of it more than once. Each source is an endless
row of permutations of its examples, and epoch e takes the next stretch of it: so every example comes once before any
comes again, and an epoch has the same number of examples of each source every time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ftune.data.encode import Example
from ftune.data.pack import Cut


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine and version."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size). Sorts raw generator output, which numpy keeps stable over its versions."""
    keys = np.random.Philox(key=derived_seed("order", seed, epoch)).random_raw(size)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True, eq=False)
class Mix:
    """How often an epoch sees the examples of each source.

    Args:
        source: number of each example's source, int[E].
        names: of the sources, as the recipe has them.
        weights: of the sources, above 0; with 1, an epoch sees each example once.
    """

    source: np.ndarray
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Examples of each source."""
        return tuple(np.flatnonzero(self.source == number) for number in range(len(self.names)))

    @cached_property
    def per_epoch(self) -> tuple[int, ...]:
        """Examples of each source that an epoch sees; one at least, where the source has any."""
        sizes = [len(members) for members in self.members]
        return tuple(
            max(1, round(weight * size)) if size else 0 for weight, size in zip(self.weights, sizes, strict=True)
        )

    def drawn(self, seed: int, epoch: int) -> np.ndarray:
        """The examples that an epoch sees, source after source, int64[sum(per_epoch)]."""
        parts = []
        for number, (members, take) in enumerate(zip(self.members, self.per_epoch, strict=True)):
            first, last = take * epoch, take * (epoch + 1)
            rounds = range(first // len(members), -(-last // len(members))) if take else range(0)
            stream = [permutation(derived_seed("mix", seed, number), one, len(members)) for one in rounds]
            if stream:
                start = first - rounds[0] * len(members)
                parts.append(members[np.concatenate(stream)[start : start + take]])
        return np.concatenate(parts)

    def unseen(self, seed: int, steps: int, batch_size: int) -> tuple[int, ...]:
        """Examples of each source that a run of `steps` steps never sees."""
        size = sum(self.per_epoch)
        epochs, rest = divmod(steps, steps_per_epoch(size, batch_size))
        seen = np.zeros(len(self.source), dtype=bool)
        for epoch in range(min(epochs, self._all_seen_after())):
            seen[self.drawn(seed, epoch)] = True
        seen[epoch_order(self, seed, epochs)[: rest * batch_size]] = True
        return tuple(int((~seen[members]).sum()) for members in self.members)

    def expected(self, counts: np.ndarray) -> int:
        """What an epoch has on average of something that each example has so much of."""
        of_source = np.bincount(self.source, counts, len(self.names))
        sizes = np.maximum(1, np.bincount(self.source, minlength=len(self.names)))
        return round(float((of_source * self.per_epoch / sizes).sum()))

    def notes(self) -> list[str]:
        """The policy and what it comes to, for the report."""
        parts = [
            f"{take} of {len(members)} from {name} (weight {weight:g})"
            for name, weight, members, take in zip(self.names, self.weights, self.members, self.per_epoch, strict=True)
        ]
        return [
            f"weights: an epoch sees {sum(self.per_epoch)} examples: {', '.join(parts)}. Each example of a "
            "source comes once before any comes again; the next epoch goes on where the last one stopped."
        ]

    def unseen_notes(self, seed: int, steps: int, batch_size: int) -> list[str]:
        """Which sources a run of `steps` steps does not see all of."""
        left = self.unseen(seed, steps, batch_size)
        return [
            f"weights: {count} of {len(members)} examples of {name} are not seen in the {steps} steps of this run."
            for name, members, count in zip(self.names, self.members, left, strict=True)
            if count
        ]

    def _all_seen_after(self) -> int:
        """Epochs that see every example."""
        return max(-(-len(m) // take) for m, take in zip(self.members, self.per_epoch, strict=True) if take)


def first_epoch(examples: Sequence[Example], mix: Mix | None, seed: int) -> Sequence[Example]:
    """What the first epoch sees, in the order of the file, for methods that fit all rows at once."""
    return examples if mix is None else [examples[i] for i in np.sort(mix.drawn(seed, 0))]


@lru_cache(maxsize=2)
def epoch_order(of: Mix | int, seed: int, epoch: int) -> np.ndarray:
    """The examples of an epoch in the order in which they are seen; uint32 where that holds them, as two are kept.

    Args:
        of: the mix of the sources, or how many examples there are where each is seen once an epoch.
        seed: of the run.
        epoch: from 0.
    """
    size = of if isinstance(of, int) else sum(of.per_epoch)
    order = permutation(seed, epoch, size)
    if not isinstance(of, int):
        order = of.drawn(seed, epoch)[order]
    return order.astype(np.uint32) if size < 1 << 32 else order


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
    def num_rows(self) -> int:
        """Examples of the window over all ranks."""
        return sum(len(batch) for batch in self.micro_batches)

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


def draw_seed(seed: int, epoch: int, index: int, *time: int) -> int:
    """What an epoch of training hides of example `index`, the `time`th time that it sees it."""
    return derived_seed("draw", seed, epoch, index, *time)


def held_out_seed(index: int) -> int:
    """What every evaluation hides of example `index`."""
    return derived_seed("held-out", index)


def window(
    examples: Sequence[Example],
    step: int,
    *,
    batch_size: int,
    cut: Cut,
    seed: int,
    draw: Draw | None = None,
    mix: Mix | None = None,
) -> Window:
    """The window of `step`. Inside it, examples are sorted by length, so that little is padded.

    Args:
        examples: the training split, each once.
        step: from 0.
        batch_size: examples of a window.
        cut: how a window becomes micro-batches.
        seed: of the run.
        draw: hides parts of an example. What it hides depends on (seed, epoch, example) and, where an epoch sees an
            example twice, on which time it is: each time it hides something else.
        mix: weights of sources; None sees each example once an epoch.
    """
    size = len(examples) if mix is None else sum(mix.per_epoch)
    epoch, position = divmod(step, steps_per_epoch(size, batch_size))
    order = epoch_order(len(examples) if mix is None else mix, seed, epoch)
    places = range(position * batch_size, min(size, (position + 1) * batch_size))
    chosen = [(int(order[place]), () if mix is None else (place,)) for place in places]
    drawn = (examples[i] if draw is None else draw(examples[i], draw_seed(seed, epoch, i, *time)) for i, time in chosen)
    by_length = sorted(drawn, key=lambda example: -example.num_tokens)
    return Window(step, tuple(tuple(group) for group in cut.of(by_length)))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer steps that see every example once."""
    return -(-num_examples // batch_size)
