"""Rows to predict: any row of a format, also one without its answer, which a stand-in takes the place of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftune.data.choices import ANSWERS
from ftune.data.read import Row, read_source
from ftune.data.render import template_columns
from ftune.data.shape import Sample, detect_format, reach, to_sample, without_nan
from ftune.errors import DataError, RowProblem
from ftune.recipe import Data, Source

ANSWER_OF = {
    "prompt_completion": "completion", "instruction": "output", "pairs": "target", "classification": "label",
    "multi_label": "labels", "regression": "label", "token_labels": "tags", "multiple_choice": "answer_index",
}  # fmt: skip
"""Our name of the column with the answer, by format."""
STAND_IN = "?"


class Asked(NamedTuple):
    """A row, and whether its answer is its own."""

    sample: Sample
    answered: bool


def read_to_predict(path: Path, data: Data, accepted: frozenset[str], labels: Sequence[str]) -> list[Asked]:
    """Every row of a file, with or without answers.

    Args:
        path: the file.
        data: of the recipe: format, columns, template, what happens to bad rows.
        accepted: formats that the objective learns from.
        labels: of the model, the first of which stands in for a label that is missing.

    Raises:
        DataError: rows that cannot be read.
    """
    shown, found, problems = template_columns(data.template), list[Asked](), list[RowProblem]()
    row_format = str(data.format)
    for row in read_source(Source(path=str(path.absolute())), path.parent):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        row = reach(row, data.columns)
        row_format = _detected(row, data, accepted) if row_format == "auto" else row_format
        filled = _filled(row, row_format, data.columns, labels)
        mapping = data.columns
        if row_format == "multiple_choice" and filled is not row:
            mapping = {name: theirs for name, theirs in mapping.items() if name not in ANSWERS}
        sample = to_sample(filled, row_format, mapping, shown, data.roles)
        if isinstance(sample, Sample):
            found.append(Asked(sample, filled is row))
        else:
            problems += sample
    if problems and (data.on_bad_row == "error" or not found):
        raise DataError(problems=problems)
    return found


def _detected(row: Row, data: Data, accepted: frozenset[str]) -> str:
    """The format of a row that may lack its answer."""
    columns = list(row.values)
    try:
        return detect_format([*columns, *ANSWER_OF.values()], data.columns, row.file, accepted)
    except DataError:
        return detect_format(columns, data.columns, row.file, accepted)  # whose message names the row's columns only


def _filled(row: Row, row_format: str, mapping: Mapping[str, str], labels: Sequence[str]) -> Row:
    """The row itself if it has an answer, else one with a stand-in for it."""
    values = row.values
    if row_format == "chat":
        return _with_reply(row, mapping)
    if row_format not in ANSWER_OF:
        return row
    if row_format == "multiple_choice":
        theirs = [mapping.get(name, name) for name in ANSWERS]
        if any(values.get(name) not in (None, "") for name in theirs):
            return row
        return Row(row.file, row.number, {k: v for k, v in values.items() if k not in theirs} | {"answer_index": 0})
    answer = mapping.get(ANSWER_OF[row_format], ANSWER_OF[row_format])
    if without_nan(values).get(answer) not in (None, ""):
        return row
    words = values.get(mapping.get("tokens", "tokens"))
    label = labels[0] if labels else STAND_IN
    stand_in: Any = {
        "classification": label,
        "multi_label": [],
        "regression": 0.0,
        "token_labels": [label] * (len(words) if isinstance(words, list) else 0),
    }.get(row_format, STAND_IN)
    return Row(row.file, row.number, {**values, answer: stand_in})


def _with_reply(row: Row, mapping: Mapping[str, str]) -> Row:
    """A conversation that waits for an answer gets one, in the spelling of its last message."""
    column = mapping.get("messages", "conversations" if "conversations" in row.values else "messages")
    messages = row.values.get(column)
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], Mapping):
        return row
    last = messages[-1]
    role = mapping.get("role", "from" if "from" in last else "role")
    content = mapping.get("content", "value" if "value" in last else "content")
    if last.get(role) in ("assistant", "gpt"):
        return row
    return Row(row.file, row.number, {**row.values, column: [*messages, {role: "assistant", content: STAND_IN}]})
