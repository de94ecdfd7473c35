"""What is done to rows before any is encoded: exact duplicates go, a share is held out, leaks are looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ftune.data.leakage import Leaks, find_leaks
from ftune.data.split import duplicates, held_out, subset
from ftune.data.strata import strata_of
from ftune.data.table import Rows, SampleTable
from ftune.errors import DataError
from ftune.quantities import parse_share
from ftune.recipe import Data

SHOWN = 20
"""Labels that a note names."""


def hold_out(
    data: Data, rows: Rows, seed: int, cut: Callable[[SampleTable, float], SampleTable], notes: list[str]
) -> tuple[Rows, Rows, Rows]:
    """Training rows, held-out rows and duplicates of `data.eval`, which is a share.

    Args:
        data: says how much and by what.
        rows: all rows.
        seed: chooses held-out rows.
        cut: makes two rows of a table that is a single document.
        notes: grow by what a user should know.

    Raises:
        DataError: there is too little to split.
    """
    later = duplicates(rows.numbers("content"))
    kept, again = rows.where(~later), rows.where(later)
    share = parse_share(str(data.eval))
    if len(kept) == 1 and not kept[0].turns:
        table = next(table for table, part in zip(kept.tables, kept.parts(), strict=True) if len(part))
        parts = Rows.all([cut(table, share)])
        return parts[:1], parts[1:], again
    group = kept.numbers("group")
    strata = strata_of(sample.label for sample in kept) if data.stratify else None
    out = held_out(group, share, seed, None if strata is None else strata.pairs)
    if strata is not None and (once := strata.once(group)):
        notes.append(f"stratify: only one group has these labels, and it is trained on: {', '.join(once[:SHOWN])}.")
    return kept.where(~out), kept.where(out), again


def without_leaks(
    data: Data, train: Rows, held: Rows, test: Rows, tick: Callable[[str, int, int], None]
) -> tuple[Rows, Leaks, Rows]:
    """Training rows as `data.leakage` has them, what was found, and the rows that were left out.

    Raises:
        DataError: there are leaks, and the recipe accepts none; or nothing is left.
    """
    rows = len(train) + len(held) + len(test)
    leaks = find_leaks(train, {"eval": held, "test": test}, near=data.near_duplicates, rows=rows, tick=tick)
    if data.leakage == "error":
        leaks.refuse()
    if data.leakage != "drop" or not len(leaks.train):
        return train, leaks, train.where(np.zeros(len(train), dtype=bool))
    if len(leaks.train) == len(train):
        raise DataError("every training row is also in eval or test (data.leakage: drop). Nothing is left to learn.")
    is_leaked = np.zeros(len(train), dtype=bool)
    is_leaked[leaks.train] = True
    return train.where(~is_leaked), leaks, train.where(is_leaked)


def drawn(rows: Rows, max_rows: int | None, seed: int) -> Rows:
    """At most `max_rows` rows, drawn by the seed, in the order of the file."""
    return rows.where(subset(rows.numbers("drawn"), max_rows, seed))
