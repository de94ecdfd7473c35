"""Chat templates of all manners: places of answers that are right or refused, tools, thoughts, weights, system text."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_masks import TEMPLATES, conversation, said, sample, tokenizer
from tiny_tokenizers import FAMILIES, byte_tokenizer
from written import encode_all

from ftune.data.read import Row, read_source
from ftune.data.render import Rendered, Renderer, System, TrainOn
from ftune.data.shape import Sample, to_sample
from ftune.data.tally import Report
from ftune.errors import DataError
from ftune.load import load_recipe
from ftune.prepare import prepare
from ftune.recipe import Source
from ftune.target import open_target

REAL = Path(__file__).parents[3] / "shared" / "data"

LOOP = "{% for message in messages %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
USER = "{% if message.role != 'assistant' %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"


def with_answers(answer: str, *, before: str = "", ask: str = ASK) -> str:
    """A ChatML whose answers are written by the code `answer`, which may use `words`."""
    head = "{% else %}{% set words = message.content %}<|im_start|>assistant\n"
    return f"{before}{LOOP}{USER}{head}{answer}{{% endif %}}{{% endfor %}}{ask}"


def renderer(template: str, system: System = "template") -> Renderer:
    return Renderer(byte_tokenizer(), template, system=system)


def spelled(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


def encoded(rows: list[Sample], own: Renderer, train_on: TrainOn = "completion") -> tuple[list[Any], Report]:
    return encode_all(rows, own, train_on=train_on, max_length=9999, overlong=None, tick=lambda done: None)


# templates that mislead


RIGHT = {
    "trims": ("{{ words | trim }}<|im_end|>\n", "yes<|im_end|>"),
    "trims one side": ("{{ words.lstrip() }}<|im_end|>\n", "yes <|im_end|>"),
    "text after a turn": ("{{ words }}<|im_end|>\nyes yes<|eot_id|>\n", " yes <|im_end|>"),
    "the answer before itself": ("yes: {{ words }}<|im_end|>\n", "yes:  yes <|im_end|>"),
    "a special token before": ("<|eot_id|>{{ words }}<|im_end|>\n", "<|eot_id|> yes <|im_end|>"),
    "two ends": ("{{ words }}<|im_end|></s>\n", " yes <|im_end|>"),
    "a footer within": ("{{ words }}\n-- yes<|im_end|>\n", " yes \n-- yes<|im_end|>"),
    "an end on its own line": ("{{ words }}\n<|im_end|>\n", " yes \n<|im_end|>"),
    "no end": ("{{ words }}\n", " yes "),
    "no end, but trims": ("{{ words | trim }}\n\n", "yes"),
    "quotes": ("{{ words | tojson }}<|im_end|>\n", '" yes "<|im_end|>'),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_template_may_put_anything_around_an_answer(name: str) -> None:
    answer, expected = RIGHT[name]
    own = renderer(with_answers(answer, before="yes <|im_end|>\n"))
    row = said("yes", " yes ", " yes <b>", " yes ")
    rendered = own.render(row, "completion")
    assert spelled(rendered) == [expected, expected]
    assert rendered.ends == ("no end" not in name)
    assert rendered.text[: rendered.spans[-1][0]] == own.prompt(row)


REFUSED = {
    "upper case": (with_answers("{{ words | upper }}<|im_end|>\n"), "alters the assistant's words"),
    "title case": (with_answers("{{ words | title }}<|im_end|>\n"), "alters the assistant's words"),
    "escapes": (with_answers("{{ words | tojson }}<|im_end|>\n"), "alters the assistant's words"),
    "escapes for a page": (with_answers("{{ words | escape }}<|im_end|>\n"), "alters the assistant's words"),
    "cuts": (with_answers("{{ words[:3] }}<|im_end|>\n"), "alters the assistant's words"),
    "cuts long ones": (with_answers("{{ words[:17] }}<|im_end|>\n"), "alters the assistant's words"),
    "other white space": (with_answers("{{ words.replace('\t', ' ') }}<|im_end|>\n"), "alters the assistant's words"),
    "drops a word": (with_answers("{{ words.replace('no', '') }}<|im_end|>\n"), "alters the assistant's words"),
    "joins lines": (with_answers("{{ words.split() | join(' ') }}<|im_end|>\n"), "alters the assistant's words"),
    "forgets all but the last two": (
        "{% for message in messages[-2:] %}{{ message.role }}: {{ message.content }}<|im_end|>\n{% endfor %}{% if "
        "add_generation_prompt %}assistant: {% endif %}",
        "asks for an answer with",
    ),
    "numbers that depend on the end": (with_answers("{{ words }}{{ loop.revindex }}<|im_end|>"), "asks for an answer"),
    "says it twice": (with_answers("{{ words }}<|im_end|>\n{{ words }}<|im_end|>\n"), "writes an answer 2 times"),
    "reverses turns": (
        "{% for message in messages | reverse %}{{ message.role }}: {{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "asks for an answer with 'assistant: ' but writes one otherwise",
    ),
    "counts messages": (with_answers("{{ words }}<|im_end|>", before="{{ messages | length }}"), "asks for an answer"),
    "asks for thoughts": (
        with_answers("{{ words }}<|im_end|>\n", ask=ASK.replace("assistant\n", "assistant\n<think>\n")),
        r"asks for an answer with '<\|im_start\|>assistant\\n<think>\\n' but",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_hides_where_answers_are_is_refused_with_the_row(name: str) -> None:
    template, reason = REFUSED[name]
    row = said("yes\nno", "yes 'and'\n\"no\" <b>\t", "yes", "no\nyes 'and' <b>")
    with pytest.raises(ValueError, match=reason):
        renderer(template).parts(row, "completion")
    with pytest.raises(DataError, match=rf"^chat\.jsonl:1: the chat template (.|\n)*{reason}"):
        encoded([row], renderer(template))


def test_an_answer_that_a_change_does_not_touch_is_learned() -> None:
    """What counts is the text of this row: without anything to escape, an escaped answer is the answer."""
    own = renderer(with_answers("{{ words | escape }}<|im_end|>\n"))
    assert spelled(own.render(said("<q>", "a"), "completion")) == ["a<|im_end|>"]
    with pytest.raises(ValueError, match="alters"):
        own.render(said("q", "<a>"), "completion")


def test_what_a_template_adds_to_answers_is_told() -> None:
    own = renderer(with_answers("Well: {{ words }} (end)<|im_end|>\n"))
    _, report = encoded([said("q", "a"), said("q", "b", "r", "c")], own)
    assert report.notes == [
        "2 rows: the chat template writes 'Well: ' and ' (end)' around the words of an answer, which is learned too."
    ]
    for name in ("chatml", "llama3", "mistral", "zephyr", "plain", "hostile"):
        _, report = encoded([conversation(name)], Renderer(tokenizer("plain", name), None))
        assert report.notes == []


def test_special_tokens_in_the_words_of_a_row_are_told() -> None:
    _, report = encoded([said("q", "a<|im_end|>b"), said("q", "a")], renderer(with_answers("{{ words }}<|im_end|>\n")))
    assert report.notes == [
        "1 rows: words of a message spell a special token of the tokenizer, and are read as that token."
    ]


def test_what_follows_the_last_answer_does_not_change_it() -> None:
    """A template that forgets thoughts once another question follows is asked without that question, as in use."""
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    answer = "<think>\nhm\n</think>\n\nyes"
    for train_on in ("completion", "last"):
        assert spelled(own.render(said("q", answer, "and then?"), train_on)) == [f"{answer}<|im_end|>"]


# templates that mark answers themselves


def marked(block: str, *, ask: str = ASK) -> str:
    return f"{LOOP}{USER}{{% else %}}{block}{{% endif %}}{{% endfor %}}{ask}"


MARKED = {
    "words": "<|im_start|>assistant\n{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>\n",
    "words and end": "<|im_start|>assistant\n{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n",
    "all": "{% generation %}<|im_start|>assistant\n{{ message.content }}<|im_end|>\n{% endgeneration %}",
    "with white space": "<|im_start|>assistant\n{%- generation -%}\n {{- '\n' + message.content -}}\n"
    "{%- endgeneration -%}\n<|im_end|>{{ '\n' }}",
    "in a macro": "{% macro say(m) %}<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% endmacro %}{{ say(message) }}\n",
    "twice": "<|im_start|>assistant\n{% generation %}{% endgeneration %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n",
    "something else": "{% generation %}<|im_start|>{% endgeneration %}assistant\n{{ message.content }}<|im_end|>\n",
}


@pytest.mark.parametrize("name", MARKED)
def test_marked_answers_are_learned_with_their_end(name: str) -> None:
    own = renderer(marked(MARKED[name]))
    row = said("yes", "yes", "no", "no 🙂\n\nyes")
    rendered = own.render(row, "completion")
    assert spelled(rendered) == ["yes<|im_end|>", "no 🙂\n\nyes<|im_end|>"]
    assert rendered.ends
    assert rendered.text[: rendered.spans[-1][0]] == own.prompt(row)
    assert spelled(own.render(row, "last")) == ["no 🙂\n\nyes<|im_end|>"]


FORGETS = marked(
    "<|im_start|>assistant\n{% generation %}"
    "{{ message.content if loop.last else message.content.split('</think>')[-1] }}<|im_end|>{% endgeneration %}\n"
)


def test_marks_say_what_is_learned_of_turns_that_change() -> None:
    """A row that the template does not change stays one example."""
    own = renderer(FORGETS)
    row = said("q", "yes", "r", "<think>so</think>no")
    assert spelled(own.render(row, "completion")) == ["yes<|im_end|>", "<think>so</think>no<|im_end|>"]
    thoughtful = said("q", "<think>hm</think>yes", "r", "no")
    parts = own.parts(thoughtful, "completion")  # a mark without the words it stands for is not believed
    assert [spelled(part.rendered) for part in parts] == [["<think>hm</think>yes<|im_end|>"], ["no<|im_end|>"]]
    assert spelled(own.render(thoughtful, "last")) == ["no<|im_end|>"]


def test_marks_are_not_believed_over_the_prompt() -> None:
    own = renderer(marked(MARKED["words and end"], ask="{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"))
    with pytest.raises(ValueError, match=r"asks for an answer with '<\|im_start\|>model\\n' but writes one otherwise"):
        own.render(said("q", "a"), "last")


def test_letters_that_mark_may_stand_in_the_words() -> None:
    own = renderer(marked(MARKED["words and end"]))
    assert spelled(own.render(said("\U000f0000", "\U000f0001 \U000f0000"), "last")) == [
        "\U000f0001 \U000f0000<|im_end|>"
    ]


# templates that rewrite earlier turns


NO_THOUGHTS = "<think>\n\n</think>\n\n"
REWRITES = {
    "another end for the last turn": (
        with_answers("{{ words }}{{ '</s>' if loop.last else '<|im_end|>' }}\n"), ["one</s>", "two</s>", "three</s>"],
        "one<|im_end|>",
    ),
    "thoughts that earlier turns lose": (
        TEMPLATES["qwen_thinking"], [f"{NO_THOUGHTS}{word}<|im_end|>" for word in ("one", "two", "three")],
        "assistant\none<|im_end|>",
    ),
    "the same with marks": (
        marked("<|im_start|>assistant\n{% generation %}{{ '<think>' if loop.last }}{{ message.content }}<|im_end|>"
               "{% endgeneration %}\n"),
        [f"<think>{word}<|im_end|>" for word in ("one", "two", "three")], "assistant\none<|im_end|>",
    ),
    "system text with the last question": (
        TEMPLATES["mistral"], [" one</s>", " two</s>", " three</s>"], "[INST] first?[/INST] one</s>",
    ),
}  # fmt: skip
"""Templates whose earlier turns change: the answers as they are in use, and how the whole has the first."""


@pytest.mark.parametrize("name", REWRITES)
def test_where_earlier_turns_are_rewritten_each_answer_is_an_example_as_in_use(name: str) -> None:
    template, answers, first = REWRITES[name]
    own = renderer(template)
    row = said("first?", "one", "second?", "two", "third?", "three", system="Be brief." if "system" in name else None)
    parts = own.parts(row, "completion")
    assert [spelled(part.rendered) for part in parts] == [[answer] for answer in answers]
    for part in parts:
        asked = replace(row, turns=part.turns)
        ((start, end),) = part.rendered.spans
        assert part.rendered.text[:start] == own.prompt(asked)
        assert end == len(part.rendered.text)
        assert part.rendered.text == own.render(asked, "last").text
    assert first in own.render(row, "last").text
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        own.render(row, "completion")
    single = replace(row, turns=parts[0].turns)
    assert own.parts(single, "completion")[0].rendered == own.render(single, "completion")  # as it ever was


def test_only_rows_that_are_rewritten_become_several_and_the_report_reconciles() -> None:
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    single, several, rest = said("q", "yes"), said("q", "yes", "r", "no"), weighted(0, 1, 0, 1, 0)
    examples, report = encoded([single, several, rest, several], own)
    assert (report.rows, report.kept, report.dropped, report.windows) == (4, 4, {}, 7)
    assert report.targets == sum(example.num_targets for example in examples)
    assert report.notes[-1].startswith(
        "3 rows became 6 examples because the chat template rewrites earlier turns: each of their answers is an "
    )
    learned = [own.tokenizer.decode(example.ids[example.is_target].tolist()) for example in examples]
    assert learned == [
        f"<think>\n\n</think>\n\n{word}<|im_end|>" for word in ("yes", "yes", "no", "a1", "a3", "yes", "no")
    ]
    nothing, report = encoded([weighted(0, 0), single], own)
    assert (len(nothing), report.dropped) == (1, {"no_targets": 1})
    for train_on in ("last", "all"):
        whole, report = encoded([several], own, train_on)  # type: ignore[arg-type]
        assert (len(whole), [note for note in report.notes if "became" in note]) == (1, [])


def test_what_is_to_be_hidden_in_a_whole_that_is_rewritten_cannot_be_told() -> None:
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    with pytest.raises(ValueError, match="rewrites earlier turns, so where each stands cannot be told. .* completion"):
        own.parts(weighted(0, 0, 1), "all")


@pytest.mark.parametrize("overlong", ["error", "drop", "truncate", "truncate_prompt"])
def test_policies_of_long_rows_hold_for_each_answer(overlong: Any) -> None:
    """The first answer fits, the second does not with what stands before it."""
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    rows = [said("q", "yes", "r" * 200, "no"), said("q", "yes")]
    settings: dict[str, Any] = {"train_on": "completion", "max_length": 120, "tick": lambda done: None}
    if overlong == "error":
        with pytest.raises(
            DataError, match=r"^chat\.jsonl:1: up to its answer 2, has \d+ tokens, more than max_length 120"
        ):
            encode_all(rows, own, overlong=overlong, **settings)
        return
    examples, report = encode_all(rows, own, overlong=overlong, **settings)
    kept = {"drop": (1, 0, 1), "truncate": (2, 1, 2), "truncate_prompt": (2, 1, 3)}
    assert (report.kept, report.truncated, len(examples)) == kept[overlong]
    assert report.dropped == ({"overlong": 1} if overlong == "drop" else {})
    assert max(example.num_tokens for example in examples) <= 120
    if overlong == "truncate":  # of the second answer nothing is left, so it is no example
        assert "1 rows became 1 examples because" in report.notes[-1]


# tools

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {"x": 1}}}]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Malmö", "n": 1}'},
}
CALLING = [
    {"role": "user", "content": "Is it raining?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"rain": false}'},
    {"role": "assistant", "content": "No."},
]
CALLS = {
    "llama3": '{"name": "weather", "parameters": {"city": "Malmö", "n": 1}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Malmö", "n": 1}, "id": "call00001"}]</s>',
    "qwen_thinking": '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Malmö", "n": 1}}'
    "\n</tool_call><|im_end|>",
}
SAYS = {"llama3": "No.<|eot_id|>", "mistral": " No.</s>", "qwen_thinking": "<think>\n\n</think>\n\nNo.<|im_end|>"}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("tools", [None, TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]]])
def test_tool_calls_are_learned_in_the_form_of_the_template(name: str, tools: Any) -> None:
    own = Renderer(tokenizer("plain", name), None)
    calling, answering = sample(*CALLING[:2], tools=tools), sample(*CALLING, tools=tools)
    call, answer = own.render(calling, "last"), own.render(answering, "last")
    assert (spelled(call), spelled(answer)) == ([CALLS[name]], [SAYS[name]])
    assert (call.ends, answer.ends, call.notes) == (True, True, ())
    assert any("'<think>" in note for note in answer.notes) == (name == "qwen_thinking")  # learned, and told
    for row, rendered in ((calling, call), (answering, answer)):
        assert rendered.text[: rendered.spans[0][0]] == own.prompt(row)
        assert ("Of a city." in rendered.text) == (tools is not None)
    assert "rain" in own.prompt(answering).rpartition("weather")[2]
    assert own.answer(calling) == CALLS[name].replace("<|im_end|>", "").replace("<|eot_id|>", "").replace(
        "[TOOL_CALLS]", ""
    ).replace("</s>", "")
    if name == "qwen_thinking":  # of this one, only the last turn is as it is in use
        parts = own.parts(answering, "completion")
        assert [spelled(part.rendered) for part in parts] == [[CALLS[name]], [SAYS[name]]]
        assert parts[0].rendered.text == call.text
    else:
        assert spelled(own.render(answering, "completion")) == [CALLS[name], SAYS[name]]


def test_words_and_several_calls_of_one_turn() -> None:
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    other = {"function": {"name": "time", "arguments": {}}}
    row = sample(CALLING[0], {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, other]})
    assert spelled(own.render(row, "last")) == [
        "<think>\n\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Malmö", "n": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>'
    ]


EOM = (
    f"{LOOP}{USER}{{% else %}}<|im_start|>assistant\n{{% if message.tool_calls %}}<|eot_id|>"
    "{{ message.tool_calls[0].function.name }}END{% else %}{{ message.content }}<|im_end|>{% endif %}\n"
    f"{{% endif %}}{{% endfor %}}{ASK}"
)


@pytest.mark.parametrize(
    ("end", "expected", "ends"),
    [
        ("</s>", "<|eot_id|>weather</s>", True),  # an end of its own, as Llama 3.1 has for some calls
        ("<|eot_id|><|im_end|>", "<|eot_id|>weather<|eot_id|><|im_end|>", True),
        ("<|eot_id|> ({})<|im_end|>", "<|eot_id|>weather<|eot_id|> ({})<|im_end|>", True),
        ("", "<|eot_id|>weather", False),
    ],
)
def test_where_a_call_ends(end: str, expected: str, ends: bool) -> None:
    own = renderer(EOM.replace("END", end))
    rendered = own.render(sample(*CALLING[:2]), "last")
    assert (spelled(rendered), rendered.ends) == ([expected], ends)
    stops = {"</s>", "<|im_end|>"}
    assert set(own.stop_ids) == set(own.tokenizer.convert_tokens_to_ids(sorted(stops)))


def test_arguments_that_spell_an_end_do_not_end_a_call() -> None:
    own = Renderer(tokenizer("plain", "llama3"), None)
    call = {"function": {"name": "say", "arguments": {"words": "stop<|eot_id|>"}}}
    rendered = own.render(sample(CALLING[0], {"role": "assistant", "content": "", "tool_calls": [call]}), "last")
    assert spelled(rendered) == ['{"name": "say", "parameters": {"words": "stop<|eot_id|>"}}<|eot_id|>']


def test_the_end_of_a_call_that_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="the end of a tool call cannot be told"):
        renderer(EOM.replace("END", "<|eot_id|> {}")).render(sample(*CALLING[:2]), "last")


def test_a_template_without_a_form_for_calls_refuses_them() -> None:
    for own in (Renderer(tokenizer("plain", "chatml"), None), Renderer(byte_tokenizer(), None)):
        with pytest.raises(ValueError, match=r"calls tools, and (the chat template has no|there is no chat template)"):
            own.render(sample(*CALLING[:2]), "completion")
    partly = with_answers("{{ words }}{{ message.tool_calls[0].function.name if message.tool_calls }}<|im_end|>\n")
    two = {**CALLING[1], "tool_calls": [CALL, {"function": {"name": "time", "arguments": {}}}]}
    with pytest.raises(ValueError, match="leaves out a tool call"):
        renderer(partly).render(sample(CALLING[0], two), "completion")


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Is it raining?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Malmö", "n": 1}}'},
        {"from": "observation", "value": '{"rain": false}'},
        {"from": "gpt", "value": "No."},
    ],
    "tools": '[{"name": "weather", "description": "Of a city.", "parameters": {}}]',
}


def test_calls_of_sharegpt_take_the_form_of_the_template_or_stay_as_they_are() -> None:
    row = to_sample(Row("a.jsonl", 1, SHAREGPT), "chat", {})
    assert isinstance(row, Sample)
    own = Renderer(tokenizer("plain", "llama3"), None)
    assert spelled(own.render(row, "completion")) == [CALLS["llama3"], SAYS["llama3"]]
    assert own.render(row, "completion").text.count('"name": "weather"') == 2
    mistral = Renderer(tokenizer("plain", "mistral"), None).render(row, "completion")
    assert spelled(mistral) == [CALLS["mistral"], SAYS["mistral"]]
    assert '"call_id": "call00001"' in mistral.text
    rendered = Renderer(tokenizer("plain", "chatml"), None).render(row, "completion")
    assert spelled(rendered) == [SHAREGPT["conversations"][1]["value"] + "<|im_end|>", "No.<|im_end|>"]
    assert rendered.notes == ("tools are described, which the chat template does not show to the model",)
    _, report = encoded([row], Renderer(tokenizer("plain", "chatml"), None))
    assert report.notes == ["1 rows: tools are described, which the chat template does not show to the model."]


def test_tools_without_a_chat_template() -> None:
    row = sample({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, tools=TOOLS)
    assert Renderer(byte_tokenizer(), None).render(row, "last").notes == (
        "tools are described, which no template shows to the model",
    )


def test_a_tokenizer_with_a_template_for_tools() -> None:
    own = byte_tokenizer()
    own.chat_template = {"default": TEMPLATES["chatml"], "tool_use": TEMPLATES["llama3"]}
    row, plain = sample(*CALLING[:2], tools=TOOLS), said("q", "a")
    assert spelled(Renderer(own, None).render(row, "last")) == [CALLS["llama3"]]
    assert spelled(Renderer(own, None).render(plain, "last")) == ["a<|im_end|>"]
    own.chat_template = {"rag": TEMPLATES["chatml"]}
    with pytest.raises(ValueError, match="multiple chat templates"):
        Renderer(own, None).render(plain, "last")


@pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")
@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "plain", "hostile", "qwen_thinking"])
def test_every_row_of_a_real_set_with_tools(name: str) -> None:
    own = Renderer(tokenizer("adds_bos", name), None)
    path = Source(path=str(REAL / "glaive_toolcall" / "*.json"))
    rows = [to_sample(row, "chat", {}) for row in read_source(path, REAL) if isinstance(row, Row)]
    places = rewritten = 0
    for row in rows:
        assert isinstance(row, Sample)
        parts = own.parts(row, "completion")
        rewritten += len(parts) > 1
        places += sum(len(part.rendered.spans) for part in parts)
        rendered = parts[-1].rendered
        assert rendered.text[: rendered.spans[-1][0]] == own.prompt(row)
    assert (len(rows), places, rewritten) == (300, 957, 261 if name == "qwen_thinking" else 0)


PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SHOWN = [text for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) if '"messages"' in text]


def test_the_conversations_of_the_page() -> None:
    """Rows of chats in docs/data.md: a plain one, one with tools, and one with weights."""
    rows = [to_sample(Row("a.jsonl", 1, json.loads(text)), "chat", {}) for text in SHOWN]
    own = Renderer(tokenizer("plain", "llama3"), None)
    assert [spelled(own.render(row, "completion")) for row in rows if isinstance(row, Sample)] == [
        ["Yes, until six.<|eot_id|>"],
        ['{"name": "weather", "parameters": {"city": "Lund"}}<|eot_id|>', "No.<|eot_id|>"],
        ["Yes, until six.<|eot_id|>"],
    ]


# thoughts apart from words


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_apart_are_shown_where_the_template_has_words_for_them(key: str) -> None:
    row = sample({"role": "user", "content": "q"}, {"role": "assistant", "content": "yes", key: "hm\nso"})
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    rendered = own.render(row, "completion")
    assert spelled(rendered) == ["<think>\nhm\nso\n</think>\n\nyes<|im_end|>"]
    assert (rendered.notes, own.answer(row)) == ((), "<think>\nhm\nso\n</think>\n\nyes")
    chatml = Renderer(tokenizer("plain", "chatml"), None)
    rendered = chatml.render(row, "completion")
    assert spelled(rendered) == ["yes<|im_end|>"]
    assert rendered.notes == (
        "thoughts are apart from answers, where the chat template does not show them to the model",
    )
    assert chatml.answer(row) == "yes"


# weights


def weighted(*weights: int | None, user: int | None = None) -> Sample:
    messages: list[dict[str, Any]] = []
    for number, weight in enumerate(weights):
        messages.append({"role": "user", "content": f"q{number}", "weight": user})
        messages.append({"role": "assistant", "content": f"a{number}", "weight": weight})
    return sample(*messages)


CHATML = TEMPLATES["chatml"]


@pytest.mark.parametrize(
    ("weights", "completion", "last"),
    [
        ((None, None), ["a0", "a1"], ["a1"]),
        ((1, 1), ["a0", "a1"], ["a1"]),
        ((0, 1), ["a1"], ["a1"]),
        ((1, 0), ["a0"], []),
        ((0, 1, 0), ["a1"], []),
        ((0, 0), [], []),
        ((0,), [], []),
    ],
)
def test_a_turn_of_weight_0_is_read_and_not_learned(
    weights: tuple[int | None, ...], completion: list[str], last: list[str]
) -> None:
    own = renderer(CHATML)
    for train_on, expected in (("completion", completion), ("last", last)):
        rendered = own.render(weighted(*weights), train_on)  # type: ignore[arg-type]
        assert spelled(rendered) == [f"{answer}<|im_end|>" for answer in expected]
        assert rendered.ends
        assert rendered.text.count("<|im_start|>assistant") == (int(expected[-1][1]) + 1 if expected else len(weights))


def test_weight_0_under_all_hides_the_answer_alone() -> None:
    own = renderer(CHATML)
    rendered = own.render(weighted(0, 1), "all")
    head = "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(rendered)[0] == head
    assert rendered.text[rendered.spans[0][1] : rendered.spans[1][0]] == "a0<|im_end|>"
    assert spelled(rendered)[1] == "\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
    cut = own.render(weighted(1, 0), "all")
    assert spelled(cut) == [cut.text]
    assert cut.text.endswith("q1<|im_end|>\n<|im_start|>assistant\n")
    assert cut.ends
    assert own.render(weighted(0, 0, user=0), "all").spans == ()
    with pytest.raises(ValueError, match="has weight 0 on a user message, which data.train_on all does not obey"):
        own.render(weighted(1, 1, user=0), "all")
    assert spelled(own.render(weighted(1, user=0), "completion")) == ["a0<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("train_on", ["completion", "last"])
def test_a_row_whose_every_weight_is_0_is_counted_and_left_out(template: str | None, train_on: TrainOn) -> None:
    own = Renderer(byte_tokenizer(bos=True), template)
    for rows in ([weighted(0), weighted(1)], [weighted(1), weighted(0)]):
        examples, report = encoded(rows, own, train_on)
        assert (report.rows, report.kept, report.dropped, len(examples)) == (2, 1, {"no_targets": 1}, 1)
        assert report.notes[0] == "dropped (no_targets): chat.jsonl:1"
    long = sample({"role": "user", "content": "q" * 99}, {"role": "assistant", "content": "a", "weight": 0})
    for overlong in ("error", "truncate_prompt", "truncate"):
        _, report = encode_all(
            [long, weighted(1)], own, train_on=train_on, max_length=60, overlong=overlong, tick=lambda done: None
        )
        assert (report.dropped, report.kept) == ({"no_targets": 1}, 1)


def test_a_thoughtful_turn_may_be_masked_to_learn_an_earlier_one() -> None:
    own = Renderer(tokenizer("plain", "qwen_thinking"), None)
    thought = "<think>\nhm\n</think>\n\nyes"
    row = sample(
        {"role": "user", "content": "q"}, {"role": "assistant", "content": thought},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": thought, "weight": 0},
    )  # fmt: skip
    assert spelled(own.render(row, "completion")) == [f"{thought}<|im_end|>"]


# system text


def test_system_text_is_merged_into_the_first_user_turn() -> None:
    own = renderer(TEMPLATES["gemma"], "merge_into_user")
    rendered = own.render(said("q", "a", "r", "b", system="  Be {{ brief }}. "), "completion")
    assert rendered.text.startswith(
        "<s><start_of_turn>user\nBe {{ brief }}. \n\nq<end_of_turn>\n<start_of_turn>model\n"
    )
    assert spelled(rendered) == ["a<end_of_turn>", "b<end_of_turn>"]
    assert own.prompt(said("q", "a", system="s")).startswith("<s><start_of_turn>user\ns\n\nq<end_of_turn>")
    plain = said("q", "a")
    assert own.render(plain, "last") == renderer(TEMPLATES["gemma"]).render(plain, "last")
    assert own.render(said("q", "a", system=" \n"), "last") == own.render(plain, "last")
    several = sample(
        {"role": "system", "content": "s"}, {"role": "system", "content": "t"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"}, {"role": "system", "content": "u"}, {"role": "user", "content": "r"},
    )  # fmt: skip
    assert "user\ns\n\nt\n\nq<end_of_turn>" in own.prompt(several)
    assert own.prompt(several).endswith("user\nu\n\nr<end_of_turn>\n<start_of_turn>model\n")
    homeless = sample({"role": "system", "content": "s"}, {"role": "assistant", "content": "a"})
    with pytest.raises(ValueError, match="has a system message without a user message after it"):
        own.render(homeless, "last")


def test_every_row_that_the_template_refuses_is_named_with_what_helps() -> None:
    """P45: of 50 rows, one has a system turn and one two questions in a row."""
    rows = []
    for number in range(1, 51):
        words = [("user", "q"), ("assistant", "a")]
        words = [("system", "s"), *words] if number == 7 else [("user", "p"), *words] if number == 33 else words
        messages = [{"role": role, "content": content} for role, content in words]
        row = to_sample(Row("chat.jsonl", number, {"messages": messages}), "chat", {})
        assert isinstance(row, Sample)
        rows.append(row)
    with pytest.raises(DataError) as caught:
        encoded(rows, renderer(TEMPLATES["gemma"]))
    assert str(caught.value).splitlines() == [
        "chat.jsonl:7: the chat template refuses the roles system, user, assistant: System role not supported. "
        "Set data.system to merge_into_user.",
        "chat.jsonl:33: the chat template refuses the roles user, user, assistant: Conversation roles must alternate "
        "user/assistant/user/assistant/.",
    ]
    with pytest.raises(DataError) as caught:
        encoded(rows, renderer(TEMPLATES["gemma"], "merge_into_user"))
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == ["chat.jsonl:33"]
    examples, _ = encoded(
        [row for row in rows if row.row.number != 33], renderer(TEMPLATES["gemma"], "merge_into_user")
    )
    assert len(examples) == 49


def test_training_and_generation_merge_alike(tmp_path: Path) -> None:
    rows = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": rows}) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "model: builtin:tiny-llama\n"
        f"data: {{train: chat.jsonl, system: merge_into_user, template: {json.dumps(TEMPLATES['gemma'])}}}\n",
        encoding="utf-8",
    )
    prepared = prepare(load_recipe(tmp_path / "recipe.yaml"), lambda *_: None)
    target = open_target(tmp_path / "recipe.yaml")
    row = sample(*rows)
    (example,) = prepared.dataset.train.examples
    ids = target.renderer.prompt_ids(target.renderer.prompt(row))
    assert example.ids[: len(ids)].tolist() == ids
    assert "user\ns\n\nq<end_of_turn>" in target.renderer.prompt(row)
    with pytest.raises(DataError, match="System role not supported. Set data.system to merge_into_user"):
        prepare(load_recipe(tmp_path / "recipe.yaml", ["data.system=template"]), lambda *_: None)


def test_merging_has_no_effect_on_prompts_made_of_columns() -> None:
    with pytest.raises(DataError, match=r"^data\.system: merge_into_user has no effect with a template of prompts"):
        renderer("{{ prompt }}", "merge_into_user")


# bytes


CELLS = [
    None,
    "",
    "None",
    "nan",
    "{x}",
    "{{ y }}",
    "{% if z %}",
    "%s %(a)d 100%",
    "🙂",
    "  led",
    "tab\t",
    "\u00a0",
    "\\n",
]


@pytest.mark.parametrize(("family", "cell"), list(itertools.product(["chatml", "zephyr", "plain"], CELLS[2:])))
def test_words_are_byte_for_byte_those_of_the_row(family: str, cell: str) -> None:
    own = Renderer(byte_tokenizer(template=FAMILIES[family].template), None)
    words = f"{cell} and {cell}"
    rendered = own.render(said(words, words, system=words), "completion")
    space = " " if family == "plain" else ""
    assert spelled(rendered) == [space + words + FAMILIES[family].terminator]
    assert rendered.text.count(words) == 3
    examples, _ = encoded([said(words, words, system=words)], own)
    assert own.tokenizer.decode(examples[0].ids.tolist()).startswith(rendered.text)


@pytest.mark.parametrize("cell", [None, "", float("nan")])
def test_an_empty_cell_is_no_word(cell: Any) -> None:
    row = Row("a.jsonl", 1, {"instruction": "do", "input": cell, "output": "done", "system": cell})
    found = to_sample(row, "instruction", {}, ("instruction", "input", "system"))
    assert isinstance(found, Sample)
    own = Renderer(byte_tokenizer(), "{{ system }}|{{ instruction }}|{{ input }}|\n")
    assert own.render(found, "completion").text == "|do||\ndone"
    assert Renderer(byte_tokenizer(), CHATML).render(found, "completion").text == (
        "<|im_start|>user\ndo<|im_end|>\n<|im_start|>assistant\ndone<|im_end|>"
    )
