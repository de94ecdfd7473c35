"""Questions with several answers to choose from: how the right one is named, and how they are put to a model."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftune.data.read import Row, short
from ftune.errors import RowProblem, suggestion
from ftune.recipe import CHOICES

LETTERS = string.ascii_uppercase
ANSWERS = ("answer", "answer_index", "answer_letter", "answer_text")


@dataclass(frozen=True)
class Choices:
    """A question.

    Args:
        question: with the context before it, if there is one.
        choices: the answers, in the order of the row.
        correct: which of them is right, from 0.
    """

    question: str
    choices: tuple[str, ...]
    correct: int

    @property
    def prompt(self) -> str:
        """Question and lettered choices, a line each."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.question, *lines, "Answer:\n"])

    @property
    def answer(self) -> str:
        """The letter of the right choice."""
        return LETTERS[self.correct]


def read_choices(row: Row, mapping: Mapping[str, str], values: Mapping[str, Any]) -> Choices | list[RowProblem]:
    """Read one question, or say everything that is wrong with it.

    Args:
        row: for the place of a problem.
        mapping: our names to theirs.
        values: the row, null for empty cells.
    """
    columns = _columns(mapping, values)
    problems: list[RowProblem] = []
    texts = {}
    for name in ("question", "context"):
        value = values.get(columns[name]) if name in columns else None
        texts[name] = value if isinstance(value, str) else ""
        problem = _text_problem(row, mapping.get(name, name), value, name in columns, optional=name == "context")
        problems += [] if problem is None else [problem]
    choices = _choices(row, mapping, columns, values)
    if isinstance(choices, RowProblem):
        return [*problems, choices]
    correct = _correct(row, columns, values, choices)
    if isinstance(correct, RowProblem):
        return [*problems, correct]
    question = f"{texts['context']}\n\n{texts['question']}" if texts["context"] else texts["question"]
    return problems or Choices(question, choices, correct)


def _columns(mapping: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """Our names to the columns of the row; one that is mapped to another of our names has no meaning of its own."""
    taken = set(mapping.values())
    names = ("question", "context", "choices", *CHOICES, *ANSWERS)
    pairs = {name: mapping.get(name, name) for name in names if name in mapping or name not in taken}
    return {name: theirs for name, theirs in pairs.items() if theirs in values}


def _text_problem(row: Row, theirs: str, value: Any, there: bool, *, optional: bool) -> RowProblem | None:
    if value is None and optional:
        return None
    if not there:
        return row.problem(f"is missing.{suggestion(theirs, row.values)} Map it with data.columns.", theirs)
    if not isinstance(value, str):
        return row.problem(f"expected text, received {short(value)}.", theirs)
    return None if value.strip() or optional else row.problem("is empty.", theirs)


def _choices(
    row: Row, mapping: Mapping[str, str], columns: Mapping[str, str], values: Mapping[str, Any]
) -> tuple[str, ...] | RowProblem:
    """The answers, from a list or from a column each; a row may have fewer than the table has columns."""
    single = [columns[name] for name in CHOICES if name in columns]
    if "choices" in columns:
        theirs, found = columns["choices"], values[columns["choices"]]
        if not isinstance(found, list):
            return row.problem(f"expected a list of answers, received {short(found)}.", theirs)
        named = [(f"{theirs}[{index}]", value) for index, value in enumerate(found)]
    elif single:
        theirs, named = single[0], [(name, values[name]) for name in single]
        while named and (named[-1][1] is None or named[-1][1] == ""):
            named.pop()
    else:
        missing = mapping.get("choices", "choices")
        hint = "Expected choices, a list, or choice0, choice1 and so on. Map them with data.columns."
        return row.problem(f"is missing. {hint}", missing)
    for name, value in named:
        if not isinstance(value, str) or not value.strip():
            return row.problem(f"expected text, received {short(value)}.", name)
    if not 2 <= len(named) <= len(LETTERS):
        return row.problem(f"expected 2 to {len(LETTERS)} answers, received {len(named)}.", theirs)
    return tuple(value for _, value in named)


def _correct(
    row: Row, columns: Mapping[str, str], values: Mapping[str, Any], choices: tuple[str, ...]
) -> int | RowProblem:
    """Which choice is right, where the row says so in one way only."""
    given = [name for name in ANSWERS if name in columns]
    if len(given) != 1:
        what = f"is told {len(given)} times ({', '.join(columns[name] for name in given)})" if given else "is missing"
        return row.problem(f"{what}. Expected one of {', '.join(ANSWERS)}. Map it with data.columns.", "answer")
    (name,) = given
    value, theirs = values[columns[name]], columns[name]
    ways = _ways(value, choices)
    wanted = name.removeprefix("answer_")
    found = {index for way, index in ways if wanted in ("answer", way)}
    if len(found) == 1:
        return found.pop()
    if found:
        meant = " or ".join(f"choice {index} ({choices[index][:40]!r})" for index in sorted(found))
        hint = "Map it as answer_index, answer_letter or answer_text."
        return row.problem(f"{short(value)} could mean {meant}. {hint}", theirs)
    last = len(choices) - 1
    ways_said = {"index": f"a number from 0 to {last}", "letter": f"a letter from A to {LETTERS[last]}",
                 "text": "the text of a choice"}  # fmt: skip
    expected = ways_said.get(wanted) or f"{ways_said['index']}, {ways_said['letter']}, or {ways_said['text']}"
    return row.problem(f"expected {expected}, received {short(value)}.", theirs)


def _ways(value: Any, choices: tuple[str, ...]) -> set[tuple[str, int]]:
    """Everything that a value could mean, as (index, letter or text; which choice)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {("index", value)} if 0 <= value < len(choices) else set()
    if not isinstance(value, str):
        return set()
    text = value.strip()
    ways = {("text", index) for index, choice in enumerate(choices) if choice.strip() == text}
    if text.isascii() and text.isdecimal() and int(text) < len(choices):
        ways.add(("index", int(text)))
    if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        ways.add(("letter", LETTERS.index(text.upper())))
    return ways
