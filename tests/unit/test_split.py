"""Held-out rows: whole groups, no duplicates, the same whatever the order of the file; one document is cut in two."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.chat import Turn
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import hold_out, overlap, subset, without_duplicates
from ftune.errors import DataError


def pair(prompt: str, completion: str = "c", number: int = 1, file: str = "rows.jsonl") -> Sample:
    return Sample(Row(file, number, {}), (Turn("user", prompt), Turn("assistant", completion)))


def document(text: str, number: int = 1, file: str = "a.txt") -> Sample:
    return Sample(Row(file, number, {}), text=text)


ROWS = [pair(f"question {i // 3}", f"answer {i}", i + 1) for i in range(300)]
"""A hundred groups of three."""


# groups


@pytest.mark.parametrize(("share", "held"), [(0.05, 15), (0.001, 3), (0.5, 150), (0.99, 297)])
def test_a_share_of_the_groups_is_held_out_whole(share: float, held: int) -> None:
    train, kept = hold_out(ROWS, share, 0)
    assert (len(train), len(kept)) == (300 - held, held)
    assert not {sample.group for sample in train} & {sample.group for sample in kept}
    assert sorted([*train, *kept], key=lambda sample: sample.row.number) == ROWS
    for side in (train, kept):
        assert side == sorted(side, key=lambda sample: sample.row.number)


def test_white_space_does_not_make_a_group() -> None:
    rows = [pair("same question"), pair(" same\n\nquestion "), pair("other")]
    train, held = hold_out(rows, 0.5, 0)
    assert sorted(len(side) for side in (train, held)) == [1, 2]
    groups = {sample.group for sample in train}, {sample.group for sample in held}
    assert not groups[0] & groups[1]


def test_the_split_depends_on_content_and_seed_only() -> None:
    held = {sample.content for sample in hold_out(ROWS, 0.1, 0)[1]}
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    moved = [replace(sample, row=Row("elsewhere.csv", i, {})) for i, sample in enumerate(shuffled)]
    assert {sample.content for sample in hold_out(moved, 0.1, 0)[1]} == held
    assert {sample.content for sample in hold_out(ROWS, 0.1, 1)[1]} != held
    without_one = [sample for sample in ROWS if sample.group != "question 50"]
    assert len(held & {sample.content for sample in hold_out(without_one, 0.1, 0)[1]}) >= 27  # the others stay put


def test_which_groups_are_held_out_is_the_same_on_every_machine() -> None:
    held = {sample.group for sample in hold_out(ROWS, 0.05, 0)[1]}
    assert held == {"question 17", "question 25", "question 40", "question 8", "question 84"}


def test_two_rows_are_enough() -> None:
    train, held = hold_out([pair("a"), pair("b")], 0.05, 0)
    assert (len(train), len(held)) == (1, 1)
    assert train[0].group != held[0].group


@pytest.mark.parametrize("rows", [[pair("a")], [pair("a", "1"), pair("a", "2"), pair(" a ", "3")]])
def test_one_group_cannot_be_split(rows: list[Sample]) -> None:
    with pytest.raises(DataError) as caught:
        hold_out(rows, 0.05, 0)
    assert str(caught.value) == (
        f"cannot hold out a share of {len(rows)} rows that are one group (same first question). "
        "Name a file in data.eval, or set it to null."
    )


def test_a_share_of_everything_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="holding out 100% leaves no row to train on. Lower data.eval."):
        hold_out(ROWS, 1.0, 0)


# one document


SCENES = "".join(f"line {i} of the play\n" for i in range(1000))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_one_document_is_cut_at_a_line_end_and_its_end_held_out(share: float) -> None:
    (train,), (held,) = hold_out([document(SCENES)], share, 0)
    assert train.text + held.text == SCENES
    assert train.text.endswith("\n")
    assert len(held.text) == pytest.approx(share * len(SCENES), abs=30)
    assert (train.row.number, held.row.number) == (1, train.text.count("\n") + 1)
    assert held.text.startswith(f"line {held.row.number - 1} ")
    assert held.row.file == train.row.file == "a.txt"


def test_a_row_of_a_table_stays_on_its_line() -> None:
    _, (held,) = hold_out([document(SCENES, number=7, file="a.jsonl")], 0.1, 0)
    assert held.row.number == 7


@pytest.mark.parametrize(
    "text", ["word " * 100, "word " * 100 + "\n", "short line\n" + "word " * 100 + "\n\n", "abcde"]
)
def test_a_document_without_a_line_end_nearby_is_cut_in_the_line(text: str) -> None:
    """The end of the last line is none to cut at: nothing would be held out."""
    (train,), (held,) = hold_out([document(text)], 0.2, 0)
    assert train.text + held.text == text
    assert len(held.text) == pytest.approx(0.2 * len(text), abs=1)


@pytest.mark.parametrize("text", ["a", "a\n", "words\n\n\n\n\n", "\n\n\n\nab\n\n\n\n\n"])
def test_a_document_that_is_too_short(text: str) -> None:
    with pytest.raises(DataError, match=r"^a\.txt: the document is too short to hold out 5% of it\.$"):
        hold_out([document(text)], 0.05, 0)


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n", max_size=60), st.floats(0.01, 1.0))
def test_cutting_loses_nothing(text: str, share: float) -> None:
    try:
        (train,), (held,) = hold_out([document(text)], share, 0)
    except DataError:
        return
    assert train.text + held.text == text
    assert train.text.strip()
    assert held.text.strip()


def test_several_documents_are_groups() -> None:
    train, held = hold_out([document(f"document {i}", file=f"{i}.md") for i in range(20)], 0.1, 0)
    assert (len(train), len(held)) == (18, 2)


# duplicates and overlap


def test_only_the_first_of_equal_rows_is_kept() -> None:
    rows = [pair("a", "1", 1), pair("b", "1", 2), pair("a", "1", 3), pair("a", "2", 4), pair("a", "1", 5)]
    kept, duplicates = without_duplicates(rows)
    assert [sample.row.number for sample in kept] == [1, 2, 4]
    assert [sample.row.number for sample in duplicates] == [3, 5]


def test_overlap_is_counted_by_words_not_by_place() -> None:
    train = [pair("a"), pair("b"), pair("c")]
    held = [pair("a", number=9), pair("b", "other"), pair("c", file="eval.jsonl"), pair("c"), pair("d")]
    assert overlap(train, held) == 3
    assert overlap(train, train) == 3
    assert overlap([], held) == 0


# a subset


def test_a_subset_is_drawn_by_the_seed_in_the_order_of_the_file() -> None:
    drawn = subset(ROWS, 50, 0)
    assert len({sample.row.number for sample in drawn}) == 50
    assert drawn == sorted(drawn, key=lambda sample: sample.row.number)
    assert drawn == subset(ROWS, 50, 0)
    assert drawn != subset(ROWS, 50, 1)
    assert drawn != ROWS[:50]
    assert set(map(id, subset(ROWS, 49, 0))) < set(map(id, drawn))  # asking for fewer draws from the same


def test_a_subset_survives_a_move_of_the_project() -> None:
    numbers = [sample.row.number for sample in subset(ROWS, 50, 0)]
    for folder in ("../data", "/home/else/where"):
        moved = [replace(sample, row=replace(sample.row, file=f"{folder}/rows.jsonl")) for sample in ROWS]
        assert [sample.row.number for sample in subset(moved, 50, 0)] == numbers
    renamed = [replace(sample, row=replace(sample.row, file="other.jsonl")) for sample in ROWS]
    assert [sample.row.number for sample in subset(renamed, 50, 0)] != numbers


@pytest.mark.parametrize("max_rows", [None, 300, 1000])
def test_a_subset_of_all_is_all(max_rows: int | None) -> None:
    found = subset(ROWS, max_rows, 0)
    assert found == ROWS
    assert found is not ROWS
