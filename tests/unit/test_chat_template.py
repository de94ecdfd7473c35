"""Our sandbox shows a chat template what transformers shows it, but for the date, and nothing that changes."""

from __future__ import annotations

import datetime
import itertools
import json
import time
from typing import Any

import pytest
from golden_masks import TEMPLATES, conversation, said, sample, tokenizer
from tiny_tokenizers import FAMILIES, THINKING, byte_tokenizer

from ftune.data.bounded import render
from ftune.data.chat_template import ChatTemplate, message_of
from ftune.data.render import Renderer
from ftune.data.sandbox import TODAY, chat_environment, prompt_environment
from ftune.errors import DataError

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Ä <of> 'a' city", "parameters": {}}}]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Malmö", "n": None}},
}
TALKS: dict[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": "  q <b> 'x'\n"}],
    "an answer": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a 🙂\n\n"}],
    "system": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
    "turns": [{"role": ("user", "assistant")[i % 2], "content": f"<think>hm</think>{i}"} for i in range(5)],
    "a call": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
               {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "{}"}],
    "thoughts": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}],
}  # fmt: skip
CODE = {
    "namespaces": "{% set ns = namespace({'a': 1}, b=2) %}{% set ns.c = 3 %}{{ ns.a + ns.b + ns.c }}{{ ns }}",
    "dicts": "{{ dict(a=1) }}{{ dict([('b', 2)]).items() | list }}{{ dict.fromkeys(['c'], 1) }}",
    "json": "{{ {'b': 'ü<', 'a': [1.5, none, true]} | tojson(indent=2, sort_keys=true) }}"
    "{{ 'é' | tojson(ensure_ascii=true) }}",
    "loops": "{% for i in range(9) %}{% if i == 2 %}{% continue %}"
    "{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "blocks": "  {% if true %}\n  x\n  {% endif %}\n{% generation %}\n y\n{% endgeneration %}\n",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
    "what is missing": "{{ nothing }}{{ messages[0].nothing }}{{ tools is none }}{{ documents is none }}"
    "{{ tools is defined }}",
    "values": "{{ messages | tojson(sort_keys=true) }}{{ add_generation_prompt }}",
    "refusals": "{{ raise_exception('No ' ~ messages | length) }}",
    "secrets": "{{ messages.__class__ }}",
    "changes": "{{ messages.append(1) }}",
    "hidden names": "{% set ns = namespace(_a=1) %}",
    "hidden names later": "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "many": "{% for i in range(10 ** 9) %}x{% endfor %}",
}
"""Of these, transformers and we write the same, or both refuse."""
EVERY = {**{f"golden {name}": text for name, text in TEMPLATES.items()}, **CODE, "thinking": THINKING}
EVERY |= {name: family.template for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", EVERY)
def test_a_template_writes_what_it_writes_in_transformers(name: str) -> None:
    own = byte_tokenizer(template=EVERY[name])
    ours = ChatTemplate(own)
    compared = 0
    for talk, ask, tools in itertools.product(TALKS.values(), (False, True), (None, TOOLS)):
        try:
            theirs = own.apply_chat_template(talk, tools=tools, add_generation_prompt=ask, tokenize=False)
        except Exception as error:  # noqa: BLE001 -- of any kind
            with pytest.raises(ValueError, match="^the chat template refuses the roles") as caught:
                ours.text(_named_twice(talk), ask=ask, tools=tools)
            if "refus" in name or "golden" in name:
                assert str(error) in str(caught.value)
            continue
        theirs = theirs.replace(datetime.datetime.now().strftime("%d %b %Y"), TODAY.strftime("%d %b %Y"))
        assert ours.text(_named_twice(talk), ask=ask, tools=tools) == theirs
        compared += 1
    assert compared > 3 or name in ("refusals", "secrets", "changes", "hidden names", "hidden names later", "many")


def _named_twice(talk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With thoughts under both names, as `message_of` and transformers give them."""
    return [{**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else m for m in talk]


def test_messages_of_turns() -> None:
    row = sample(
        {"role": "user", "content": "q", "name": "eva", "id": 7, "date": "today"},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [
            {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1.0}'}}, {"name": "g", "arguments": None}]},
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "a", "weight": 0},
    )  # fmt: skip
    assert [message_of(turn, calls=True) for turn in row.turns] == [
        {"role": "user", "content": "q", "name": "eva"},
        {
            "role": "assistant", "content": "", "reasoning_content": "hm", "thinking": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1.0}}},
                {"id": "call00002", "type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "a"},
    ]  # fmt: skip


def test_the_date_never_changes() -> None:
    """Else a run could not go on after midnight: its tokens would be others."""
    own = Renderer(tokenizer("plain", "llama3"), None)
    assert "Today Date: 26 Jul 2024\n" in own.prompt(said("q", "a"))
    assert own.prompt(said("q", "a")) in own.render(said("q", "a"), "completion").text
    clock = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}" + TEMPLATES["chatml"]
    assert (
        Renderer(byte_tokenizer(template=clock), None).prompt(said("q", "a")).startswith("2024-07-26 00:00:00.000000<")
    )


@pytest.mark.parametrize("code", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}"])
def test_a_template_has_no_dice(code: str) -> None:
    with pytest.raises((DataError, ValueError), match="random|lipsum"):
        Renderer(byte_tokenizer(), code + TEMPLATES["chatml"]).render(said("q", "a"), "last")
    with pytest.raises((DataError, ValueError), match="random|lipsum"):
        Renderer(byte_tokenizer(), code).render(said("q", "a"), "last")


def test_a_broken_template_of_a_tokenizer_is_a_fault_of_its_rows() -> None:
    own = Renderer(byte_tokenizer(template="{% for message in messages %}"), None)
    with pytest.raises(ValueError, match=r"^the tokenizer's chat template is no valid Jinja: .+ Set data\.template$"):
        own.render(said("q", "a"), "last")
    assert own.stop_ids == (own.tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("name", "tools", "calls", "thoughts"),
    [
        ("chatml", False, False, False),
        ("gemma", False, False, False),
        ("llama3", True, True, False),
        ("mistral", True, True, False),
        ("qwen_thinking", True, True, True),
        ("hostile", False, False, False),
    ],
)
def test_what_templates_have_words_for(name: str, tools: bool, calls: bool, thoughts: bool) -> None:
    template = ChatTemplate(tokenizer("plain", name))
    assert template.shows("tools", with_tools=True) is tools
    for with_tools in (True, False):
        assert template.shows("tool_calls", with_tools=with_tools) is calls
        assert template.shows("reasoning_content", with_tools=with_tools) is thoughts


def test_a_template_that_insists_on_a_system_turn_is_asked_with_one() -> None:
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ tools | tojson }}"
    assert ChatTemplate(byte_tokenizer(template=insists)).shows("tools", with_tools=True)


def test_samples_are_plain_values() -> None:
    """They are kept on disk as JSON, field by field, and compared and hashed."""
    from dataclasses import asdict

    row = sample(
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "thinking": "hm", "weight": 1.0},
        tools=TOOLS,
    )
    for turn in row.turns:
        assert type(turn)(**json.loads(json.dumps(asdict(turn)))) == turn
        assert {type(value) for value in asdict(turn).values()} == {str, int, bool}
    assert hash(row.content) == hash(row.content)
    others = [
        sample(*messages, tools=tools)
        for messages, tools in (
            (({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}), TOOLS),
            (({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}), None),
            (({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}), None),
            (({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}), None),
        )
    ]
    assert len({row.content, *(other.content for other in others)}) == 5
    assert conversation("chatml").content == conversation("chatml").content


TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
HIDDEN = "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}x{% endfor %}{% endfor %}"
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
    "a loop that shows nothing": HIDDEN,
    "a macro that calls itself twice": TWICE,
    "a list in a loop": "{% for a in range(99999) %}{% set b = range(99999) | list %}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_no_template_runs_for_ever(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftune.data.bounded.MOST_SECONDS", 0.3)
    began = time.monotonic()
    for environment in (chat_environment(), prompt_environment()):
        with pytest.raises(ValueError, match="was not done after 0 s"):
            render(environment.from_string(source), {})
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "source",
    ["{{ 'x' * 10 ** 10 }}", "{{ 10 ** 10 * 'x' }}", "{{ [0] * 10 ** 9 }}", "{{ 9 ** (10 ** 9) }}", "{{ 2 ** -9999 }}"],
)
def test_no_template_makes_more_than_it_needs(source: str) -> None:
    for environment in (chat_environment(), prompt_environment()):
        with pytest.raises(ValueError, match="more than a template needs"):
            render(environment.from_string(source), {})


def test_what_templates_do_is_within_the_bounds() -> None:
    source = "{% for a in [1, 2, 3] if a > 1 %}{{ a }}{{ '-' * a }}{{ loop.index }}{% endfor %}{{ 2 ** 10 }}{{ 3 * 4 }}"
    for environment in (chat_environment(), prompt_environment()):
        assert render(environment.from_string(source), {}) == "2--13---2102412"


def test_a_template_cannot_take_the_clock_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftune.data.bounded.MOST_SECONDS", 0.3)
    source = "{% set tick = dict %}{% set environment = 1 %}" + ENDLESS["loops in loops"]
    with pytest.raises(ValueError, match="was not done"):
        render(chat_environment().from_string(source), {"environment": None, "tick": dict})
