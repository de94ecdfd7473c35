"""Which examples a step sees: a pure function of seed and epoch, whatever the processes and wherever a run was cut."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.encode import Example
from ftune.data.order import Mix, derived_seed, epoch_order, first_epoch, permutation, steps_per_epoch, window
from ftune.data.pack import Cut


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
        found = window(data, step, batch_size=batch_size, cut=Cut(micro_batch_size), seed=seed)
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
        whole = window(data, step, batch_size=8, cut=Cut(8), seed=3)
        found = window(data, step, batch_size=8, cut=Cut(micro_batch_size), seed=3)
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
    found = window(examples(3), 0, batch_size=2, cut=Cut(1), seed=0)
    assert [len(found.of_rank(rank, 4)) for rank in range(4)] == [1, 1, 0, 0]


def test_counts_of_a_window() -> None:
    data = examples(4)
    found = window(data, 0, batch_size=4, cut=Cut(3), seed=0)
    assert found.num_tokens == sum(len(example.ids) for example in data) == 3 + 5 + 7 + 4
    assert found.num_targets == 2 + 3 + 4 + 3


def test_any_step_can_be_had_without_those_before() -> None:
    data = examples(11)
    forward = [window(data, step, batch_size=4, cut=Cut(2), seed=0) for step in range(9)]
    backward = [window(data, step, batch_size=4, cut=Cut(2), seed=0) for step in reversed(range(9))]

    def numbers(windows: list[object]) -> list[list[list[int]]]:
        return [[[e.number for e in batch] for batch in w.micro_batches] for w in windows]  # type: ignore[attr-defined]

    assert numbers(forward) == numbers(backward[::-1])
    assert len({str(one) for one in numbers(forward)}) == 9


# weights


def mix(*parts: tuple[int, float]) -> Mix:
    """Sources of so many examples with such weights, one after the other."""
    source = np.repeat(np.arange(len(parts)), [count for count, _ in parts])
    return Mix(source, tuple(f"{i}.jsonl" for i in range(len(parts))), tuple(weight for _, weight in parts))


def seen(of: Mix, seed: int, epoch: int) -> Counter[int]:
    return Counter(of.drawn(seed, epoch).tolist())


def test_an_epoch_has_the_same_number_of_each_source_every_time() -> None:
    of = mix((100, 1), (40, 0.25), (10, 2.5), (7, 0.01))
    assert of.per_epoch == (100, 10, 25, 1)
    for epoch in range(12):
        numbers = of.drawn(0, epoch)
        assert np.bincount(of.source[numbers]).tolist() == [100, 10, 25, 1]
        assert sorted(numbers[:100].tolist()) == list(range(100))
    assert mix((10, 0.25), (0, 2.0)).per_epoch == (2, 0)  # 2.5, rounded to even


def test_each_epoch_draws_others_until_all_were_seen() -> None:
    of = mix((40, 0.25), (40, 1))
    quarters = [seen(of, 0, epoch) for epoch in range(8)]
    of_first = [{i for i in quarter if i < 40} for quarter in quarters]
    assert [len(part) for part in of_first] == [10] * 8
    assert set().union(*of_first[:4]) == set(range(40))  # four quarters are all, each once
    assert set().union(*of_first[4:]) == set(range(40))
    assert of_first[:4] != of_first[4:]
    assert seen(of, 1, 0) != quarters[0]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.1, 0.3, 0.5, 1, 1.5, 2, 3.7])), min_size=1, max_size=3),
    st.integers(0, 2**63 - 1),
    st.integers(1, 7),
)
def test_over_any_number_of_epochs_examples_of_a_source_come_equally_often(
    parts: list[tuple[int, float]], seed: int, epochs: int
) -> None:
    of = mix(*parts)
    total: Counter[int] = Counter()
    for epoch in range(epochs):
        total += seen(of, seed, epoch)
    for members, take in zip(of.members, of.per_epoch, strict=True):
        times = [total[i] for i in members.tolist()]
        assert sum(times) == take * epochs
        assert max(times) - min(times) <= 1


def test_draws_are_what_they_always_were() -> None:
    of = mix((6, 0.5), (3, 2))
    assert [of.drawn(0, epoch).tolist() for epoch in range(3)] == [
        [5, 2, 4, 6, 7, 8, 7, 8, 6],
        [0, 3, 1, 6, 8, 7, 6, 8, 7],
        [3, 5, 2, 7, 6, 8, 6, 8, 7],
    ]


def test_without_weights_the_order_is_that_of_the_permutation() -> None:
    data = examples(11)
    for step in range(6):
        plain = window(data, step, batch_size=4, cut=Cut(4), seed=3)
        weighed = window(data, step, batch_size=4, cut=Cut(4), seed=3, mix=None)
        assert [[e.number for e in b] for b in plain.micro_batches] == [
            [e.number for e in b] for b in weighed.micro_batches
        ]
    assert epoch_order(11, 3, 1).tolist() == permutation(3, 1, 11).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 5), st.integers(0, 3))
def test_windows_cover_what_the_epoch_draws(batch_size: int, micro: int, seed: int, epoch: int) -> None:
    data, of = examples(20), mix((12, 0.5), (8, 1.5))
    per_epoch = steps_per_epoch(sum(of.per_epoch), batch_size)
    numbers: list[int] = []
    for position in range(per_epoch):
        found = window(data, epoch * per_epoch + position, batch_size=batch_size, cut=Cut(micro), seed=seed, mix=of)
        sizes = [len(batch) for batch in found.micro_batches]
        assert sum(sizes) == (batch_size if position < per_epoch - 1 else 18 - batch_size * (per_epoch - 1))
        numbers += [example.number for batch in found.micro_batches for example in batch]
    assert Counter(numbers) == seen(of, seed, epoch)
    assert len(numbers) == 18


def test_sources_are_mixed_in_an_epoch_not_one_after_the_other() -> None:
    of = mix((500, 1), (1_000, 0.5))
    order = epoch_order(of, 0, 0)
    first = of.source[order[:100]].sum()
    assert 30 < first < 70


def test_any_step_of_a_mix_can_be_had_without_those_before() -> None:
    data = examples(12)

    def numbers(step: int) -> list[int]:
        of = mix((8, 0.75), (4, 2))  # anew, as after a restart: nothing is remembered
        found = window(data, step, batch_size=4, cut=Cut(2), seed=0, mix=of)
        return [example.number for batch in found.micro_batches for example in batch]

    forward = [numbers(step) for step in range(12)]
    assert [numbers(step) for step in reversed(range(12))] == forward[::-1]
    assert len({tuple(one) for one in forward}) == 12


def test_an_example_that_comes_twice_has_other_parts_hidden_each_time() -> None:
    data, seeds = examples(3), []

    def hide(example: Example, seed: int) -> Example:
        seeds.append((example.number, seed))
        return example

    for _ in range(2):
        window(data, 0, batch_size=9, cut=Cut(9), seed=0, draw=hide, mix=mix((3, 3)))
    assert seeds[:9] == seeds[9:]
    assert Counter(number for number, _ in seeds[:9]) == {0: 3, 1: 3, 2: 3}
    assert len(set(seeds)) == 9
    seeds.clear()
    window(data, 0, batch_size=3, cut=Cut(3), seed=0, draw=hide)
    assert dict(seeds) == {i: derived_seed("draw", 0, 0, i) for i in range(3)}


def test_what_a_run_does_not_see() -> None:
    of = mix((40, 0.25), (10, 1))  # 20 examples an epoch
    assert of.unseen(0, 0, 4) == (40, 10)
    assert of.unseen(0, 5, 4) == (30, 0)
    assert of.unseen(0, 20, 4) == (0, 0)
    assert of.unseen(0, 10**9, 4) == (0, 0)
    for steps in range(1, 20):
        data = examples(50)
        looked_at = {
            example.number
            for step in range(steps)
            for batch in window(data, step, batch_size=4, cut=Cut(4), seed=0, mix=of).micro_batches
            for example in batch
        }
        assert of.unseen(0, steps, 4) == (
            40 - len({i for i in looked_at if i < 40}),
            10 - sum(i >= 40 for i in looked_at),
        )
    assert of.unseen_notes(0, 5, 4) == [
        "weights: 30 of 40 examples of 0.jsonl are not seen in the 5 steps of this run."
    ]


def test_the_policy_is_told() -> None:
    assert mix((40, 0.25), (10, 2)).notes() == [
        "weights: an epoch sees 30 examples: 10 of 40 from 0.jsonl (weight 0.25), 20 of 10 from 1.jsonl (weight 2). "
        "Each example of a source comes once before any comes again; the next epoch goes on where the last one stopped."
    ]
    assert mix((4, 0.5), (2, 2)).expected(np.array([1, 2, 3, 4, 10, 20])) == 65


def test_methods_that_fit_at_once_get_the_first_epoch() -> None:
    data, of = examples(6), mix((4, 0.5), (2, 2))
    assert Counter(e.number for e in first_epoch(data, of, 7)) == seen(of, 7, 0)
    assert first_epoch(data, None, 7) is data
