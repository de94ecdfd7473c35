"""Held-out rows: whole groups, the same whatever the order of the file; one document is cut in two."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data import split
from ftune.data.chat import Turn
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import (
    cut_document,
    digest,
    digests,
    duplicates,
    group_of,
    group_problem,
    held_out,
    place_of,
    subset,
)
from ftune.errors import DataError


def document(text: str, number: int = 1, file: str = "a.txt") -> Sample:
    return Sample(Row(file, number, {}), text=text)


def held(names: list[str], share: float, seed: int = 0) -> set[int]:
    """Positions of the rows that are held out, by the names of their groups."""
    return set(np.flatnonzero(held_out(digests(names), share, seed, None)).tolist())


GROUPS = [f"question {i // 3}" for i in range(300)]
"""A hundred groups of three."""


# digests


def test_digests_are_what_they_always_were() -> None:
    """Should they ever change, no stored run would find its split again."""
    assert digest("a") == 16860193610431497119
    assert digest(("", "a", None, ("user", "caf\u00e9"), 1.5)) == 14774349459409393426
    assert digests(["a", "b"]).dtype == np.uint64
    assert digests(iter(["a"])).tolist() == [digest("a")]


def test_different_values_have_different_digests() -> None:
    values = ["a", "'a'", ("a",), ("a", ""), ("", "a"), 1, "1", 1.5, None, "None", "\ud800", "\\ud800", ("a", ("b",))]
    assert len({digest(value) for value in values}) == len(values)


# groups


@pytest.mark.parametrize(
    ("share", "count"), [(0.05, 15), (0.001, 3), (0.5, 150), (0.99, 297), (0.999, 297), (0.07, 21)]
)
def test_a_share_of_the_rows_is_held_out_in_whole_groups(share: float, count: int) -> None:
    out = held(GROUPS, share)
    assert len(out) == count
    assert not {GROUPS[i] for i in out} & {GROUPS[i] for i in set(range(300)) - out}


def test_the_share_is_one_of_rows_not_of_groups() -> None:
    """One group of 500 among 500 groups of one: a twentieth is 50 rows, which only small groups can make."""
    for seed in range(20):
        out = held([*["large"] * 500, *map(str, range(500))], 0.05, seed)
        assert len(out) == 50
        assert not out & set(range(500))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80).filter(lambda names: len(set(names)) > 1),
    st.floats(0.001, 0.999),
    st.integers(0, 3),
)
def test_no_group_is_cut_and_none_could_be_added_to_come_nearer(names: list[int], share: float, seed: int) -> None:
    out = held_out(digests(names), share, seed, None)
    sizes = {name: names.count(name) for name in names}
    sides = {name: {bool(out[i]) for i in range(len(names)) if names[i] == name} for name in names}
    assert all(len(side) == 1 for side in sides.values())
    assert 1 <= out.sum() < len(names)
    missing = share * len(names) - out.sum()
    left = [size for name, size in sizes.items() if sides[name] == {False}]
    if len(left) > 1:
        assert 2 * missing <= min(left) + 1e-9
    taken = [size for name, size in sizes.items() if sides[name] == {True}]
    if len(taken) > 1:
        assert -2 * missing < max(taken)


def test_the_split_depends_on_content_and_seed_only() -> None:
    out = {GROUPS[i] for i in held(GROUPS, 0.1)}
    shuffled = random.Random(1).sample(GROUPS, len(GROUPS))
    assert {shuffled[i] for i in held(shuffled, 0.1)} == out
    assert {GROUPS[i] for i in held(GROUPS, 0.1, seed=1)} != out
    without_one = [name for name in GROUPS if name != "question 50"]
    assert len(out & {without_one[i] for i in held(without_one, 0.1)}) >= 9  # the others stay put


def test_which_groups_are_held_out_is_the_same_on_every_machine() -> None:
    out = {GROUPS[i] for i in held(GROUPS, 0.05)}
    assert out == {"question 0", "question 47", "question 54", "question 67", "question 76"}


def test_two_rows_are_enough() -> None:
    assert len(held(["a", "b"], 0.05)) == 1
    assert len(held(["a", "b"], 0.95)) == 1


@pytest.mark.parametrize("rows", [1, 3])
def test_one_group_cannot_be_split(rows: int) -> None:
    with pytest.raises(DataError) as caught:
        held(["a"] * rows, 0.05)
    assert str(caught.value) == (
        f"cannot hold out a share of {rows} rows that are one group: rows with the same first question, or with the "
        "same value of data.group_by, stay together. Name a file in data.eval, or set it to null."
    )


def test_a_share_of_everything_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="holding out 100% leaves no row to train on. Lower data.eval."):
        held(GROUPS, 1.0)


def test_a_million_rows_are_no_matter() -> None:
    group = np.arange(1_000_000, dtype=np.uint64) // 3 * 7919
    out = held_out(group, 0.05, 0, None)
    assert abs(int(out.sum()) - 50_000) <= 1


# what makes a group


def test_digests_that_are_sorted_in_shares_give_what_one_sort_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = digests([f"question {i % 37}" for i in range(400)])
    whole = (duplicates(rows).tolist(), *(held_out(rows, 0.2, seed, None).tolist() for seed in range(5)))
    monkeypatch.setattr(split, "SHARE", 8)
    shares = list(split._shares(rows))
    assert len(shares) > 30
    assert sorted(np.concatenate(shares).tolist()) == list(range(400))
    assert (duplicates(rows).tolist(), *(held_out(rows, 0.2, seed, None).tolist() for seed in range(5))) == whole


def test_the_first_question_or_a_column_makes_a_group() -> None:
    asked = (Turn("system", "s"), Turn("user", " same\n\nquestion "), Turn("assistant", "a"), Turn("user", "more"))
    sample = Sample(Row("a.jsonl", 1, {"patient": 7}), turns=asked)
    assert group_of(sample, None) == "same question"
    assert group_of(sample, "patient") == 7
    assert group_of(document("a  b\nc"), None) == "a b c"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "t"}, "a.csv:9 patient: is missing. data.group_by names it."),
        ({"patient": None}, "a.csv:9 patient: expected a value to group by (data.group_by), received null."),
        ({"patient": " "}, "a.csv:9 patient: expected a value to group by (data.group_by), received str: ' '."),
        ({"patient": float("nan")}, "a.csv:9 patient: expected a value to group by (data.group_by), received null."),
        ({"patient": 0}, None),
        ({"patient": False}, None),
    ],
)
def test_a_row_without_a_group(values: dict[str, object], message: str | None) -> None:
    problem = group_problem(Row("a.csv", 9, values), "patient")
    assert (None if problem is None else str(problem)) == message
    assert group_problem(Row("a.csv", 9, values), None) is None


# one document


SCENES = "".join(f"line {i} of the play\n" for i in range(1000))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_one_document_is_cut_at_a_line_end_and_its_end_held_out(share: float) -> None:
    train, held = cut_document(document(SCENES), share)
    assert train.text + held.text == SCENES
    assert train.text.endswith("\n")
    assert len(held.text) == pytest.approx(share * len(SCENES), abs=30)
    assert (train.row.number, held.row.number) == (1, train.text.count("\n") + 1)
    assert held.text.startswith(f"line {held.row.number - 1} ")
    assert held.row.file == train.row.file == "a.txt"


def test_a_row_of_a_table_stays_on_its_line() -> None:
    _, held = cut_document(document(SCENES, number=7, file="a.jsonl"), 0.1)
    assert held.row.number == 7


@pytest.mark.parametrize(
    "text", ["word " * 100, "word " * 100 + "\n", "short line\n" + "word " * 100 + "\n\n", "abcde"]
)
def test_a_document_without_a_line_end_nearby_is_cut_in_the_line(text: str) -> None:
    """The end of the last line is none to cut at: nothing would be held out."""
    train, held = cut_document(document(text), 0.2)
    assert train.text + held.text == text
    assert len(held.text) == pytest.approx(0.2 * len(text), abs=1)


@pytest.mark.parametrize("text", ["a", "a\n", "words\n\n\n\n\n", "\n\n\n\nab\n\n\n\n\n"])
def test_a_document_that_is_too_short(text: str) -> None:
    with pytest.raises(DataError, match=r"^a\.txt: the document is too short to hold out 5% of it\.$"):
        cut_document(document(text), 0.05)


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n", max_size=60), st.floats(0.01, 1.0))
def test_cutting_loses_nothing(text: str, share: float) -> None:
    try:
        train, held = cut_document(document(text), share)
    except DataError:
        return
    assert train.text + held.text == text
    assert train.text.strip()
    assert held.text.strip()


# duplicates and overlap


def test_only_the_first_of_equal_rows_is_kept() -> None:
    assert duplicates(digests(["a", "b", "a", "c", "a", "b"])).tolist() == [False, False, True, False, True, True]
    assert duplicates(digests([])).tolist() == []


# a subset


def places(file: str = "rows.jsonl") -> np.ndarray:
    return digests(place_of(Row(file, number, {})) for number in range(1, 301))


def test_a_subset_is_drawn_by_the_seed_in_the_order_of_the_file() -> None:
    drawn = subset(places(), 50, 0).tolist()
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert drawn == subset(places(), 50, 0).tolist()
    assert drawn != subset(places(), 50, 1).tolist()
    assert drawn != list(range(50))
    assert set(subset(places(), 49, 0).tolist()) < set(drawn)  # asking for fewer draws from the same


def test_a_subset_survives_a_move_of_the_project() -> None:
    drawn = subset(places(), 50, 0).tolist()
    for folder in ("../data", "/home/else/where"):
        assert subset(places(f"{folder}/rows.jsonl"), 50, 0).tolist() == drawn
    assert subset(places("other.jsonl"), 50, 0).tolist() != drawn


@pytest.mark.parametrize("max_rows", [None, 300, 1000])
def test_a_subset_of_all_is_all(max_rows: int | None) -> None:
    assert subset(places(), max_rows, 0).tolist() == list(range(300))
