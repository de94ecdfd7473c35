"""A row of any format becomes one shape: a list of chat turns, or a plain text.

This is where columns are mapped, formats detected, and rows with missing, empty or wrong fields reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ftune.data.read import Row
from ftune.errors import DataError, RowProblem, suggestion
from ftune.recipe import COLUMNS, FORMATS

OPTIONAL = {"system", "input"}
ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
         "system": "system", "tool": "tool", "observation": "tool", "function_call": "assistant"}  # fmt: skip
"""Roles of ShareGPT and of OpenAI messages, in the words of chat templates."""
SIGNATURES = {
    "chat": [{"messages"}, {"conversations"}],
    "prompt_completion": [{"prompt", "completion"}],
    "instruction": [{"instruction", "output"}],
    "text": [{"text"}],
}
"""Columns that give a format away."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True)
class Sample:
    """What a row says, before any template.

    Args:
        row: where it came from.
        turns: the conversation; empty for format text.
        text: the document; empty for all other formats.
        fields: the row's values under our names, for templates.
    """

    row: Row
    turns: tuple[Turn, ...] = ()
    text: str = ""
    fields: Mapping[str, Any] | None = None

    @property
    def group(self) -> str:
        """Rows of one group stay on one side of a split: same first question, or same document."""
        first = next((turn.content for turn in self.turns if turn.role == "user"), self.text)
        return " ".join(first.split())

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for exact duplicates."""
        return (self.text, *((turn.role, turn.content) for turn in self.turns))


def detect_format(columns: list[str], mapping: Mapping[str, str], file: str) -> str:
    """The one format whose columns are all here.

    Args:
        columns: the row's own column names.
        mapping: our names to theirs.
        file: named in the error.

    Raises:
        DataError: none fits, or several do.
    """
    ours = set(columns) | set(mapping)
    fits = [name for name in FORMATS if any(signature <= ours for signature in SIGNATURES[name])]
    if len(fits) > 1 and "text" in fits:
        fits.remove("text")  # a text column beside a whole conversation is its rendering
    if len(fits) == 1:
        return fits[0]
    what = f"several formats fit ({', '.join(fits)})" if fits else "no format fits"
    raise DataError(
        f"{file}: {what} the columns {', '.join(sorted(columns))}. Set data.format, and data.columns to map "
        "names, e.g. {prompt: question, completion: answer}."
    )


def to_sample(row: Row, row_format: str, mapping: Mapping[str, str]) -> Sample | list[RowProblem]:
    """Read one row as `row_format`, or say everything that is wrong with it."""
    if row_format == "chat":
        return _chat(row, mapping)
    fields: dict[str, Any] = {k: v for k, v in row.values.items()}
    problems = []
    for name in COLUMNS[row_format]:
        value = row.values.get(mapping.get(name, name))
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
    else:
        turns = (Turn("user", fields["prompt"]), Turn("assistant", fields["completion"]))
    system = (Turn("system", fields["system"]),) if fields["system"] else ()
    return Sample(row, turns=(*system, *turns), fields=fields)


def _field_problem(row: Row, name: str, theirs: str, value: Any) -> RowProblem | None:
    if theirs not in row.values and name not in OPTIONAL:
        return row.problem(f"is missing.{suggestion(theirs, row.values)} Map it with data.columns.", theirs)
    if value is None:
        return row.problem("expected text, received null.", theirs)
    if not isinstance(value, str):
        return row.problem(f"expected text, received {type(value).__name__}: {str(value)[:80]!r}.", theirs)
    if not value.strip() and name not in OPTIONAL:
        return row.problem("is empty.", theirs)
    return None


def _chat(row: Row, mapping: Mapping[str, str]) -> Sample | list[RowProblem]:
    column = mapping.get("messages", "messages" if "messages" in row.values else "conversations")
    messages = row.values.get(column)
    if column not in row.values:
        return [row.problem(f"is missing.{suggestion(column, row.values)} Map it with data.columns.", column)]
    if not isinstance(messages, list) or not messages:
        return [row.problem(f"expected a list of messages, received {str(messages)[:80]!r}.", column)]
    turns: list[Turn] = []
    problems: list[RowProblem] = []
    for index, message in enumerate(messages):
        place = f"{column}[{index}]"
        if not isinstance(message, dict):
            problems.append(row.problem(f"expected an object, received {str(message)[:80]!r}.", place))
            continue
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if role not in ROLES:
            near = suggestion(str(role), ROLES)
            problems.append(row.problem(f"unknown role {role!r}.{near}", f"{place}.role"))
        elif not isinstance(content, str):
            problems.append(row.problem(f"expected text, received {content!r}.", f"{place}.content"))
        elif not content.strip() and ROLES[role] == "assistant":
            problems.append(row.problem("is empty.", f"{place}.content"))
        else:
            turns.append(Turn(ROLES[role], content))  # type: ignore[arg-type]
    if not problems and not any(turn.role == "assistant" for turn in turns):
        problems.append(row.problem("has no assistant message, so nothing to learn.", column))
    return problems or Sample(row, turns=tuple(turns), fields=dict(row.values))
