"""Labels of a row as the file has them, and the order in which a model numbers them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ftune.data.read import Row, short
from ftune.errors import RowProblem, suggestion

LABELLED = frozenset({"classification", "multi_label", "regression", "token_labels"})
"""Formats whose rows have labels."""


@dataclass(frozen=True)
class Labels:
    """Label, labels, number or tags of a row, and its words where each of them has a tag."""

    label: str | tuple[str, ...] | float
    words: tuple[str, ...] = ()


def label_names(labels: Iterable[str | tuple[str, ...] | float | None]) -> tuple[str, ...]:
    """Every label once, sorted: as numbers where all are whole numbers, else as text. Empty for regression."""
    names: set[str] = set()
    for label in labels:
        names.update((label,) if isinstance(label, str) else label if isinstance(label, tuple) else ())
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))


def read_labels(
    row: Row, row_format: str, columns: Mapping[str, str], values: Mapping[str, Any]
) -> Labels | list[RowProblem]:
    """Read the labels of one row, or say everything that is wrong with them.

    Args:
        row: for the place of a problem.
        row_format: one of `LABELLED`.
        columns: our names to theirs.
        values: the row, null for empty cells.
    """
    theirs = columns[{"multi_label": "labels", "token_labels": "tags"}.get(row_format, "label")]
    value = values.get(theirs)
    if theirs not in row.values:
        return [row.problem(f"is missing.{suggestion(theirs, row.values)} Map it with data.columns.", theirs)]
    if row_format == "classification":
        name = _name(value)
        return Labels(name) if name else [row.problem(f"expected a label, received {short(value)}.", theirs)]
    if row_format == "regression":
        number = _number(value)
        return (
            [row.problem(f"expected a number, received {short(value)}.", theirs)] if number is None else Labels(number)
        )
    names = None if value is None and row_format == "token_labels" else _names(value)
    if names is None:
        return [row.problem(f"expected a list of labels, received {short(value)}.", theirs)]
    if row_format == "multi_label":
        return Labels(tuple(sorted(set(names))))
    return _tagged(row, columns["tokens"], values, names)


def _tagged(row: Row, column: str, values: Mapping[str, Any], tags: tuple[str, ...]) -> Labels | list[RowProblem]:
    if column not in values:
        return [row.problem(f"is missing.{suggestion(column, values)} Map it with data.columns.", column)]
    words = values[column]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        return [row.problem(f"expected a list of words, received {short(words)}.", column)]
    if len(words) != len(tags):
        return [row.problem(f"has {len(words)} words but {len(tags)} tags; expected one for each.", column)]
    return Labels(tags, tuple(words))


def _name(value: Any) -> str | None:
    """Text or a whole number (or true and false) as a label."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int) else None


def _names(value: Any) -> tuple[str, ...] | None:
    """A list of labels; in a table, one cell with `|` between them, which may be empty."""
    if isinstance(value, str) or value is None:
        value = [part.strip() for part in (value or "").split("|") if part.strip()]
    names = [_name(item) for item in value] if isinstance(value, list) else [None]
    return None if None in names else tuple(str(name) for name in names)


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
