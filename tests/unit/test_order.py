"""Which examples a step sees: a pure function of seed and epoch, whatever the processes and wherever a run was cut."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.encode import Example
from ftune.data.order import derived_seed, permutation, steps_per_epoch, window


def examples(count: int) -> list[Example]:
    """Examples of different lengths, each with its number."""
    made = []
    for number in range(count):
        ids = np.full(3 + number * 7 % 5, number, dtype=np.int32)
        is_target = np.arange(len(ids)) > number % 3
        made.append(Example(ids, is_target, len(ids), "rows.jsonl", number))
    return made


# permutations


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [2, 0, 4, 5, 9, 3, 8, 1, 6, 7]),
        (0, 1, [5, 7, 1, 4, 8, 0, 6, 9, 3, 2]),
        (1, 0, [2, 9, 8, 4, 6, 0, 5, 3, 1, 7]),
        (2**63 - 1, 7, [1, 5, 3, 4, 2, 0]),
    ],
)
def test_permutations_are_what_they_always_were(seed: int, epoch: int, expected: list[int]) -> None:
    """Should numpy ever change its raw generators, no stored run could be resumed; this notices."""
    assert permutation(seed, epoch, len(expected)).tolist() == expected


def test_a_long_permutation_is_what_it_always_was() -> None:
    digest = hashlib.sha256(permutation(5, 3, 10_000).astype("<i8").tobytes()).hexdigest()
    assert digest == "a35fbd3812c18ebd5e553a0b6446441f1ab6a91472a1907ded709027d39e5a0d"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(0, 500))
def test_every_epoch_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert sorted(permutation(seed, epoch, size).tolist()) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(50)) not in orders


def test_derived_seeds() -> None:
    assert derived_seed("order", 0, 0) == 6809659774052824133
    assert len({derived_seed(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a", 11), ("a1", 1)]}) == 6
    assert all(0 <= derived_seed(i) < 2**63 for i in range(1000))


# windows


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (4, 1, 4), (5, 5, 1), (5, 6, 1)]
)
def test_steps_of_an_epoch(rows: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch) == steps


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 5))
def test_windows_cover_each_epoch_once_and_the_last_is_short(
    rows: int, batch_size: int, micro_batch_size: int, epoch: int, seed: int
) -> None:
    data, per_epoch = examples(rows), steps_per_epoch(rows, batch_size)
    seen: list[int] = []
    for position in range(per_epoch):
        step = epoch * per_epoch + position
        found = window(data, step, batch_size=batch_size, micro_batch_size=micro_batch_size, seed=seed)
        sizes = [len(batch) for batch in found.micro_batches]
        assert found.step == step
        assert sum(sizes) == (batch_size if position < per_epoch - 1 else rows - batch_size * (per_epoch - 1))
        assert all(size == micro_batch_size for size in sizes[:-1])
        assert 1 <= sizes[-1] <= micro_batch_size
        numbers = [example.number for batch in found.micro_batches for example in batch]
        assert sorted(numbers) == sorted(
            permutation(seed, epoch, rows)[position * batch_size : (position + 1) * batch_size].tolist()
        )
        lengths = [len(example.ids) for batch in found.micro_batches for example in batch]
        assert lengths == sorted(lengths, reverse=True)
        seen += numbers
    assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_any_deal_to_ranks_is_of_the_same_rows(micro_batch_size: int, num_ranks: int) -> None:
    data = examples(21)
    for step in range(6):  # two epochs; each third window has five rows
        whole = window(data, step, batch_size=8, micro_batch_size=8, seed=3)
        found = window(data, step, batch_size=8, micro_batch_size=micro_batch_size, seed=3)
        ranks = [found.of_rank(rank, num_ranks) for rank in range(num_ranks)]
        dealt = [entry for rank in ranks for entry in rank]
        assert Counter(i for i, _ in dealt) == Counter(range(len(found.micro_batches)))
        assert all(batch == found.micro_batches[i] for i, batch in dealt)
        numbers = Counter(example.number for _, batch in dealt for example in batch)
        assert numbers == Counter(example.number for batch in whole.micro_batches for example in batch)
        counts = [len(rank) for rank in ranks]
        assert max(counts) - min(counts) <= 1
        assert (found.num_targets, found.num_tokens) == (whole.num_targets, whole.num_tokens)


def test_a_rank_may_have_nothing() -> None:
    found = window(examples(3), 0, batch_size=2, micro_batch_size=1, seed=0)
    assert [len(found.of_rank(rank, 4)) for rank in range(4)] == [1, 1, 0, 0]


def test_counts_of_a_window() -> None:
    data = examples(4)
    found = window(data, 0, batch_size=4, micro_batch_size=3, seed=0)
    assert found.num_tokens == sum(len(example.ids) for example in data) == 3 + 5 + 7 + 4
    assert found.num_targets == 2 + 3 + 4 + 3


def test_any_step_can_be_had_without_those_before() -> None:
    data = examples(11)
    forward = [window(data, step, batch_size=4, micro_batch_size=2, seed=0) for step in range(9)]
    backward = [window(data, step, batch_size=4, micro_batch_size=2, seed=0) for step in reversed(range(9))]

    def numbers(windows: list[object]) -> list[list[list[int]]]:
        return [[[e.number for e in batch] for batch in w.micro_batches] for w in windows]  # type: ignore[attr-defined]

    assert numbers(forward) == numbers(backward[::-1])
    assert len({str(one) for one in numbers(forward)}) == 9
