"""Chats that are too long lose their oldest turns and stay chats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden_masks import TEMPLATES, said, sample, tokenizer
from written import encode_all

from ftune.data.encode import Example
from ftune.data.render import Renderer, System
from ftune.data.shape import Sample
from ftune.data.tally import Report
from ftune.errors import DataError

MULTI = [name for name in TEMPLATES if name != "hostile"]


def shortened(
    row: Sample, name: str, limit: int, train_on: Any = "last", system: System = "template"
) -> tuple[list[Example], Report, Any]:
    own = tokenizer("plain", name)
    renderer = Renderer(own, None, system=system)
    examples, report = encode_all(
        [row], renderer, train_on=train_on, max_length=limit, overlong="truncate_prompt", tick=lambda done: None
    )
    return examples, report, renderer


def tokens_of(row: Sample, name: str) -> list[int]:
    (example,), _, _ = shortened(row, name, 9_999)
    return [int(i) for i in example.ids]


TALK = said("oldest " * 9, "a", "older " * 9, "b", "newest", "yes", system="Be brief.")


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen_thinking", "zephyr"])
def test_as_many_whole_turns_go_as_must_and_system_text_stays(name: str) -> None:
    """What is left is, token for token, what the template writes of a conversation that never had the others."""
    front, rest = TALK.turns[:1], TALK.turns[1:]
    sizes = [len(tokens_of(replace(TALK, turns=(*front, *rest[drop:])), name)) for drop in (0, 2, 4)]
    assert sizes == sorted(sizes, reverse=True)
    for drop, size in zip((0, 2, 4), sizes, strict=True):
        for limit in (size, size + 3):
            (example,), report, _ = shortened(TALK, name, limit)
            assert example.ids.tolist() == tokens_of(replace(TALK, turns=(*front, *rest[drop:])), name)
            assert (report.kept, report.truncated) == (1, int(drop > 0))


@pytest.mark.parametrize("name", MULTI)
def test_words_of_the_last_question_go_where_turns_do_not_suffice(name: str) -> None:
    """Every token that the template writes stays; of the question stays the end."""
    question = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    row = said("older " * 9, "b", question, "yes")
    short = replace(row, turns=row.turns[2:])
    whole = tokens_of(short, name)
    for gone in (1, 7, 20):
        (example,), report, renderer = shortened(row, name, len(whole) - gone)
        kept = example.ids.tolist()
        assert len(kept) == len(whole) - gone
        start = next(i for i in range(len(kept) + 1) if kept[i:] == whole[i + gone :] and kept[:i] == whole[:i])
        text = renderer.tokenizer.decode(kept)
        words = text[text.index(renderer.tokenizer.decode(whole[:start])) :]
        assert question[-20:] in words
        assert renderer.tokenizer.decode(whole).partition("abc")[0] in text
        assert report.truncated == 1
        learned = example.ids[example.is_target].tolist()
        (full,), _, _ = shortened(short, name, 9_999)
        assert learned == full.ids[full.is_target].tolist()
        assert example.num_bytes == full.num_bytes


def test_system_text_that_is_merged_into_a_question_stays() -> None:
    row = said("first " * 9, "a", "abcdefghijklmnopqrstuvwxyz", "yes", system="Be brief.")
    for limit in (90, 75):
        (example,), _, renderer = shortened(row, "gemma", limit, system="merge_into_user")
        text = renderer.tokenizer.decode(example.ids.tolist())
        assert "user\nBe brief.\n\n" in text
        assert "first" not in text
        assert text.endswith("xyz<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>")
        assert len(example.ids) <= limit


def test_what_is_learned_never_goes() -> None:
    """Of a row with two learned answers only the first question's words may go; an answer of weight 0 may."""
    row = said("abcdefghijklmnopqrstuvwxyz", "first", "q" * 30, "second")
    whole, _, _ = shortened(row, "chatml", 9_999, "completion")
    (example,), _, renderer = shortened(row, "chatml", len(whole[0].ids) - 10, "completion")
    assert renderer.tokenizer.decode(example.ids[example.is_target].tolist()) == "first<|im_end|>second<|im_end|>"
    assert "q" * 30 in renderer.tokenizer.decode(example.ids.tolist())
    with pytest.raises(
        DataError, match=rf"^chat\.jsonl:1: has {len(whole[0].ids)} tokens, .* What has to stay of this"
    ):
        shortened(row, "chatml", len(whole[0].ids) - 40, "completion")
    masked = replace(row, turns=(row.turns[0], replace(row.turns[1], weight=0), *row.turns[2:]))
    (example,), _, _ = shortened(masked, "chatml", len(whole[0].ids) - 40, "completion")
    assert renderer.tokenizer.decode(example.ids.tolist()).startswith("<|im_start|>user\nqqq")


def test_answers_of_a_rewritten_chat_are_shortened_each_by_itself() -> None:
    words = [text for n in range(6) for text in (f"question {n}? " * 3, f"<think>\nhm {n}\n</think>\n\nanswer {n}")]
    examples, report, renderer = shortened(said(*words), "qwen_thinking", 160, "completion")
    assert (len(examples), report.kept, report.truncated) == (6, 1, 1)
    for number, example in enumerate(examples):
        text = renderer.tokenizer.decode(example.ids.tolist())
        learned = renderer.tokenizer.decode(example.ids[example.is_target].tolist())
        assert learned == f"<think>\nhm {number}\n</think>\n\nanswer {number}<|im_end|>"
        assert text.startswith("<|im_start|>user\nquestion ")
        assert text.count("question") == 3 * min(number + 1, text.count("<|im_start|>user"))
    assert "question 0" not in renderer.tokenizer.decode(examples[-1].ids.tolist())


def test_words_of_tools_go_after_those_of_the_question() -> None:
    call = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "it"}}}
    row = sample(
        {"role": "user", "content": "abcdefghij"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "0123456789" * 3, "tool_call_id": "call00001"},
        {"role": "assistant", "content": "y"},
    )  # fmt: skip
    whole = len(tokens_of(row, "llama3"))
    texts = []
    for gone in (3, 20):
        (example,), _, renderer = shortened(row, "llama3", whole - gone)
        texts.append(renderer.tokenizer.decode(example.ids.tolist()))
    assert [text.count("0123456789") for text in texts] == [3, 1]
    assert "ij<|eot_id|>" in texts[0]
    assert all('"name": "look"' in text for text in texts)
    with pytest.raises(DataError, match="What has to stay of this chat is too long by itself"):
        shortened(row, "llama3", whole - 60)


@pytest.mark.parametrize("name", MULTI)
def test_every_limit_gives_a_chat_that_fits_or_an_error(name: str) -> None:
    row = said("one two three", "a", "four five six", "b", "seven eight", "yes")
    ends = tokens_of(row, name)[-4:]
    for limit in range(10, 120, 9):
        try:
            (example,), _, renderer = shortened(row, name, limit)
        except DataError as error:
            assert "too long by itself" in str(error)
            continue
        assert len(example.ids) <= limit
        assert example.ids[-4:].tolist() == ends
        assert np.flatnonzero(example.is_target).tolist() == [*range(int(example.is_target.argmax()), len(example.ids))]
        text, marks = renderer.tokenizer.decode(example.ids.tolist()), renderer.render(row, "last").text[:12]
        assert text[:5] == marks[:5]
