"""Which rows of a step go through the model together: end to end, or side by side with few pads."""

from __future__ import annotations

from collections.abc import Sequence

from ftune.data.encode import Example


def first_fit(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    """Put examples into packs of at most `capacity` tokens each, in the order given: the first pack with room.

    On examples from the longest to the shortest this is first-fit-decreasing, which needs at most 11/9 of the fewest
    packs and one more (Johnson 1973). An example above the capacity has a pack of its own.
    """
    packs: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        size = example.num_tokens
        number = next((i for i, left in enumerate(room) if left >= size), None)
        if number is None:
            packs.append([example])
            room.append(capacity - size)
        else:
            packs[number].append(example)
            room[number] -= size
    return packs


def least_padded(examples: Sequence[Example], capacity: int, overhead: float) -> list[list[Example]]:
    """Cut examples, from the longest to the shortest, into micro-batches that cost least.

    A micro-batch costs its rows times its longest, and `overhead`. The best cuts are found by dynamic programming: what
    the last k examples cost is the least over all sizes of their first micro-batch.

    Args:
        examples: sorted by falling length.
        capacity: the most tokens of a micro-batch, pads included; one example may have more.
        overhead: what a micro-batch costs by itself, in tokens.
    """
    count = len(examples)
    cost = [0.0] * (count + 1)
    end = [count] * (count + 1)
    for start in reversed(range(count)):
        longest = examples[start].num_tokens
        most = max(1, capacity // max(1, longest))
        options = range(start + 1, min(count, start + most) + 1)
        end[start] = min(options, key=lambda stop: (stop - start) * longest + cost[stop])
        cost[start] = overhead + (end[start] - start) * longest + cost[end[start]]
    batches, start = list[list[Example]](), 0
    while start < count:
        batches.append(list(examples[start : end[start]]))
        start = end[start]
    return batches
