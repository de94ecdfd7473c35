"""Rows of every format become turns or a text: nothing guessed, nothing altered, everything wrong with a row told."""

from __future__ import annotations

from typing import Any

import pytest

from ftune.data.chat import ROLES, Turn
from ftune.data.read import Row
from ftune.data.shape import Sample, detect_format, to_sample
from ftune.errors import DataError
from ftune.objectives.causal_lm import CausalLM


def row(**values: Any) -> Row:
    return Row("rows.jsonl", 7, values)


def sample(row_format: str, columns: dict[str, str] | None = None, **values: Any) -> Sample:
    shaped = to_sample(row(**values), row_format, columns or {})
    assert isinstance(shaped, Sample), shaped
    return shaped


def problems(row_format: str, columns: dict[str, str] | None = None, **values: Any) -> list[str]:
    shaped = to_sample(row(**values), row_format, columns or {})
    assert isinstance(shaped, list)
    return [str(problem).removeprefix("rows.jsonl:7") for problem in shaped]


# formats


@pytest.mark.parametrize(
    ("columns", "mapping", "found"),
    [
        (["text"], {}, "text"),
        (["text", "meta"], {}, "text"),
        (["body"], {"text": "body"}, "text"),
        (["prompt", "completion"], {}, "prompt_completion"),
        (["prompt", "completion", "system", "text"], {}, "prompt_completion"),
        (["question", "answer"], {"prompt": "question", "completion": "answer"}, "prompt_completion"),
        (["prompt", "answer"], {"completion": "answer"}, "prompt_completion"),
        (["instruction", "input", "output"], {}, "instruction"),
        (["instruction", "output", "text"], {}, "instruction"),
        (["messages"], {}, "chat"),
        (["conversations", "tools"], {}, "chat"),
        (["dialogue"], {"messages": "dialogue"}, "chat"),
    ],
)
def test_a_format_is_known_by_its_columns(columns: list[str], mapping: dict[str, str], found: str) -> None:
    assert detect_format(columns, mapping, "f", CausalLM().formats) == found


@pytest.mark.parametrize(
    ("columns", "mapping", "what"),
    [
        (["question", "answer"], {}, "no format fits the columns answer, question."),
        (["prompt"], {}, "no format fits the columns prompt."),
        ([], {}, "no format fits the columns ."),
        (["question", "answer"], {"prompt": "question"}, "no format fits"),
        (
            ["messages", "prompt", "completion"],
            {},
            "several formats fit (chat, prompt_completion) the columns completion, messages, prompt.",
        ),
        (
            ["instruction", "output", "prompt", "completion", "text"],
            {},
            "several formats fit (prompt_completion, instruction)",
        ),
    ],
)
def test_a_doubtful_format_is_asked_for(columns: list[str], mapping: dict[str, str], what: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_format(columns, mapping, "f.csv", CausalLM().formats)
    assert str(caught.value).startswith(f"f.csv: {what}")
    assert "data.format" in str(caught.value)
    assert "data.columns" in str(caught.value)


# what a row says


def test_text() -> None:
    found = sample("text", text="  two\nlines {x} ")
    assert (found.text, found.turns) == ("  two\nlines {x} ", ())
    assert sample("text", {"text": "body"}, body="words").text == "words"


def test_prompt_and_completion() -> None:
    found = sample("prompt_completion", prompt=" p {{x}}", completion="c %s\n")
    assert found.turns == (Turn("user", " p {{x}}"), Turn("assistant", "c %s\n"))
    assert sample("prompt_completion", prompt="p", completion="c", system="s").turns == (
        Turn("system", "s"), Turn("user", "p"), Turn("assistant", "c"),
    )  # fmt: skip


def test_columns_may_change_places() -> None:
    found = sample("prompt_completion", {"prompt": "completion", "completion": "prompt"}, prompt="a", completion="b")
    assert found.turns == (Turn("user", "b"), Turn("assistant", "a"))
    assert found.fields is not None
    assert (found.fields["prompt"], found.fields["completion"]) == ("b", "a")


def test_an_instruction_has_its_input_below_it() -> None:
    assert sample("instruction", instruction="do", input="this", output="done").turns == (
        Turn("user", "do\n\nthis"), Turn("assistant", "done"),
    )  # fmt: skip
    for nothing in ({}, {"input": None}, {"input": ""}, {"input": float("nan")}):
        assert sample("instruction", instruction="do", output="done", **nothing).turns[0] == Turn("user", "do")


def test_fields_have_our_names_and_theirs() -> None:
    found = sample(
        "prompt_completion", {"prompt": "q"}, q="words", completion="c", score=3, gap=None, hole=float("nan")
    )
    assert found.fields == {
        "q": "words", "prompt": "words", "completion": "c", "system": "", "score": 3, "gap": None, "hole": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("whose", "what", "column"), [("role", "content", "messages"), ("from", "value", "conversations")]
)
@pytest.mark.parametrize("role", ROLES)
def test_every_role_of_openai_and_sharegpt(whose: str, what: str, column: str, role: str) -> None:
    messages = [{whose: role, what: "  words "}, {whose: "gpt", what: "answer"}]
    found = sample("chat", **{column: messages})
    assert found.turns == (Turn(ROLES[role], "  words "), Turn("assistant", "answer"))
    assert found.fields is not None
    assert found.fields[column] == messages


def test_roles_have_the_words_of_chat_templates() -> None:
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}
    assert (ROLES["human"], ROLES["gpt"], ROLES["function_call"], ROLES["observation"], ROLES["prompter"]) == (
        "user", "assistant", "assistant", "tool", "user",
    )  # fmt: skip


def test_messages_of_a_table_have_all_keys_and_nulls() -> None:
    """In parquet every message has the keys of all of them."""
    empty = dict.fromkeys(("role", "content", "from", "value"))
    messages = [empty | {"role": "user", "content": "u"}, empty | {"from": "gpt", "value": "g"}]
    assert sample("chat", messages=messages).turns == (Turn("user", "u"), Turn("assistant", "g"))


def test_a_chat_column_may_have_any_name() -> None:
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]
    assert sample("chat", {"messages": "dialogue"}, dialogue=turns).turns == (Turn("user", ""), Turn("assistant", "a"))


# what is wrong with a row


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "p"}, [" completion: is missing. Known: prompt. Map it with data.columns."]),
        ({"prompt": "p", "completions": "c"},
         [" completion: is missing. Did you mean 'completions'? Map it with data.columns."]),
        ({"prompt": None, "completion": ""}, [" prompt: expected text, received null.", " completion: is empty."]),
        ({"prompt": float("nan"), "completion": "c"}, [" prompt: expected text, received null."]),
        ({"prompt": 1, "completion": " \n"}, [" prompt: expected text, received int: '1'.", " completion: is empty."]),
        ({"prompt": "p", "completion": "c", "system": 3}, [" system: expected text, received int: '3'."]),
        ({"prompt": ["x" * 200], "completion": b"c"},
         [f" prompt: expected text, received list: {('[' + repr('x' * 200))[:80]!r}.",
          " completion: expected text, received bytes: \"b'c'\"."]),
    ],
)  # fmt: skip
def test_a_field_that_is_no_text(values: dict[str, Any], expected: list[str]) -> None:
    assert problems("prompt_completion", **values) == expected


def test_a_problem_has_the_name_that_is_in_the_file() -> None:
    assert problems("prompt_completion", {"prompt": "question"}, question=None, completion="c") == [
        " question: expected text, received null."
    ]


def test_an_empty_document_is_refused() -> None:
    assert problems("text", text=" \n\t") == [" text: is empty."]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user"}, "messages[1].content: expected text, received null."),
        ({"role": "asistant", "content": "a"}, "messages[1].role: unknown role 'asistant'. Did you mean 'assistant'?"),
        ({"role": {"a": 1}, "content": "a"}, "messages[1].role: expected text, received dict: \"{'a': 1}\"."),
        ({"role": None, "content": "a"}, "messages[1].role: expected text, received null."),
        ({"from": None, "value": "a"}, "messages[1].from: expected text, received null."),
        ({"from": "gpt", "value": None}, "messages[1].value: expected text, received null."),
        ({"role": "assistant", "content": " "}, "messages[1].content: is empty."),
        ({"role": "assistant", "content": ["x" * 500]},
         f"messages[1].content: expected text, received list: {('[' + repr('x' * 500))[:80]!r}."),
        ("words", "messages[1]: expected an object, received str: 'words'."),
        (None, "messages[1]: expected an object, received null."),
    ],
)  # fmt: skip
def test_a_message_that_is_none(message: Any, expected: str) -> None:
    first, last = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    assert problems("chat", messages=[first, message, last]) == [f" {expected}"]


def test_all_bad_messages_of_a_row_are_told() -> None:
    messages = [{"role": "bot", "content": "b"}, 5, {"role": "assistant", "content": None}]
    assert [line.split(":")[0] for line in problems("chat", messages=messages)] == [
        " messages[0].role", " messages[1]", " messages[2].content",
    ]  # fmt: skip


def test_a_chat_without_an_answer_teaches_nothing() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert problems("chat", messages=messages) == [" messages: has no assistant message, so nothing to learn."]
    assert problems("chat", messages=[]) == [" messages: expected a list of messages, received list: '[]'."]
    assert problems("chat", conversations="hi") == [" conversations: expected a list of messages, received str: 'hi'."]
    assert problems("chat", mesages=[]) == [" messages: is missing. Did you mean 'mesages'? Map it with data.columns."]


# which rows belong together


def test_a_group_is_the_first_question_or_the_document() -> None:
    def chat(*contents: str) -> Sample:
        roles = ("system", "user", "assistant", "user", "assistant")
        return sample("chat", messages=[{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])

    assert chat("s", "What  is\n it?", "a", "b", "c").group == chat("t", " What is it?", "other").group == "What is it?"
    assert chat("s", "q", "a").group != chat("s", "r", "a").group
    assert sample("text", text="a \n b").group == "a b"


def test_content_is_equal_for_exact_duplicates_only() -> None:
    def of(shown: tuple[str, ...] = (), **values: Any) -> tuple[object, ...]:
        found = to_sample(row(**values), "prompt_completion", {}, shown)
        assert isinstance(found, Sample)
        return found.content

    assert of(prompt="p", completion="c") == of(prompt="p", completion="c", id=5, system=None)
    assert of(prompt="p", completion="c") != of(prompt="p", completion="c ")
    assert of(prompt="p", completion="c") != of(prompt="p", completion="c", system="s")
    assert of(prompt="p c", completion="c") != of(prompt="p", completion="c c")
    assert sample("text", text="a").content != sample("text", text="a ").content


def test_columns_that_the_template_shows_are_part_of_the_content() -> None:
    """Two questions that are answered yes are no duplicates when each is about its own context."""
    values = {"prompt": "Is it so?", "completion": "yes"}
    both = [
        to_sample(row(**values, context=c, id=i), "prompt_completion", {}, ("context",)) for i, c in enumerate("abb")
    ]
    contents = [s.content for s in both if isinstance(s, Sample)]
    assert contents[0] != contents[1]
    assert contents[1] == contents[2]
