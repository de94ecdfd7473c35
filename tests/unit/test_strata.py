"""Held-out rows keep each label's share, whole groups and all; scikit-learn's splitters are the measure."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.split import digests, held_out
from ftune.data.strata import Strata, strata_of
from ftune.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")
Labels = list[str] | list[tuple[str, ...]] | list[float] | list[str | None]


def split(groups: list[str], labels: Labels, share: float, seed: int = 0) -> np.ndarray:
    return held_out(digests(groups), share, seed, strata_of(labels).pairs)


def alone(count: int) -> list[str]:
    """Every row a group."""
    return [f"row {i}" for i in range(count)]


def shares(labels: list[str], out: np.ndarray) -> dict[str, float]:
    inside = Counter(label for label, is_out in zip(labels, out, strict=True) if is_out)
    return {label: inside[label] / count for label, count in Counter(labels).items()}


def uneven(seed: int = 0) -> list[str]:
    """10,003 rows of 77 labels, 35 to 187 of each, as banking77 has them."""
    rng = random.Random(seed)
    counts = [rng.randint(35, 187) for _ in range(77)]
    counts = [round(count * 10_003 / sum(counts)) for count in counts]
    labels = [f"label {i}" for i, count in enumerate(counts) for _ in range(count)]
    rng.shuffle(labels)
    return labels


# single rows


@pytest.mark.parametrize("share", [0.05, 0.1, 0.33])
def test_each_label_is_off_by_less_than_a_row_and_the_size_is_right(share: float) -> None:
    labels = uneven()
    out = split(alone(len(labels)), labels, share)
    assert abs(out.sum() - share * len(labels)) <= 0.5
    inside = Counter(label for label, is_out in zip(labels, out, strict=True) if is_out)
    assert max(abs(inside[label] - share * count) for label, count in Counter(labels).items()) < 1


def test_balance_is_that_of_scikit_learn() -> None:
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = uneven()
    codes = np.unique(labels, return_inverse=True)[1]
    out = split(alone(len(labels)), labels, 0.1)
    _, theirs = next(StratifiedShuffleSplit(1, test_size=0.1, random_state=0).split(codes, codes))
    wanted = 0.1 * np.bincount(codes)
    ours_off = np.abs(np.bincount(codes[out], minlength=77) - wanted).max()
    theirs_off = np.abs(np.bincount(codes[theirs], minlength=77) - wanted).max()
    assert theirs_off < 1
    assert ours_off <= theirs_off
    plain = held_out(digests(alone(len(labels))), 0.1, 0, None)
    assert np.abs(np.bincount(codes[plain], minlength=77) - wanted).max() > 3  # it is the strata that do it


# whole groups


def test_groups_are_as_well_balanced_as_those_of_scikit_learn() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    labels, rng = uneven(), random.Random(1)
    groups = [f"customer {rng.randrange(2_000)}" for _ in labels]  # five rows each, of any label
    codes, members = (np.unique(names, return_inverse=True)[1] for names in (labels, groups))
    out = split(groups, labels, 0.1)
    assert not set(members[out]) & set(members[~out])
    wanted = 0.1 * np.bincount(codes)

    def distance(mask: np.ndarray) -> float:
        return float(((np.bincount(codes[mask], minlength=77) - wanted) ** 2 / wanted).sum())

    folds = StratifiedGroupKFold(10, shuffle=True, random_state=0).split(codes, codes, members)
    theirs = [distance(np.isin(np.arange(len(codes)), fold)) for _, fold in folds]
    plain = distance(held_out(digests(groups), 0.1, 0, None))
    assert distance(out) < np.median(theirs)  # of ten folds; the best of them is at 0.89, a plain split at 70
    assert distance(out) < 1 < 50 < plain
    assert abs(out.sum() - 0.1 * len(labels)) <= 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from("abcd")), min_size=2, max_size=60).filter(
        lambda rows: len({group for group, _ in rows}) > 1
    ),
    st.floats(0.01, 0.9),
    st.integers(0, 2),
)
def test_no_group_is_cut_and_train_keeps_every_label(rows: list[tuple[int, str]], share: float, seed: int) -> None:
    groups, labels = [str(group) for group, _ in rows], [label for _, label in rows]
    try:
        out = split(groups, labels, share, seed)
    except DataError:
        of_label = {label: {g for g, other in rows if other == label} for label in labels}
        locked = set().union(*(members for members in of_label.values() if len(members) == 1))
        assert {group for group, _ in rows} == locked
        return
    for group in set(groups):
        assert len({bool(out[i]) for i in range(len(rows)) if groups[i] == group}) == 1
    assert out.any()
    assert {labels[i] for i in np.flatnonzero(~out)} == set(labels)


def test_the_split_depends_on_content_and_seed_only() -> None:
    labels = uneven()[:2_000]
    rows = list(zip(alone(2_000), labels, strict=True))
    out = split([name for name, _ in rows], labels, 0.1)
    held = {name for (name, _), is_out in zip(rows, out, strict=True) if is_out}
    mixed = random.Random(3).sample(rows, len(rows))
    again = split([name for name, _ in mixed], [label for _, label in mixed], 0.1)
    assert {name for (name, _), is_out in zip(mixed, again, strict=True) if is_out} == held
    other = split([name for name, _ in rows], labels, 0.1, seed=1)
    assert len(held & {name for (name, _), is_out in zip(rows, other, strict=True) if is_out}) < 60


# labels of other kinds


def test_several_labels_of_a_row() -> None:
    rng = random.Random(0)
    labels = [tuple(name for name, chance in zip("abcdef", (0.5, 0.4, 0.3, 0.1, 0.05, 0.02), strict=True)
                    if rng.random() < chance) for _ in range(5_000)]  # fmt: skip
    out = split(alone(5_000), labels, 0.1)
    assert abs(out.sum() - 500) <= 1
    for name in "abcdef":
        has = np.array([name in given for given in labels])
        assert (out & has).sum() == pytest.approx(0.1 * has.sum(), abs=1.5)
    none = np.array([not given for given in labels])
    assert (out & none).sum() == pytest.approx(0.1 * none.sum(), abs=1.5)


def test_numbers_by_tenths() -> None:
    rng = random.Random(0)
    numbers = [rng.lognormvariate(0, 2) for _ in range(1_000)]
    strata = strata_of(numbers)
    assert np.bincount(strata.pairs[:, 1]).tolist() == [100] * 10
    assert strata.names == tuple(f"tenth {i}" for i in range(1, 11))
    out = split(alone(1_000), numbers, 0.1)
    assert np.bincount(strata.pairs[out, 1]).tolist() == [10] * 10
    assert np.bincount(strata_of([1.0, 1.0, 1.0, 2.0]).pairs[:, 1]).tolist() == [3, 1]  # few values make few strata


def test_pairs_of_row_and_label() -> None:
    strata = strata_of(["b", "a", "b"])
    assert (strata.pairs.tolist(), strata.names) == ([[0, 0], [1, 1], [2, 0]], ("b", "a"))
    strata = strata_of([("O", "B-x", "O"), ("O",), ()])
    assert (strata.pairs.tolist(), strata.names) == ([[0, 0], [0, 1], [1, 0], [2, 2]], ("O", "B-x", "(no label)"))
    assert strata_of([]).pairs.shape == (0, 2)


def test_a_label_of_one_group_stays_in_train_and_is_named() -> None:
    labels = ["common"] * 50 + ["rare", "pair", "pair", "two", "two"]
    groups = [*alone(51), "p", "p", "q", "r"]
    strata = strata_of(labels)
    assert strata.once(digests(groups)) == ["rare", "pair"]
    for seed in range(10):
        out = split(groups, labels, 0.5, seed)
        assert not out[50:53].any()
        assert out[53:].sum() == 1
    assert Strata(strata.pairs[:50], strata.names).once(digests(groups)) == []


def test_nothing_can_be_held_out_where_every_group_has_a_label_of_its_own() -> None:
    with pytest.raises(DataError, match="every group has a label that no other group has. Set data.stratify to false"):
        split(["a", "b", "c"], ["x", "y", "z"], 0.3)


def test_one_row_at_least_is_held_out() -> None:
    for share in (0.001, 0.05):
        assert split(alone(20), ["a", "b"] * 10, share).sum() == 1


def test_many_rows() -> None:
    labels = [str(i * 7919 % 100) for i in range(200_000)]
    out = split(alone(200_000), labels, 0.05)
    assert set(np.round(list(shares(labels, out).values()), 6)) == {0.05}


# real rows


@needs_real
def test_banking77() -> None:
    with (REAL / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["category"] for row in rows]
    out = split([row["text"] for row in rows], labels, 0.1)
    assert (len(rows), int(out.sum())) == (10_003, 1_000)
    inside = Counter(label for label, is_out in zip(labels, out, strict=True) if is_out)
    assert max(abs(inside[label] - 0.1 * count) for label, count in Counter(labels).items()) < 1
