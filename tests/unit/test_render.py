"""One renderer for training and generation: spans by construction, words unaltered, templates in a sandbox."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tiny_tokenizers import FAMILIES, THINKING, TOKENIZERS, Family, byte_tokenizer

from ftune.data.read import Row
from ftune.data.render import Rendered, Renderer, TrainOn, template_columns
from ftune.data.shape import Sample, to_sample
from ftune.errors import DataError

QUESTIONS, ANSWERS = ("What is {{ it }}?", "  And then?"), ("It is %s 🙂.", "100% done")


def chat(*roles_and_words: tuple[str, str]) -> Sample:
    messages = [{"role": role, "content": words} for role, words in roles_and_words]
    sample = to_sample(Row("chat.jsonl", 1, {"messages": messages}), "chat", {})
    assert isinstance(sample, Sample), sample
    return sample


def pair(prompt: str, completion: str, template: str | None = None, **more: Any) -> Sample:
    row = Row("pairs.jsonl", 1, {"prompt": prompt, "completion": completion, **more})
    sample = to_sample(row, "prompt_completion", {}, template_columns(template))
    assert isinstance(sample, Sample), sample
    return sample


def three_turns(family: Family) -> Sample:
    system = [("system", "Be brief.")] if family.system else []
    turns = zip(("user", "assistant") * 2, itertools.chain(*zip(QUESTIONS, ANSWERS, strict=True)), strict=True)
    return chat(*system, *turns)


def spelled(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


# chat templates


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_the_answers_with_their_terminators(name: str) -> None:
    family = FAMILIES[name]
    renderer = Renderer(byte_tokenizer(template=family.template), None)
    sample = three_turns(family)
    space = " " if name in ("mistral", "plain") else ""  # these write it as part of the answer
    expected = [space + answer + family.terminator for answer in ANSWERS]
    every, last = renderer.render(sample, "completion"), renderer.render(sample, "last")
    assert spelled(every) == expected
    assert spelled(last) == expected[-1:]
    for rendered in (every, last):
        assert rendered.text.endswith(expected[-1])
        assert rendered.ends == bool(family.terminator)
        assert not rendered.special
    for words in (*QUESTIONS, *ANSWERS):
        assert words.strip() in every.text
    assert every.text.count("<s>") == family.writes_bos


@pytest.mark.parametrize("name", FAMILIES)
def test_all_is_the_whole_conversation(name: str) -> None:
    family = FAMILIES[name]
    renderer = Renderer(byte_tokenizer(template=family.template), None)
    rendered = renderer.render(three_turns(family), "all")
    assert spelled(rendered) == [rendered.text]
    assert rendered.text.strip().endswith(ANSWERS[-1] + family.terminator)
    assert rendered.ends == bool(family.terminator)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_what_training_saw_before_the_last_answer(name: str) -> None:
    family = FAMILIES[name]
    renderer = Renderer(byte_tokenizer(template=family.template), None)
    sample = three_turns(family)
    rendered = renderer.render(sample, "last")
    assert renderer.prompt(sample) == rendered.text[: rendered.spans[0][0]]
    assert renderer.prompt(Sample(sample.row, sample.turns[:-1])) == renderer.prompt(sample)


def test_what_follows_the_last_answer_is_not_rendered() -> None:
    renderer = Renderer(byte_tokenizer(template=FAMILIES["chatml"].template), None)
    sample = chat(("user", "q"), ("assistant", "a"), ("user", "no answer to this"))
    assert renderer.render(sample, "completion").text.endswith("assistant\na<|im_end|>")
    whole = renderer.render(sample, "all")
    assert whole.text.endswith("<|im_start|>user\nno answer to this<|im_end|>\n")
    assert whole.ends


def test_roles_of_tools_are_turns() -> None:
    renderer = Renderer(byte_tokenizer(template=FAMILIES["chatml"].template), None)
    sample = chat(("human", "q"), ("function_call", '{"f": 1}'), ("observation", "1"), ("gpt", "a"))
    assert spelled(renderer.render(sample, "completion")) == ['{"f": 1}<|im_end|>', "a<|im_end|>"]
    assert "<|im_start|>tool\n1<|im_end|>" in renderer.render(sample, "completion").text


def test_a_template_that_drops_earlier_thoughts() -> None:
    """Each answer is an example of its own, for it stands otherwise in the whole."""
    renderer = Renderer(byte_tokenizer(template=THINKING), None)
    thought = "<think>\nhm\n</think>\n\nyes"
    sample = chat(("user", "q"), ("assistant", thought), ("user", "r"), ("assistant", thought))
    assert [spelled(part.rendered) for part in renderer.parts(sample, "completion")] == [[f"{thought}<|im_end|>"]] * 2
    last = renderer.render(sample, "last")
    assert spelled(last) == [f"{thought}<|im_end|>"]
    assert last.text.count("<think>") == 1
    assert last.text.startswith(renderer.prompt(sample))
    assert renderer.render(sample, "all").text.count("<think>") == 1
    single = chat(("user", "q"), ("assistant", thought))
    assert spelled(renderer.render(single, "completion")) == [f"{thought}<|im_end|>"]


@pytest.mark.parametrize("change", ["| upper", "| replace('b', 'B')", "| tojson"])
def test_a_template_that_alters_answers_is_refused(change: str) -> None:
    template = FAMILIES["chatml"].template.replace("message['content']", f"(message['content'] {change})")
    renderer = Renderer(byte_tokenizer(template=template), None)
    with pytest.raises(ValueError, match="alters the assistant's words"):
        renderer.render(chat(("user", "q"), ("assistant", 'a "b"\n c')), "completion")


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        ("system user assistant", "System role not supported"),
        ("user user assistant", "Conversation roles must alternate"),
        ("user assistant assistant", "Conversation roles must alternate"),
    ],
)
def test_a_template_that_refuses_roles_is_quoted_with_them(roles: str, why: str) -> None:
    renderer = Renderer(byte_tokenizer(template=FAMILIES["gemma"].template), None)
    with pytest.raises(ValueError, match=f"^the chat template refuses the roles {roles.replace(' ', ', ')}: {why}"):
        renderer.render(chat(*((role, "words") for role in roles.split())), "completion")


def test_an_answer_to_nothing_is_refused() -> None:
    renderer = Renderer(byte_tokenizer(template=FAMILIES["chatml"].template), None)
    sample = chat(("assistant", "hello"), ("user", "q"), ("assistant", "a"))
    with pytest.raises(ValueError, match="^begins with an assistant message, so there is no prompt to answer$"):
        renderer.render(sample, "completion")
    assert spelled(renderer.render(sample, "last")) == ["a<|im_end|>"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [False, True])
def test_generation_stops_where_answers_end(name: str, system: bool) -> None:
    template = FAMILIES[name].template
    if system:
        template = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + template
    tokenizer = byte_tokenizer(template=template)
    terminators = {FAMILIES[name].terminator, "</s>"} - {""}
    if system and not FAMILIES[name].system:
        terminators = {"</s>"}  # nothing can be rendered, so only EOS is known
    assert Renderer(tokenizer, None).stop_ids == tuple(sorted(map(tokenizer.convert_tokens_to_ids, terminators)))


def test_stop_ids_without_a_template_and_with_eos_0() -> None:
    assert Renderer(byte_tokenizer(eos_first=True), None).stop_ids == (0,)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert Renderer(tokenizer, None).stop_ids == ()


# special tokens around


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_tokenizer_puts_around(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    bos = tokenizer.bos_token_id
    adds = name in ("adds_bos", "trims_offsets")
    assert Renderer(tokenizer, None).around == ((bos,) if adds else (), ())


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("template", [None, "Q: {{ prompt }} A: ", "<s>Q: {{ prompt }}", *FAMILIES])
def test_a_prompt_has_one_bos_at_most(tokens: str, template: str | None) -> None:
    family = FAMILIES.get(template or "")
    tokenizer = TOKENIZERS[tokens]()
    renderer = Renderer(tokenizer, family.template if family else template)
    ids = renderer.prompt_ids(renderer.prompt(pair("p", "c")))
    writes = family.writes_bos if family else bool(template) and template.startswith("<s>")
    expected = writes or (family is None and tokens in ("adds_bos", "trims_offsets"))
    assert ids.count(tokenizer.bos_token_id) == int(expected)
    assert (ids[0] == tokenizer.bos_token_id) == expected


# prompt templates and none


def test_without_a_template_the_text_is_as_it_is() -> None:
    renderer = Renderer(byte_tokenizer(), None)
    assert (renderer.mode, renderer.description) == ("plain", "text as it is")
    rendered = renderer.render(pair("  p {{x}} ", " %s c\n"), "completion")
    assert (rendered.text, spelled(rendered), rendered.special, rendered.ends) == (
        "  p {{x}}  %s c\n", [" %s c\n"], True, False,
    )  # fmt: skip
    assert spelled(renderer.render(pair("p", "c"), "all")) == ["pc"]
    assert renderer.prompt(pair("p", "c", system="s")) == "s\n\np"


@pytest.mark.parametrize("template", [None, "{{ messages_of_old }}{{ prompt }}"])
def test_several_turns_need_a_chat_template(template: str | None) -> None:
    renderer = Renderer(byte_tokenizer(), template)
    for sample in (three_turns(FAMILIES["chatml"]), chat(("user", "q"), ("assistant", "a"), ("user", "r"))):
        with pytest.raises(ValueError, match="several turns need a chat template"):
            renderer.render(sample, "completion")
    if template is None:
        assert renderer.render(chat(("user", "q "), ("assistant", "a")), "completion").text == "q a"


WORDS = [
    "{x} {{ y }} {% if z %}",
    "%s %(a)d 100%",
    "🙂 ünï 漢字 \u200b",
    "  leading, trailing \n",
    "<b>&amp;'\"",
    "\\n \\u0041",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("template", [None, "Q: {{ prompt }}\n", FAMILIES["chatml"].template])
def test_words_of_a_row_are_never_code(words: str, template: str | None) -> None:
    renderer = Renderer(byte_tokenizer(), template)
    rendered = renderer.render(pair(words, words), "completion")
    terminator = "<|im_end|>" if renderer.mode == "chat" else ""
    assert spelled(rendered) == [words + terminator]
    assert rendered.text.count(words) == 2


def test_a_prompt_template_sees_every_column_and_empty_cells_are_no_words() -> None:
    template = "{{ context }}|{{ input }}|{{ count }}|{{ hole }}|{{ prompt }}\n"
    renderer = Renderer(byte_tokenizer(), template)
    assert renderer.description == "prompt template of the recipe"
    sample = pair("p", "c", template, context=None, input="i", count=0, hole=float("nan"))
    assert renderer.render(sample, "completion").text == "|i|0||p\nc"


@pytest.mark.parametrize("name", ["self", "template", "values", "context", "environment", "args", "kwargs"])
def test_a_column_may_have_any_name(name: str) -> None:
    shown = "" if name == "self" else "{{ " + name + " }}"  # inside Jinja, `self` is the template
    row = Row("rows.jsonl", 1, {"prompt": "p", "completion": "c", name: "x"})
    sample = to_sample(row, "prompt_completion", {})
    assert isinstance(sample, Sample)
    prompt = Renderer(byte_tokenizer(), shown + ": {{ prompt }}").prompt(sample)
    assert prompt == (": p" if name == "self" else "x: p")


def test_only_code_makes_a_chat_template() -> None:
    words = "Answer the messages below.\n{# messages #}{{ prompt }}"
    tokenizer = byte_tokenizer(template=FAMILIES["chatml"].template)
    assert Renderer(tokenizer, words).mode == "prompt"
    assert Renderer(tokenizer, words).prompt(pair("p", "c")) == "Answer the messages below.\np"
    assert tokenizer.chat_template == FAMILIES["chatml"].template
    for template in ("{{ messages[0]['content'] }}", "{%- for m in messages -%}{{ m.content }}{% endfor %}"):
        assert Renderer(tokenizer, template).mode == "chat"
        assert tokenizer.chat_template == template
        assert template_columns(template) == ()


def test_a_chat_template_of_the_recipe_replaces_the_tokenizers() -> None:
    tokenizer = byte_tokenizer(template=FAMILIES["zephyr"].template)
    assert Renderer(tokenizer, None).description == "chat template of the tokenizer"
    renderer = Renderer(tokenizer, FAMILIES["chatml"].template)
    assert renderer.description == "chat template of the recipe"
    assert renderer.prompt(pair("p", "c")) == "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"


def test_tags_that_only_transformers_knows_are_no_fault() -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}"
        "{{ message['role'] + ': ' }}{% generation %}{{ message['content'] }}{% endgeneration %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    renderer = Renderer(byte_tokenizer(), template)
    assert spelled(renderer.render(chat(("user", "q"), ("assistant", "a")), "completion")) == ["a"]


def test_columns_of_a_template() -> None:
    assert template_columns("{{ a }}{% for x in b %}{{ x.y }}{% endfor %}{% set c = 1 %}{{ c }}{{ a }}") == ("a", "b")
    assert template_columns(None) == ()


# faults and attacks


@pytest.mark.parametrize(
    "template", ["{{ prompt", "{% if x %}", "{% for m in messages %}", "{{ messages[ }}", "{% no %}"]
)
def test_a_template_that_is_no_jinja(template: str) -> None:
    with pytest.raises(DataError, match=r"^data\.template: is no valid Jinja: .+ \(its line 1\)\.$"):
        Renderer(byte_tokenizer(), template)


FAULTS = {
    "{{ contxt }}": "'contxt' is undefined",
    "{{ prompt.x.y }}": "has no attribute 'x'",
    "{{ ''.__class__.__mro__ }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ ''|attr('__class__')|attr('__mro__') }}": "Undefined object' has no attribute '__mro__'",
    "{{ '{0.__class__}'.format(1) }}": "access to attribute '__class__' of 'int' object is unsafe",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "Range too big",
    "{{ 1 // 0 }}": "division",
    "{{ prompt + 1 }}": "can only concatenate str",
    "{{ prompt.index('absent') }}": "substring not found",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% include '/etc/passwd' %}": "no loader",
    "{{ cycler() }}": "at least one item",
}


@pytest.mark.parametrize("template", FAULTS)
def test_a_prompt_template_that_fails_is_a_fault_of_the_row(template: str) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.template cannot be rendered: (?s:.*)Columns here: prompt, comp"
    ) as caught:
        Renderer(byte_tokenizer(), template).render(pair("p", "c"), "completion")
    assert FAULTS[template] in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append({}) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_chat_template_that_fails_is_a_fault_of_the_row(code: str) -> None:
    renderer = Renderer(byte_tokenizer(), code + FAMILIES["chatml"].template)
    with pytest.raises(ValueError, match="^the chat template refuses the roles user, assistant: "):
        renderer.render(chat(("user", "q"), ("assistant", "a")), "completion")


@pytest.mark.parametrize("train_on", ["completion", "last", "all"])
def test_text_has_no_template(train_on: TrainOn) -> None:
    renderer = Renderer(byte_tokenizer(template=FAMILIES["chatml"].template), None)
    document = Sample(Row("a.txt", 1, {}), text=" {{ words }}\n")
    assert renderer.render(document, train_on) == Rendered(document.text, ((0, 13),), special=True, ends=False)


def test_raw_text_begins_as_raw_text_was_trained() -> None:
    """A model trained on plain text has seen BOS first, also when its tokenizer has a chat template."""
    renderer = Renderer(byte_tokenizer(bos=True, template=FAMILIES["chatml"].template), None)
    (bos,) = renderer.around[0]
    assert renderer.prompt_ids("a", raw=True)[0] == bos
    assert renderer.prompt_ids("a")[0] != bos
