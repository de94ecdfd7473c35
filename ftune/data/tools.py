"""Tools in chats: what a row may call, and what its messages call, in the one shape that chat templates expect.

That shape is OpenAI's, but with arguments as an object: templates write it themselves, in the way of their model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ftune.data.read import Row, short
from ftune.errors import RowProblem


def read_tools(row: Row, mapping: Mapping[str, str]) -> str | RowProblem:
    """The tools of a row, as JSON; nothing where it has none.

    Args:
        row: as it was read. Its column `tools` is a list, or JSON of one.
        mapping: our names to theirs.
    """
    column = mapping.get("tools", "tools")
    value = row.values.get(column)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            return row.problem(f"expected a list of tools or JSON of one: {error}.", column)
    if value is None or value == "" or value == [] or _is_nan(value):
        return ""
    if not isinstance(value, list):
        return row.problem(f"expected a list of tools, received {short(value)}.", column)
    tools = []
    for index, tool in enumerate(value):
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            return row.problem(f"expected an object with a name, received {short(tool)}.", f"{column}[{index}]")
        tools.append(tool if inner is not tool else {"type": "function", "function": tool})
    return _as_json(row, tools, column)


def read_calls(row: Row, message: Mapping[str, Any], place: str) -> str | RowProblem:
    """The calls of an assistant message of OpenAI, as JSON; nothing where it has none."""
    calls, place = message.get("tool_calls"), f"{place}.tool_calls"
    legacy = message.get("function_call")
    if calls is None and isinstance(legacy, dict):
        calls, place = [{"function": legacy}], place.replace("tool_calls", "function_call")
    if calls is None or calls == []:
        return ""
    if not isinstance(calls, list):
        return row.problem(f"expected a list, received {short(calls)}.", place)
    read = []
    for index, call in enumerate(calls):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
            return row.problem(f"expected an object with a name, received {short(call)}.", f"{place}[{index}]")
        arguments = _object(inner.get("arguments"))
        if arguments is None:
            received = short(inner["arguments"])
            return row.problem(
                f"expected an object or JSON of one, received {received}.", f"{place}[{index}].arguments"
            )
        own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        read.append({**own, "type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return _as_json(row, read, place)


def spelled_calls(content: Any) -> str:
    """The calls that a message of ShareGPT spells out, as JSON; nothing where it is other text.

    A call is an object with `name` and `arguments`, or a list of such.
    """
    try:
        value = json.loads(content) if isinstance(content, str) else None
    except ValueError:
        return ""
    calls = value if isinstance(value, list) else [value]
    read = []
    for call in calls:
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or not isinstance(call["name"], str):
            return ""
        arguments = _object(call["arguments"])
        if arguments is None or not call["name"].strip():
            return ""
        read.append({"type": "function", "function": {"name": call["name"], "arguments": arguments}})
    return json.dumps(read, ensure_ascii=False) if read else ""


def _object(arguments: Any) -> dict[str, Any] | None:
    """Arguments as an object, from one or from JSON of one; none at all are an empty one."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return arguments if isinstance(arguments, dict) else None


def _as_json(row: Row, value: Any, place: str) -> str | RowProblem:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:  # such as a date in a table
        return row.problem(f"holds a value that JSON does not have: {error}.", place)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value
