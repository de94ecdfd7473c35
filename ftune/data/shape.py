"""A row of any format becomes one shape: a list of chat turns, a plain text, or something with labels.

This is where columns are mapped, formats detected, and rows with missing, empty or wrong fields reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftune.data.chat import Turn, read_turns
from ftune.data.choices import Choices, read_choices
from ftune.data.labelled import LABELLED, read_labels
from ftune.data.read import Row, short
from ftune.data.token_rows import Given, read_tokens
from ftune.data.tools import read_tools
from ftune.errors import DataError, RowProblem, suggestion
from ftune.recipe import COLUMNS, MESSAGE_KEYS

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
    "multiple_choice": [{"question", "choices"}, {"question", "choice0", "choice1"}],
    "tokens": [{"input_ids"}],
}
"""Columns that give a format away."""
TELLING = frozenset(name for names in COLUMNS.values() for name in names) | {
    "audio", "chosen", "functions", "history", "image", "images", "rejected", "tools",
}  # fmt: skip
"""Columns that look as if they mean something; where a format does not read one, that is said."""


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
        choices: of multiple_choice, whose turns are the question and the letter of the right one.
        ids: token ids of format tokens.
        learned: which of them are to be learned.
        fields: the row's values under our names, for templates.
        shown: those of them that the template shows.
        tools: that a conversation may call, as JSON; or nothing.
        before: rendered text before the prompt that is never scored: demonstrations. Chats have turns instead.
    """

    row: Row
    turns: tuple[Turn, ...] = ()
    text: str = ""
    text_pair: str = ""
    label: str | tuple[str, ...] | float | None = None
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    learned: tuple[bool, ...] = ()
    fields: Mapping[str, Any] | None = None
    shown: tuple[str, ...] = ()
    tools: str = ""
    before: str = ""

    @property
    def group(self) -> str:
        """Rows of one group stay on one side of a split: same first question, or same document."""
        own = " ".join(self.words) or " ".join(map(str, self.ids)) or f"{self.text} {self.text_pair}"
        first = next((turn.content for turn in self.turns if turn.role == "user"), own)
        return " ".join(first.split())

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for exact duplicates: the same words under the same template."""
        return (
            self.text,
            self.text_pair,
            self.label,
            self.words,
            self.ids,
            self.learned,
            self.tools,
            *self.turns,
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


def named_columns(mapping: Mapping[str, str]) -> set[str]:
    """The columns that a mapping names; keys of a message are none."""
    return {theirs for name, theirs in mapping.items() if name not in MESSAGE_KEYS}


def reach(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row with every value that the mapping names from inside another, such as `translation.en`."""
    if not mapping:
        return row
    found = {}
    for name in named_columns(mapping) - row.values.keys():
        value: Any = row.values
        for part in name.split("."):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                break
        else:
            found[name] = value
    return Row(row.file, row.number, {**row.values, **found}) if found else row


def reading_notes(
    row: Row, row_format: str, mapping: Mapping[str, str], *, auto: bool, shown: tuple[str, ...]
) -> list[str]:
    """What to say of how the rows of a source are read, of which `row` is the first.

    That is a format that was detected (`auto`), and columns that look as if they meant something and are not read.
    """
    ours = {mapping.get(name, name) for name in COLUMNS[row_format] if name not in MESSAGE_KEYS} | {*shown}
    ours |= {"conversations"} if row_format == "chat" else set()
    read = [name for name in row.values if name in ours]
    ignored = [name for name in row.values if name in TELLING - ours - {"text"}]
    parts = [f"format {row_format}, as its columns say ({', '.join(read)})"] if auto else []
    parts += [f"format {row_format} does not read {', '.join(ignored)}"] if ignored else []
    return [f"{'; '.join(parts)}."] if parts else []


def to_sample(
    row: Row,
    row_format: str,
    mapping: Mapping[str, str],
    shown: tuple[str, ...] = (),
    roles: Mapping[str, str] | None = None,
) -> Sample | list[RowProblem]:
    """Read one row as `row_format`, or say everything that is wrong with it.

    Args:
        row: as it was read.
        row_format: the name of a format.
        mapping: our names to theirs.
        shown: columns that the template shows.
        roles: names of roles in chats, theirs to ours.
    """
    row = reach(row, mapping)
    if row_format == "chat":
        return _conversation(row, mapping, shown, roles or {})
    if row_format in LABELLED:
        return _labelled(row, row_format, mapping, shown)
    if row_format == "multiple_choice":
        return _chosen(row, mapping, shown)
    values = without_nan(row.values)
    if row_format == "tokens":
        given = read_tokens(row, mapping, values)
        return Sample(row, ids=given.ids, learned=given.learned) if isinstance(given, Given) else given
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


def _conversation(
    row: Row, mapping: Mapping[str, str], shown: tuple[str, ...], roles: Mapping[str, str]
) -> Sample | list[RowProblem]:
    """Messages and the tools that they may call."""
    turns, tools = read_turns(row, mapping, roles), read_tools(row, mapping)
    if isinstance(turns, list) or isinstance(tools, RowProblem):
        wrong = [tools] if isinstance(tools, RowProblem) else []
        return [*turns, *wrong] if isinstance(turns, list) else wrong
    return Sample(row, turns=turns, fields=without_nan(row.values), shown=shown, tools=tools)


def _chosen(row: Row, mapping: Mapping[str, str], shown: tuple[str, ...]) -> Sample | list[RowProblem]:
    """A question with its lettered choices; templates see the choices as a list, and the letter of the right one."""
    values = without_nan(row.values)
    found = read_choices(row, mapping, values)
    if not isinstance(found, Choices):
        return found
    turns = (Turn("user", found.prompt), Turn("assistant", found.answer))
    context = values.get(mapping.get("context", "context"))
    ours = {"context": context, "choices": list(found.choices), "answer": found.answer}
    fields = {**values, "question": values[mapping.get("question", "question")], **ours}
    return Sample(row, turns=turns, choices=found.choices, fields=fields, shown=shown)


def _labelled(
    row: Row, row_format: str, mapping: Mapping[str, str], shown: tuple[str, ...]
) -> Sample | list[RowProblem]:
    """A text, a pair of texts or words with labels. Columns that a template shows need not be called `text`."""
    values = without_nan(row.values)
    texts, problems = dict[str, Any](), []
    for name in () if row_format == "token_labels" else ("text", "text_pair"):
        theirs = mapping.get(name, name)
        value = values.get(theirs)
        templated = shown and theirs not in row.values
        texts[name] = "" if value is None and (name in OPTIONAL or templated) else value
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
