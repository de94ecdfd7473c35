"""A row of any format becomes one shape: a list of chat turns, a plain text, or something with labels.

This is where columns are mapped, formats detected, and rows with missing, empty or wrong fields reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftune.data.chat import Turn, read_turns
from ftune.data.labelled import LABELLED, read_labels
from ftune.data.read import Row, short
from ftune.errors import DataError, RowProblem, suggestion
from ftune.recipe import COLUMNS

OPTIONAL = {"system", "input", "text_pair"}
SIGNATURES = {
    "chat": [{"messages"}, {"conversations"}],
    "prompt_completion": [{"prompt", "completion"}],
    "instruction": [{"instruction", "output"}],
    "text": [{"text"}],
    "pairs": [{"source", "target"}],
    "classification": [{"text", "label"}],
    "multi_label": [{"text", "labels"}],
    "regression": [{"text", "label"}],
    "token_labels": [{"tokens", "tags"}],
}
"""Columns that give a format away."""


@dataclass(frozen=True)
class Sample:
    """What a row says, before any template.

    Args:
        row: where it came from.
        turns: the conversation; empty for format text.
        text: the document, or what a label belongs to; empty for conversations.
        text_pair: a second text that the label belongs to as well.
        label: the label, all labels, or the number, as the row has it; the tags of token_labels.
        words: of token_labels.
        source: number of its source among those of its split.
        fields: the row's values under our names, for templates.
        shown: those of them that the template shows.
    """

    row: Row
    turns: tuple[Turn, ...] = ()
    text: str = ""
    text_pair: str = ""
    label: str | tuple[str, ...] | float | None = None
    words: tuple[str, ...] = ()
    source: int = 0
    fields: Mapping[str, Any] | None = None
    shown: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Rows of one group stay on one side of a split: same first question, or same document."""
        own = " ".join(self.words) or f"{self.text} {self.text_pair}"
        first = next((turn.content for turn in self.turns if turn.role == "user"), own)
        return " ".join(first.split())

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for exact duplicates: the same words under the same template."""
        turns = ((turn.role, turn.content) for turn in self.turns)
        return (
            self.text,
            self.text_pair,
            self.label,
            self.words,
            *turns,
            *(repr((self.fields or {}).get(name)) for name in self.shown),
        )


def detect_format(columns: list[str], mapping: Mapping[str, str], file: str, accepted: frozenset[str]) -> str:
    """The one format whose columns are all here.

    Args:
        columns: the row's own column names.
        mapping: our names to theirs.
        file: named in the error.
        accepted: formats that the objective learns from.

    Raises:
        DataError: none fits, or several do.
    """
    ours = set(columns) | set(mapping)
    fits = [name for name in SIGNATURES if name in accepted and any(known <= ours for known in SIGNATURES[name])]
    if len(fits) > 1 and "text" in fits:
        fits.remove("text")  # a text column beside a whole conversation is its rendering
    if len(fits) == 1:
        return fits[0]
    what = f"several formats fit ({', '.join(fits)})" if fits else "no format fits"
    raise DataError(
        f"{file}: {what} the columns {', '.join(sorted(columns))}. Set data.format ({', '.join(sorted(accepted))}), "
        "and data.columns to map names, e.g. {prompt: question, completion: answer}."
    )


def to_sample(
    row: Row, row_format: str, mapping: Mapping[str, str], shown: tuple[str, ...] = ()
) -> Sample | list[RowProblem]:
    """Read one row as `row_format`, or say everything that is wrong with it.

    Args:
        row: as it was read.
        row_format: the name of a format.
        mapping: our names to theirs.
        shown: columns that the template shows.
    """
    if row_format == "chat":
        turns = read_turns(row, mapping)
        return (
            turns if isinstance(turns, list) else Sample(row, turns=turns, fields=without_nan(row.values), shown=shown)
        )
    if row_format in LABELLED:
        return _labelled(row, row_format, mapping, shown)
    values = without_nan(row.values)
    fields = dict(values)
    problems = []
    for name in COLUMNS[row_format]:
        value = values.get(mapping.get(name, name))
        if value is None and name in OPTIONAL:
            value = ""
        problem = _field_problem(row, name, mapping.get(name, name), value)
        if problem is not None:
            problems.append(problem)
        fields[name] = value
    if problems:
        return problems
    if row_format == "text":
        return Sample(row, text=fields["text"])
    if row_format == "instruction":
        prompt = f"{fields['instruction']}\n\n{fields['input']}" if fields["input"] else fields["instruction"]
        turns = (Turn("user", prompt), Turn("assistant", fields["output"]))
    elif row_format == "pairs":
        turns = (Turn("user", fields["source"]), Turn("assistant", fields["target"]))
    else:
        turns = (Turn("user", fields["prompt"]), Turn("assistant", fields["completion"]))
    system = (Turn("system", fields["system"]),) if fields.get("system") else ()
    return Sample(row, turns=(*system, *turns), fields=fields, shown=shown)


def _labelled(
    row: Row, row_format: str, mapping: Mapping[str, str], shown: tuple[str, ...]
) -> Sample | list[RowProblem]:
    """A text, a pair of texts or words with labels. Columns that a template shows need not be called `text`."""
    values = without_nan(row.values)
    texts, problems = {}, []
    for name in () if row_format == "token_labels" else ("text", "text_pair"):
        theirs = mapping.get(name, name)
        value = values.get(theirs)
        templated = shown and theirs not in row.values
        texts[name] = value if value is not None else ""
        problem = None if templated else _field_problem(row, name, theirs, texts[name])
        problems += [] if problem is None else [problem]
    found = read_labels(row, row_format, {name: mapping.get(name, name) for name in COLUMNS[row_format]}, values)
    if isinstance(found, list):
        return [*problems, *found]
    fields = {**values, **texts}
    text, pair = texts.get("text", ""), texts.get("text_pair", "")
    sample = Sample(row, text=text, text_pair=pair, label=found.label, words=found.words, fields=fields, shown=shown)
    return problems or sample


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with null for NaN, which is how tables of numbers write an empty cell."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _field_problem(row: Row, name: str, theirs: str, value: Any) -> RowProblem | None:
    if theirs not in row.values and name not in OPTIONAL:
        return row.problem(f"is missing.{suggestion(theirs, row.values)} Map it with data.columns.", theirs)
    if not isinstance(value, str):
        return row.problem(f"expected text, received {short(value)}.", theirs)
    if not value.strip() and name not in OPTIONAL:
        return row.problem("is empty.", theirs)
    return None
