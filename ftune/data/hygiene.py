"""What is done to rows before any is encoded: exact duplicates go, a share is held out, leaks are looked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data.cache import Cache, code_version, facts_of, key_of
from ftune.data.columns import among, where
from ftune.data.leakage import Leaks, find_leaks, threshold_of
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
    data: Data, train: Rows, held: Rows, test: Rows, cache: Cache, tick: Callable[[str, int, int], None]
) -> tuple[Rows, Leaks, Rows]:
    """Training rows as `data.leakage` has them, what was found, and the rows that were left out.

    Raises:
        DataError: there are leaks, and the recipe accepts none; or nothing is left.
    """
    leaks = _leaks(data, train, {"eval": held, "test": test}, cache, tick)
    if data.leakage == "error":
        leaks.refuse()
    is_leaked = np.zeros(len(train), dtype=bool)
    if data.leakage == "drop":
        is_leaked[leaks.train] = True
    if len(train) and is_leaked.all():
        raise DataError("every training row is also in eval or test (data.leakage: drop). Nothing is left to learn.")
    return train.where(~is_leaked), leaks, train.where(is_leaked)


def _leaks(
    data: Data, train: Rows, held: Mapping[str, Rows], cache: Cache, tick: Callable[[str, int, int], None]
) -> Leaks:
    """What the splits share. A search for near duplicates is kept; one for equal rows reads these only."""
    near, rows = data.near_duplicates, len(train) + sum(map(len, held.values()))

    def search(among: Rows) -> Leaks:
        return find_leaks(among, held, near=near, rows=rows, tick=tick)

    if threshold_of(near, rows) is None or not any(held.values()):
        others = np.unique(np.concatenate([some.numbers("content") for some in held.values()]))
        candidates = where(among(piece, others) for piece in train.pieces("content"))
        found = search(train.where(candidates))
        return replace(found, train=candidates[found.train])

    def write(folder: Path) -> dict[str, Any]:
        return {**search(train).to_json(), "rows": rows}

    splits = {name: some.identity for name, some in {"train": train, **held}.items()}
    key = key_of({"code": code_version(Path(__file__).parent), "near": near, "rows": rows, "splits": splits})
    entry = cache.entry("leaks", key, write, lambda: tick("waiting for another process", 0, 0))
    return Leaks.from_json(facts_of(entry.folder))


def drawn(rows: Rows, max_rows: int | None, seed: int) -> Rows:
    """At most `max_rows` rows, drawn by the seed, in the order of the file."""
    return rows.where(subset(rows.numbers("drawn"), max_rows, seed))
