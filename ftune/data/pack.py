"""Which rows go together when they are laid end to end."""

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
