"""Held-out rows: whole groups, no duplicates, the same whatever the order of the file; one document is cut in two."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import cut_document, digest, duplicates, held_out, overlap, subset, weighted
from ftune.errors import DataError

GROUPS = np.array([digest(f"question {i // 3}") for i in range(300)], dtype=np.uint64)
"""A hundred groups of three."""


def document(text: str, number: int = 1, file: str = "a.txt") -> Sample:
    return Sample(Row(file, number, {}), text=text)


@pytest.mark.parametrize(("share", "held"), [(0.05, 15), (0.001, 3), (0.5, 150), (0.99, 297)])
def test_a_share_of_the_groups_is_held_out_whole(share: float, held: int) -> None:
    chosen = held_out(GROUPS, share, 0, None)
    assert int(chosen.sum()) == held
    assert not set(GROUPS[chosen].tolist()) & set(GROUPS[~chosen].tolist())


def test_the_split_depends_on_content_and_seed_only() -> None:
    held = set(GROUPS[held_out(GROUPS, 0.1, 0, None)].tolist())
    shuffled = np.array(random.Random(1).sample(GROUPS.tolist(), len(GROUPS)), dtype=np.uint64)
    assert set(shuffled[held_out(shuffled, 0.1, 0, None)].tolist()) == held
    assert set(GROUPS[held_out(GROUPS, 0.1, 1, None)].tolist()) != held


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="cannot hold out a share of 3 rows that are one group"):
        held_out(GROUPS[:3], 0.05, 0, None)
    with pytest.raises(DataError, match="holding out 100% leaves no row to train on"):
        held_out(GROUPS, 1.0, 0, None)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_one_document_is_cut_at_a_line_end_and_its_end_held_out(share: float) -> None:
    scenes = "".join(f"line {i} of the play\n" for i in range(1000))
    train, held = cut_document(document(scenes), share)
    assert train.text + held.text == scenes
    assert train.text.endswith("\n")
    assert len(held.text) == pytest.approx(share * len(scenes), abs=30)
    assert (train.row.number, held.row.number) == (1, train.text.count("\n") + 1)
    assert cut_document(document(scenes, 7, "a.jsonl"), share)[1].row.number == 7


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


def test_only_the_first_of_equal_rows_is_kept() -> None:
    content = np.array([5, 9, 5, 7, 5], dtype=np.uint64)
    assert duplicates(content).tolist() == [False, False, True, False, True]
    assert overlap(content, np.array([7, 1, 5], dtype=np.uint64)).tolist() == [True, False, True]


def test_a_subset_is_drawn_by_the_seed_in_the_order_of_the_file() -> None:
    place = np.arange(300, dtype=np.uint64)
    drawn = subset(place, 50, 0)
    assert len(set(drawn.tolist())) == 50
    assert drawn.tolist() == sorted(drawn.tolist()) == subset(place, 50, 0).tolist()
    assert drawn.tolist() != subset(place, 50, 1).tolist()
    assert set(subset(place, 49, 0).tolist()) < set(drawn.tolist())  # asking for fewer draws from the same
    assert subset(place, None, 0).tolist() == subset(place, 300, 0).tolist() == list(range(300))


def test_weights() -> None:
    place, weight = np.arange(100, dtype=np.uint64), np.repeat([0.25, 2.5], [40, 60])
    chosen = weighted(place, weight, 0)
    assert (chosen < 40).sum() == 10
    counts = np.bincount(chosen[chosen >= 40] - 40)
    assert (counts.min(), counts.max(), counts.sum()) == (2, 3, 150)
    assert weighted(place, weight, 0).tolist() == chosen.tolist() != weighted(place, weight, 1).tolist()
