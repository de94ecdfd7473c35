"""The messages of a row become turns: OpenAI (`role`, `content`) and ShareGPT (`from`, `value`) spellings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ftune.data.read import Row, short
from ftune.data.tools import read_calls, spelled_calls
from ftune.errors import RowProblem, suggestion

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "function_call": "assistant", "tool": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip
"""Roles of ShareGPT and of OpenAI messages, in the words of chat templates."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of thoughts that are kept apart from an answer."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. Every field is text or a number, so that turns can be compared and kept as JSON.

    Args:
        role: who speaks.
        content: the words, as the row has them.
        name: of the speaker, or of the tool that answers.
        tool_calls: what an assistant calls, as JSON: a list of OpenAI's calls whose arguments are objects; or nothing.
        tool_call_id: the call that a tool answers.
        reasoning: thoughts that the row keeps apart from the words.
        weight: 0 where an answer is not to be learned, else 1.
        spelled: whether the words spell the calls and say nothing else, as ShareGPT's do.
    """

    role: Role
    content: str
    name: str = ""
    tool_calls: str = ""
    tool_call_id: str = ""
    reasoning: str = ""
    weight: int = 1
    spelled: bool = False

    def __repr__(self) -> str:
        """As every dataclass has it, which digests of rows rest on; in a third of the time."""
        return (
            f"Turn(role={self.role!r}, content={self.content!r}, name={self.name!r}, tool_calls={self.tool_calls!r}, "
            f"tool_call_id={self.tool_call_id!r}, reasoning={self.reasoning!r}, weight={self.weight!r}, "
            f"spelled={self.spelled!r})"
        )


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
    return problems or _numbered(good)


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
    calls = read_calls(row, message, place) if roles[role] == "assistant" else ""
    if isinstance(calls, RowProblem):
        return calls
    spelled = "" if calls or role != "function_call" else spelled_calls(content)
    content = "" if content is None and calls else content
    if not isinstance(content, str):
        return row.problem(f"expected text, received {short(content)}.", f"{place}.{what}")
    if not content.strip() and roles[role] == "assistant" and not calls:
        return row.problem("is empty.", f"{place}.{what}")
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        return row.problem(f"expected 0 or 1, received {short(weight)}.", f"{place}.weight")
    return Turn(
        role=roles[role],
        content=content,
        name=_text(message, "name"),
        tool_calls=calls or spelled,
        tool_call_id=_text(message, "tool_call_id"),
        reasoning=_text(message, *REASONING) if roles[role] == "assistant" else "",
        weight=1 if weight is None else int(weight),
        spelled=bool(spelled),
    )


def _text(message: Mapping[str, Any], *keys: str) -> str:
    """The first of these that has text."""
    return next((value for key in keys if isinstance(value := message.get(key), str) and value.strip()), "")


def _numbered(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Every call has an id, as some templates insist, and tools answer the calls before them in order."""
    if not any(turn.tool_calls for turn in turns):
        return turns
    done: list[Turn] = []
    waiting: list[str] = []
    count = 0
    for turn in turns:
        if turn.tool_calls:
            calls = json.loads(turn.tool_calls)
            for call in calls:
                count += 1
                call.setdefault("id", f"call{count:05}")  # the nine letters and digits that Mistral wants
            waiting = [call["id"] for call in calls]
            done.append(replace(turn, tool_calls=json.dumps(calls, ensure_ascii=False)))
        elif turn.role == "tool" and waiting:
            done.append(replace(turn, tool_call_id=turn.tool_call_id or waiting[0]))
            waiting = waiting[1:]
        else:
            done.append(turn)
    return tuple(done)
