"""Rows that are tokens already: `input_ids`, and which of them are to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftune.data.read import Row, short
from ftune.errors import RowProblem, suggestion

IGNORED = -100
"""What `labels` hold where nothing is learned, as everywhere."""


@dataclass(frozen=True)
class Given:
    """Token ids of a row, and whether each is to be learned."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]


def read_tokens(row: Row, mapping: Mapping[str, str], values: Mapping[str, Any]) -> Given | list[RowProblem]:
    """Read one row, or say what is wrong with it.

    Args:
        row: for the place of a problem.
        mapping: our names to theirs.
        values: the row.
    """
    column = mapping.get("input_ids", "input_ids")
    if column not in values:
        return [row.problem(f"is missing.{suggestion(column, values)} Map it with data.columns.", column)]
    ids = _whole(values[column])
    if not ids:
        return [row.problem(f"expected a list of token ids, received {short(values[column])}.", column)]
    if min(ids) < 0:
        return [row.problem(f"expected token ids from 0, received {min(ids)}.", column)]
    masks = [name for name in ("labels", "loss_mask") if values.get(mapping.get(name, name)) is not None]
    if len(masks) == 2:
        return [row.problem("has labels and a loss_mask; expected one of them.", mapping.get("labels", "labels"))]
    if not masks:
        return Given(ids, (True,) * len(ids))
    theirs = mapping.get(masks[0], masks[0])
    marks = _whole(values[theirs])
    if marks is None:
        return [row.problem(f"expected a list of numbers, received {short(values[theirs])}.", theirs)]
    if len(marks) != len(ids):
        return [row.problem(f"has {len(marks)} entries for {len(ids)} token ids; expected one for each.", theirs)]
    problem = _wrong_mark(ids, marks, masks[0])
    if problem is not None:
        return [row.problem(problem, theirs)]
    return Given(ids, tuple(mark != (IGNORED if masks[0] == "labels" else 0) for mark in marks))


def _whole(value: Any) -> tuple[int, ...] | None:
    """A list of whole numbers; true and false are 1 and 0."""
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        return None
    return tuple(int(item) for item in value)


def _wrong_mark(ids: tuple[int, ...], marks: tuple[int, ...], kind: str) -> str | None:
    for place, (token, mark) in enumerate(zip(ids, marks, strict=True)):
        if kind == "loss_mask" and mark not in (0, 1):
            return f"expected 0 or 1, received {mark} at position {place}."
        if kind == "labels" and mark not in (token, IGNORED):
            return f"expected the token id {token} or {IGNORED}, received {mark} at position {place}; do not shift."
    return None
