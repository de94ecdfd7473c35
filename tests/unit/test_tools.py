"""Tools and calls of a row: OpenAI's, those of Hugging Face, old ones, and calls that ShareGPT spells out."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from ftune.data.chat import Turn
from ftune.data.read import Row
from ftune.data.shape import Sample, to_sample

QUESTION = {"role": "user", "content": "q"}
TOOL = {"name": "f", "description": "d", "parameters": {"a": [1]}}
WRAPPED = {"type": "function", "function": TOOL}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}
NUMBERED = {**CALL, "id": "call00001"}


def read(*messages: Any, mapping: dict[str, str] | None = None, **columns: Any) -> Sample | list[str]:
    found = to_sample(Row("a.jsonl", 5, {"messages": [QUESTION, *messages], **columns}), "chat", mapping or {})
    return found if isinstance(found, Sample) else [str(problem) for problem in found]


def answer(**values: Any) -> Turn:
    found = read({"role": "assistant", **values})
    assert isinstance(found, Sample), found
    return found.turns[1]


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": "ü"}'}}]},
        {"tool_calls": [{"name": "f", "arguments": {"a": "ü"}}]},
        {"function_call": {"name": "f", "arguments": '{"a": "\\u00fc"}'}},
        {"tool_calls": None, "function_call": {"name": "f", "arguments": {"a": "ü"}}},
    ],
)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": " words"}])
def test_calls_have_one_shape(given: dict[str, Any], content: dict[str, Any]) -> None:
    turn = answer(**given, **content)
    assert json.loads(turn.tool_calls) == [NUMBERED]
    assert (turn.content, turn.spelled, turn.role) == (content.get("content") or "", False, "assistant")
    assert "ü" in turn.tool_calls


@pytest.mark.parametrize("nothing", [{}, {"tool_calls": None}, {"tool_calls": []}, {"function_call": None}])
def test_no_calls(nothing: dict[str, Any]) -> None:
    assert answer(content="a", **nothing) == Turn("assistant", "a")
    assert read({"role": "assistant", "content": None, **nothing}) == [
        "a.jsonl:5 messages[1].content: expected text, received null."
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"tool_calls": "f()"}, "messages[1].tool_calls: expected a list, received str: 'f()'."),
        ({"tool_calls": ["f"]}, "messages[1].tool_calls[0]: expected an object with a name, received str: 'f'."),
        ({"tool_calls": [CALL, {"function": {"name": " "}}]},
         "messages[1].tool_calls[1]: expected an object with a name, received dict: \"{'function': {'name': ' '}}\"."),
        ({"tool_calls": [{"name": "f", "arguments": "a=1"}]},
         "messages[1].tool_calls[0].arguments: expected an object or JSON of one, received str: 'a=1'."),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]},
         "messages[1].tool_calls[0].arguments: expected an object or JSON of one, received str: '[1]'."),
        ({"function_call": {"name": "f", "arguments": 3}},
         "messages[1].function_call[0].arguments: expected an object or JSON of one, received int: '3'."),
        ({"tool_calls": [{"name": "f", "arguments": {"day": datetime.date(2024, 1, 2)}}]},
         "messages[1].tool_calls: holds a value that JSON does not have: "
         "Object of type date is not JSON serializable."),
    ],
)  # fmt: skip
def test_a_call_that_is_none(value: dict[str, Any], expected: str) -> None:
    assert read({"role": "assistant", "content": "a", **value}) == [f"a.jsonl:5 {expected}"]


@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, None])
def test_weights(weight: Any) -> None:
    turn = answer(content="a", weight=weight)
    assert (turn.weight, type(turn.weight)) == (1 if weight is None else int(weight), int)


@pytest.mark.parametrize(
    ("weight", "received"),
    [
        (2, "int: '2'"),
        (0.5, "float: '0.5'"),
        (-1, "int: '-1'"),
        ("1", "str: '1'"),
        (True, "bool: 'True'"),
        ([], "list: '[]'"),
    ],
)
def test_a_weight_that_is_none(weight: Any, received: str) -> None:
    assert read(
        {"role": "assistant", "content": "a", "weight": weight}, {"role": "user", "content": "q", "weight": 3}
    ) == [
        f"a.jsonl:5 messages[1].weight: expected 0 or 1, received {received}.",
        "a.jsonl:5 messages[2].weight: expected 0 or 1, received int: '3'.",
    ]


def sharegpt(value: str) -> Turn:
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    found = to_sample(Row("a.jsonl", 1, {"conversations": turns}), "chat", {})
    assert isinstance(found, Sample), found
    return found.turns[1]


@pytest.mark.parametrize(
    "value",
    ['{"name": "f", "arguments": {"a": "ü"}}', ' {"name": "f", "arguments": "{\\"a\\": \\"\\u00fc\\"}"}\n',
     '[{"name": "f", "arguments": {"a": "ü"}}]'],
)  # fmt: skip
def test_calls_spelled_out_are_calls_and_words(value: str) -> None:
    turn = sharegpt(value)
    assert (json.loads(turn.tool_calls), turn.content, turn.spelled) == ([NUMBERED], value, True)


@pytest.mark.parametrize(
    "value",
    ['{"f": 1}', "f(a)", '{"name": "f"}', '{"name": "f", "arguments": [1]}', '{"name": " ", "arguments": {}}', "[]",
     "7", '{"name": "f", "arguments": {}, "why": "so"}'],
)  # fmt: skip
def test_other_words_in_place_of_a_call_stay_words(value: str) -> None:
    assert sharegpt(value) == Turn("assistant", value)


def test_an_assistant_that_speaks_json_does_not_call() -> None:
    assert answer(content='{"name": "f", "arguments": {}}').tool_calls == ""


@pytest.mark.parametrize("tools", [[WRAPPED], [TOOL], json.dumps([TOOL]), json.dumps([WRAPPED])])
def test_tools_have_one_shape(tools: Any) -> None:
    found = read({"role": "assistant", "content": "a"}, tools=tools)
    assert isinstance(found, Sample)
    assert json.loads(found.tools) == [WRAPPED]
    renamed = read({"role": "assistant", "content": "a"}, functions=tools, mapping={"tools": "functions"})
    assert isinstance(renamed, Sample)
    assert renamed.tools == found.tools


@pytest.mark.parametrize("tools", [None, "", "[]", [], float("nan"), "null"])
def test_no_tools(tools: Any) -> None:
    found = read({"role": "assistant", "content": "a"}, tools=tools)
    assert isinstance(found, Sample)
    assert found.tools == ""


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ("hammer", "tools: expected a list of tools or JSON of one: Expecting value: line 1 column 1 (char 0)."),
        ('{"a": 1}', "tools: expected a list of tools, received dict: \"{'a': 1}\"."),
        (["hammer"], "tools[0]: expected an object with a name, received str: 'hammer'."),
        ([WRAPPED, {"type": "function"}], "tools[1]: expected an object with a name, received dict: "
         "\"{'type': 'function'}\"."),
        (3, "tools: expected a list of tools, received int: '3'."),
    ],
)  # fmt: skip
def test_tools_that_are_none(tools: Any, expected: str) -> None:
    assert read({"role": "assistant", "content": "a"}, tools=tools) == [f"a.jsonl:5 {expected}"]
    assert read({"role": "assistant", "content": ""}, tools=tools) == [
        "a.jsonl:5 messages[1].content: is empty.", f"a.jsonl:5 {expected}",
    ]  # fmt: skip


def test_calls_without_an_id_get_one_and_tools_answer_in_order() -> None:
    own = {**CALL, "id": "mine"}
    found = read(
        {"role": "assistant", "content": "", "tool_calls": [CALL, own, CALL]},
        {"role": "tool", "content": "1"}, {"role": "tool", "content": "2", "tool_call_id": "given"},
        {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "user", "content": "wait"}, {"role": "tool", "content": "5"},
    )  # fmt: skip
    assert isinstance(found, Sample)
    ids = [[call["id"] for call in json.loads(turn.tool_calls)] for turn in found.turns if turn.tool_calls]
    assert ids == [["call00001", "mine", "call00003"], ["call00004"]]
    answered = [turn.tool_call_id for turn in found.turns if turn.role == "tool"]
    assert answered == ["call00001", "given", "call00003", "", "call00004"]
    assert found.turns[6] == Turn("assistant", "a")
