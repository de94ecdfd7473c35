"""Hold out part of the training rows: whole groups, after exact duplicates are gone.

Rows are known by 8-byte digests of what they say. R rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.errors import DataError


def digest(value: object) -> int:
    """8 bytes of BLAKE2b over a text, a number or a tuple of them, the same on every machine and version."""
    return int.from_bytes(hashlib.blake2b(ascii(value).encode("ascii"), digest_size=8).digest(), "little")


def group_of(sample: Sample, column: str | None) -> object:
    """What must be equal for two rows to stay on one side of a split.

    Args:
        sample: one row, with its own values.
        column: names the group; None takes the first question, or the document.
    """
    return sample.group if column is None else sample.row.values[column]


def duplicates(content: np.ndarray) -> np.ndarray:
    """Which rows say what an earlier row says already, bool[R]."""
    later = np.ones(len(content), dtype=bool)
    later[np.unique(content, return_index=True)[1]] = False
    return later


def overlap(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which held-out rows are also trained on, word for word, bool[len(held)]."""
    return np.isin(held, train)


def subset(place: np.ndarray, max_rows: int | None, seed: int) -> np.ndarray:
    """Positions of at most `max_rows` rows, drawn by the seed, in the order of the file: int64[M]."""
    if max_rows is None or len(place) <= max_rows:
        return np.arange(len(place))
    return np.sort(np.argsort(_drawn(place, seed), kind="stable")[:max_rows])


def held_out(group: np.ndarray, share: float, seed: int, strata: np.ndarray | None) -> np.ndarray:
    """Which rows are held out, bool[R]: a share of the groups, each of them whole.

    Raises:
        DataError: there is too little to split.
    """
    members, group_of_row = np.unique(group, return_inverse=True)
    if len(members) < 2:
        raise DataError(
            f"cannot hold out a share of {len(group)} rows that are one group (same first question). "
            "Name a file in data.eval, or set it to null."
        )
    held = np.zeros(len(members), dtype=bool)
    held[np.argsort(_drawn(members, seed), kind="stable")[: max(1, round(share * len(members)))]] = True
    if held.all():
        raise DataError(f"holding out {share:.0%} leaves no row to train on. Lower data.eval.")
    return held[group_of_row]


def weighted(place: np.ndarray, weight: np.ndarray, seed: int) -> np.ndarray:
    """Positions of examples, each as often as its weight says; of what is left of a weight, that share, drawn."""
    chosen = []
    for one in np.unique(weight):
        members, whole = np.flatnonzero(weight == one), int(one)
        rest = round((one - whole) * len(members))
        order = np.argsort(_drawn(place[members] + members.astype(np.uint64), seed), kind="stable")
        chosen += [np.tile(members, whole), members[order[:rest]]]
    return np.sort(np.concatenate(chosen))


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
