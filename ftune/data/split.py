"""Hold out part of the training rows: whole groups, after exact duplicates are gone.

Rows are known here by 8-byte digests of what they say, so that millions of them fit into memory. Which rows are held
out depends on these and the seed only: not on the order of the file, not on the machine.
R rows, G groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ftune.data.columns import among, chunks, joined
from ftune.data.read import Row, short
from ftune.data.shape import Sample, without_nan
from ftune.data.strata import nearest_strata
from ftune.errors import DataError, RowProblem

SHARE = 1 << 18
"""Rows whose digests are sorted together."""


def digest(value: object) -> int:
    """8 bytes of BLAKE2b over a text, a number or a tuple of them, the same on every machine and version.

    Two different values among a million have the same digest once in 37 million such sets.
    """
    return int.from_bytes(hashlib.blake2b(ascii(value).encode("ascii"), digest_size=8).digest(), "little")


def digests(values: Iterable[object]) -> np.ndarray:
    """The digest of each value, uint64[R]."""
    return np.fromiter((digest(value) for value in values), dtype=np.uint64)


def place_of(row: Row) -> tuple[str, int]:
    """How a row is known when rows are drawn: file name and number, so that a project may move."""
    return Path(row.file).name, row.number


def group_of(sample: Sample, column: str | None) -> object:
    """What must be equal for two rows to stay on one side of a split.

    Args:
        sample: one row.
        column: `data.group_by`; None takes the first question, or the document.
    """
    return sample.group if column is None else sample.row.values[column]


def group_problem(row: Row, column: str | None) -> RowProblem | None:
    """What is wrong with the row's value of `data.group_by`: an empty cell would make strangers one group."""
    if column is None:
        return None
    value = without_nan(row.values).get(column)
    if value is not None and str(value).strip():
        return None
    if column not in row.values:
        return row.problem("is missing. data.group_by names it.", column)
    return row.problem(f"expected a value to group by (data.group_by), received {short(value)}.", column)


def duplicates(content: np.ndarray) -> np.ndarray:
    """Which rows say what an earlier row says already, bool[R].

    Args:
        content: digests of what the rows say, uint64[R].
    """
    later = np.ones(len(content), dtype=bool)
    for rows in _shares(content):
        later[rows[np.unique(content[rows], return_index=True)[1]]] = False
    return later


def _shares(digests: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in shares of about `SHARE`, each with all the rows of its digests: so little is sorted at a time.

    Digests of a share are above those of the shares before, and its rows are ascending.
    """
    bits = (len(digests) // SHARE).bit_length()
    if not bits:
        yield np.arange(len(digests))
        return
    top = np.concatenate([(piece >> np.uint64(64 - bits)).astype(np.uint16) for piece in chunks(digests)])
    for share in range(1 << bits):
        yield np.flatnonzero(top == share)


def subset(place: np.ndarray, max_rows: int | None, seed: int) -> np.ndarray:
    """Positions of at most `max_rows` rows, drawn by the seed, in the order of the file: int64[M].

    Args:
        place: digests of `place_of`, uint64[R].
        max_rows: None takes all.
        seed: of the draw. A smaller draw is part of a larger one.
    """
    if max_rows is None or len(place) <= max_rows:
        return np.arange(len(place))
    return np.sort(np.argsort(_drawn(place, seed), kind="stable")[:max_rows])


def held_out(group: np.ndarray, share: float, seed: int, strata: np.ndarray | None) -> np.ndarray:
    """Which rows are held out, bool[R]: whole groups, at least one of them and never all.

    Groups are taken in an order that seed and content draw, each if it brings the number of rows nearer to the share.
    So the number is off by at most half of the smallest group that could still be added or, where groups are large,
    half of the last that was.

    Args:
        group: digest of each row's group, uint64[R].
        share: of the rows, above 0.
        seed: of the order.
        strata: (row, label) of every label of every row, int64[P, 2], whose shares are kept; or None.

    Raises:
        DataError: there is too little to split.
    """
    members, sizes = _counted(group)
    if len(members) < 2:
        raise DataError(
            f"cannot hold out a share of {len(group)} rows that are one group: rows with the same first question, or "
            "with the same value of data.group_by, stay together. Name a file in data.eval, or set it to null."
        )
    if share >= 1:
        raise DataError(f"holding out {share:.0%} leaves no row to train on. Lower data.eval.")
    keys = joined((_drawn(piece, seed) for piece in chunks(members)), len(members))
    order, wanted = np.argsort(keys, kind="stable"), share * len(group)
    del keys
    if strata is None:
        chosen = members[_nearest(sizes, order, wanted)]
        return np.concatenate([among(piece, chosen) for piece in chunks(group)])
    group_of_row = np.searchsorted(members, group)
    return nearest_strata(group_of_row, sizes, order, share, strata)[group_of_row]


def _counted(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every group once, uint64[G], ascending, and how many rows it has, int32[G]."""
    parts = [np.unique(group[rows], return_counts=True) for rows in _shares(group)]
    sizes = np.concatenate([counts.astype(np.int32) for _, counts in parts])
    return np.concatenate([members for members, _ in parts]), sizes


def _nearest(sizes: np.ndarray, order: np.ndarray, wanted: float) -> np.ndarray:
    """Groups whose rows together are as near to `wanted` as taking them in `order` comes, bool[G]."""
    held = np.zeros(len(sizes), dtype=bool)
    sums = np.cumsum(sizes[order])
    first = int(np.searchsorted(sums, wanted, side="right"))  # so many fit in without a thought
    held[order[:first]] = True
    missing, smallest = wanted - (float(sums[first - 1]) if first else 0.0), int(sizes.min())
    for one in order[first:]:
        if 2 * missing <= smallest:
            break
        if sizes[one] < 2 * missing:
            held[one] = True
            missing -= sizes[one]
    if not held.any() or held.all():
        least = order[sizes[order].argmin()]
        held[least] = not held[least]
    return held


def _drawn(values: np.ndarray, seed: int) -> np.ndarray:
    """A number for each digest, other for each seed: the finaliser of splitmix64 (Steele et al., 2014), a bijection."""
    mixed = values ^ np.uint64(digest(("split", seed)))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def cut_document(sample: Sample, share: float) -> tuple[Sample, Sample]:
    """Cut a single document near a line end; its last part is held out.

    Raises:
        DataError: it is too short.
    """
    text = sample.text
    wanted = round(len(text) * (1 - share))
    cut = text.find("\n", wanted, len(text.rstrip())) + 1 or wanted  # the last line's end would hold nothing out
    if not (text[:cut].strip() and text[cut:].strip()):
        raise DataError(f"{sample.row.file}: the document is too short to hold out {share:.0%} of it.")
    in_file = Path(sample.row.file).suffix.lower() in (".txt", ".md")
    line = sample.row.number + (text.count("\n", 0, cut) if in_file else 0)
    return Sample(sample.row, text=text[:cut]), Sample(Row(sample.row.file, line, {}), text=text[cut:])
