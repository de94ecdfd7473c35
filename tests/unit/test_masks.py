"""Which tokens are learned: golden files for eight chat templates and six tokenizers, and laws over random words."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import golden_masks
import pytest
from golden_masks import LEADING, NO_SYSTEM, TEMPLATES, TERMINATORS, conversation, listing, path_of, said, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import TOKENIZERS
from written import encode_all

from ftune.data.encode import Example
from ftune.data.render import Renderer, TrainOn
from ftune.data.shape import Sample

CASES = list(itertools.product(TEMPLATES, TOKENIZERS))


def encode(row: Sample, renderer: Renderer, train_on: TrainOn = "completion") -> Example:
    (example,), report = encode_all(
        [row], renderer, train_on=train_on, max_length=99_999, overlong=None, tick=lambda done: None
    )
    assert (report.rows, report.kept, report.dropped) == (1, 1, {})
    return example


def learned(example: Example, own: Any) -> str:
    return str(own.decode(example.ids[example.is_target].tolist()))


def expected(template: str, answers: list[str], *, exact: bool = False) -> str:
    """What is to be learned of these answers: all of their words, and one end of each that the template ends."""
    words = [answer if exact else answer.strip() for answer in answers]
    ends = [TERMINATORS[template] or ("</s>" if i == len(words) - 1 else "") for i in range(len(words))]
    return "".join(LEADING.get(template, "") + word + end for word, end in zip(words, ends, strict=True))


@pytest.mark.parametrize("template", TEMPLATES)
def test_masks_are_those_of_the_golden_files(template: str) -> None:
    """Regenerate them as `golden_masks` says, once the difference shown here is meant."""
    was, now = path_of(template).read_text(encoding="utf-8").splitlines(), listing(template).splitlines()
    assert was == now, "\n".join(difflib.unified_diff(was, now, str(path_of(template)), "now", lineterm="", n=2))


def test_there_is_a_golden_file_for_each_template_and_no_other() -> None:
    assert len(TEMPLATES) == 8
    assert sorted(path.stem for path in path_of("x").parent.iterdir()) == sorted(TEMPLATES)
    for template in TEMPLATES:
        text = path_of(template).read_text(encoding="utf-8")
        heads = [line.removeprefix("tokenizers: ") for line in text.splitlines() if line.startswith("tokenizers: ")]
        assert sorted(", ".join(heads).split(", ")) == sorted(TOKENIZERS)
        assert "\n* " in text


@pytest.mark.parametrize(("template", "variant"), CASES)
def test_exactly_the_answers_are_learned_and_each_has_one_end(template: str, variant: str) -> None:
    own = tokenizer(variant, template)
    row = conversation(template)
    example = encode(row, Renderer(own, None))
    answers = [turn.content for turn in row.turns if turn.role == "assistant"]
    assert learned(example, own) == expected(template, answers)
    end = own.convert_tokens_to_ids(TERMINATORS[template] or "</s>")
    assert example.ids[-1] == end
    assert example.is_target[-1]
    assert Counter(example.ids[example.is_target].tolist())[end] == (len(answers) if TERMINATORS[template] else 1)
    assert not example.is_target[0]


@pytest.mark.parametrize("train_on", ["completion", "last"])
@pytest.mark.parametrize(("template", "variant"), CASES)
def test_the_prompt_in_training_has_the_ids_of_the_prompt_in_use(
    template: str, variant: str, train_on: TrainOn
) -> None:
    """Up to the last answer, token for token; and generation stops where training ended."""
    own = tokenizer(variant, template)
    row = conversation(template)
    renderer = Renderer(own, None)
    example = encode(row, renderer, train_on)
    prompt = renderer.prompt_ids(renderer.prompt(row))
    assert example.ids[: len(prompt)].tolist() == prompt
    assert not example.is_target[len(prompt) - 1]
    assert example.is_target[len(prompt) :].all()
    assert example.ids[-1] in renderer.stop_ids
    assert example.ids.tolist().count(own.bos_token_id) == (template in ("llama3", "gemma", "mistral", "hostile"))


@pytest.mark.parametrize(("template", "variant"), [*itertools.product(golden_masks.REWRITTEN, TOKENIZERS)])
def test_answers_of_a_rewritten_conversation_are_learned_one_by_one(template: str, variant: str) -> None:
    own = tokenizer(variant, template)
    row, renderer = golden_masks.REWRITTEN[template], Renderer(own, None)
    examples, report = encode_all(
        [row], renderer, train_on="completion", max_length=9_999, overlong=None, tick=lambda done: None
    )
    ends = [at + 1 for at, turn in enumerate(row.turns) if turn.role == "assistant"]
    assert (report.rows, report.kept, report.windows, len(examples)) == (1, 1, len(ends), len(ends))
    for end, example in zip(ends, examples, strict=True):
        asked = replace(row, turns=row.turns[:end])
        prompt = renderer.prompt_ids(renderer.prompt(asked))
        assert example.ids[: len(prompt)].tolist() == prompt
        assert example.is_target.tolist() == [at >= len(prompt) for at in range(len(example.ids))]
        assert learned(example, own).endswith(row.turns[end - 1].content + TERMINATORS[template])


@pytest.mark.parametrize(("template", "variant"), CASES)
def test_everything_is_learned_but_the_first_token(template: str, variant: str) -> None:
    own = tokenizer(variant, template)
    example = encode(conversation(template), Renderer(own, None), "all")
    assert example.is_target.tolist() == [False, *[True] * (len(example.ids) - 1)]


@pytest.mark.parametrize("variant", TOKENIZERS)
@pytest.mark.parametrize("template", [None, "Q: {{ prompt }}\nA:\n", "<s>{{ prompt }}\n"])
def test_without_a_chat_template_an_answer_ends_with_eos(template: str | None, variant: str) -> None:
    own = tokenizer(variant, None)
    renderer = Renderer(own, template)
    row = golden_masks.to_sample(
        golden_masks.Row("a.jsonl", 1, {"prompt": "Is it?", "completion": "yes"}),
        "prompt_completion",
        {},
        shown=("prompt",),
    )
    assert isinstance(row, Sample)
    example = encode(row, renderer)
    prompt = renderer.prompt_ids(renderer.prompt(row))
    assert example.ids[: len(prompt)].tolist() == prompt
    assert learned(example, own) == "yes</s>"
    adds = variant in ("adds_bos", "trims_offsets") or str(template).startswith("<s>")
    assert prompt.count(own.bos_token_id) == adds


# laws over random words

PIECES = [
    "yes", "no", " ", "\n", "{{ x }}", "{% if %}", "%s", "%", "🙂", "e\u0301", "<think>", "</think>", "None", "nan",
    "user", "assistant", "assistant:", "(yes: 3)", "'", '"', "\\n", "\\", "\u200b", "\u00a0", "Qx7ftunemark7xQ",
]  # fmt: skip
WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)
ANSWER = WORDS.filter(str.strip)
EXACT = ("chatml", "zephyr", "plain")
"""Templates that leave white space around answers as it is."""
THINKS = ("qwen_thinking",)
"""Templates of which only the last answer can be learned."""


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name not in THINKS])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_is_learned_is_what_assistants_say(template: str, data: st.DataObject) -> None:
    own = tokenizer("adds_bos", template)
    turns = data.draw(st.integers(1, 3))
    words = [data.draw(kind) for _ in range(turns) for kind in (WORDS, ANSWER)]
    can = template not in (*NO_SYSTEM, "mistral")
    system = data.draw(st.one_of(st.none(), WORDS)) if can else None
    renderer = Renderer(own, None)
    row = said(*words, system=system)
    rendered = renderer.render(row, "completion")
    exact = template in EXACT
    spelled = "".join(rendered.text[start:end] for start, end in rendered.spans)
    assert spelled + ("" if TERMINATORS[template] else "</s>") == expected(template, words[1::2], exact=exact)
    assert rendered.text[: rendered.spans[-1][0]] == renderer.prompt(row)
    last = renderer.render(row, "last")
    assert (last.text, last.spans) == (rendered.text, rendered.spans[-1:])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(thought=WORDS, answer=ANSWER, question=WORDS, earlier=ANSWER, apart=st.booleans())
def test_thoughts_and_answer_are_both_learned_or_the_row_is_refused(
    thought: str, answer: str, question: str, earlier: str, apart: bool
) -> None:
    own = tokenizer("plain", "qwen_thinking")
    renderer = Renderer(own, None)
    message = {"content": answer, "reasoning_content": thought} if apart else {}
    message = message or {"content": f"<think>\n{thought}\n</think>\n\n{answer}"}
    row = golden_masks.sample(
        {"role": "user", "content": "q"}, {"role": "assistant", "content": earlier},
        {"role": "user", "content": question}, {"role": "assistant", **message},
    )  # fmt: skip
    try:
        rendered = renderer.render(row, "last")
    except ValueError as error:
        assert "alters the assistant's words" in str(error)
        assert "think>" in thought + answer
        return
    ((start, end),) = rendered.spans
    assert rendered.text[:start] == renderer.prompt(row)
    spelled = rendered.text[start:end]
    assert spelled.endswith(answer.lstrip("\n") + "<|im_end|>")
    assert "".join(thought.split()) in "".join(spelled.split())
    assert spelled.count("<|im_end|>") == 1


def test_every_answer_of_a_template_that_forgets_thoughts_is_learned_as_in_use() -> None:
    row = said("q", "<think>\nhm\n</think>\n\nyes", "r", "<think>\nso\n</think>\n\nno")
    own = tokenizer("plain", "qwen_thinking")
    renderer = Renderer(own, None)
    (first, second), report = encode_all(
        [row], renderer, train_on="completion", max_length=99_999, overlong=None, tick=lambda done: None
    )
    assert learned(first, own) == "<think>\nhm\n</think>\n\nyes<|im_end|>"
    assert learned(second, own) == "<think>\nso\n</think>\n\nno<|im_end|>"
    assert own.decode(second.ids.tolist()).count("<think>") == 1  # thoughts of the first are forgotten, as in use
    for example, asked in ((first, row.turns[:2]), (second, row.turns)):
        prompt = renderer.prompt_ids(renderer.prompt(replace(row, turns=asked)))
        assert example.ids[: len(prompt)].tolist() == prompt
        assert not example.is_target[: len(prompt)].any()
    assert (report.rows, report.kept, report.windows) == (1, 1, 2)
    last = encode(row, renderer, "last")
    assert (last.ids.tolist(), last.is_target.tolist()) == (second.ids.tolist(), second.is_target.tolist())
