"""The messages of a row become turns: OpenAI (`role`, `content`) and ShareGPT (`from`, `value`) spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ftune.data.read import Row, short
from ftune.errors import RowProblem, suggestion

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "function_call": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip
"""Roles of ShareGPT and of OpenAI messages, in the words of chat templates."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


def read_turns(
    row: Row, mapping: Mapping[str, str], roles: Mapping[str, str] | None = None
) -> tuple[Turn, ...] | list[RowProblem]:
    """The conversation of one row, or everything that is wrong with it.

    Args:
        row: as it was read.
        mapping: our names to theirs, of columns and of the keys `role` and `content` of a message.
        roles: their names of roles to ours, beside those of `ROLES`.
    """
    known = {**ROLES, **(roles or {})}
    column = mapping.get("messages", "conversations" if "conversations" in row.values else "messages")
    messages = row.values.get(column)
    if column not in row.values:
        return [row.problem(f"is missing.{suggestion(column, row.values)} Map it with data.columns.", column)]
    if not isinstance(messages, list) or not messages:
        return [row.problem(f"expected a list of messages, received {short(messages)}.", column)]
    turns = [_turn(row, message, f"{column}[{index}]", mapping, known) for index, message in enumerate(messages)]
    problems = [turn for turn in turns if isinstance(turn, RowProblem)]
    good = tuple(turn for turn in turns if isinstance(turn, Turn))
    if not problems and not any(turn.role == "assistant" for turn in good):
        problems.append(row.problem("has no assistant message, so nothing to learn.", column))
    return problems or good


def _turn(
    row: Row, message: Any, place: str, mapping: Mapping[str, str], roles: Mapping[str, Any]
) -> Turn | RowProblem:
    """One message, of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`), unless the mapping says otherwise."""
    if not isinstance(message, dict):
        return row.problem(f"expected an object, received {short(message)}.", place)
    openai = message.get("role") is not None or "from" not in message
    whose, what = ("role", "content") if openai else ("from", "value")
    whose, what = mapping.get("role", whose), mapping.get("content", what)
    role, content = message.get(whose), message.get(what)
    if not isinstance(role, str):
        return row.problem(f"expected text, received {short(role)}.", f"{place}.{whose}")
    if role not in roles:
        hint = suggestion(role, roles)
        hint += "" if "Did you mean" in hint else " Map it with data.roles."
        return row.problem(f"unknown role {role[:80]!r}.{hint}", f"{place}.{whose}")
    if not isinstance(content, str):
        return row.problem(f"expected text, received {short(content)}.", f"{place}.{what}")
    if not content.strip() and roles[role] == "assistant":
        return row.problem("is empty.", f"{place}.{what}")
    return Turn(roles[role], content)
