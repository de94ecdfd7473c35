"""What is done to rows before any is encoded: exact duplicates go, a share is held out, leaks are looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ftune.data.leakage import Leaks, find_leaks
from ftune.data.shape import Sample
from ftune.data.split import cut_document, digests, duplicates, group_of, group_problem, held_out, place_of, subset
from ftune.data.strata import strata_of
from ftune.errors import DataError
from ftune.quantities import parse_share
from ftune.recipe import Data

SHOWN = 20
"""Labels that a note names."""


def hold_out(
    data: Data, rows: list[Sample], seed: int, notes: list[str]
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Training rows, held-out rows and duplicates of `data.eval`, which is a share.

    Args:
        data: says how much and by what.
        rows: all rows.
        seed: chooses held-out rows.
        notes: grow by what a user should know.

    Raises:
        DataError: a row has no group, or there is too little to split.
    """
    later = duplicates(digests(sample.content for sample in rows))
    kept, again = _parted(rows, later)
    share = parse_share(str(data.eval))
    if len(kept) == 1 and not kept[0].turns:
        train, held = cut_document(kept[0], share)
        return [train], [held], again
    problems = [problem for sample in kept if (problem := group_problem(sample.row, data.group_by)) is not None]
    if problems:
        raise DataError(problems=problems)
    group = digests(group_of(sample, data.group_by) for sample in kept)
    strata = strata_of(sample.label for sample in kept) if data.stratify else None
    out = held_out(group, share, seed, None if strata is None else strata.pairs)
    if strata is not None and (once := strata.once(group)):
        notes.append(f"stratify: only one group has these labels, and it is trained on: {', '.join(once[:SHOWN])}.")
    return *_parted(kept, out), again


def _parted(rows: list[Sample], mask: np.ndarray) -> tuple[list[Sample], list[Sample]]:
    """Rows where the mask is false, and where it is true."""
    return [rows[i] for i in np.flatnonzero(~mask)], [rows[i] for i in np.flatnonzero(mask)]


def without_leaks(
    data: Data, train: list[Sample], held: list[Sample], test: list[Sample], tick: Callable[[str, int, int], None]
) -> tuple[list[Sample], Leaks, list[Sample]]:
    """Training rows as `data.leakage` has them, what was found, and the rows that were left out.

    Raises:
        DataError: there are leaks, and the recipe accepts none; or nothing is left.
    """
    rows = len(train) + len(held) + len(test)
    leaks = find_leaks(train, {"eval": held, "test": test}, near=data.near_duplicates, rows=rows, tick=tick)
    if data.leakage == "error":
        leaks.refuse()
    if data.leakage != "drop" or not len(leaks.train):
        return train, leaks, []
    if len(leaks.train) == len(train):
        raise DataError("every training row is also in eval or test (data.leakage: drop). Nothing is left to learn.")
    is_leaked = np.zeros(len(train), dtype=bool)
    is_leaked[leaks.train] = True
    kept, leaked = _parted(train, is_leaked)
    return kept, leaks, leaked


def drawn(rows: list[Sample], max_rows: int | None, seed: int) -> list[Sample]:
    """At most `max_rows` rows, drawn by the seed, in the order of the file."""
    place = digests(place_of(sample.row) for sample in rows)
    return [rows[i] for i in subset(place, max_rows, seed)]
