"""Tokens and masks: exactly the answers are learned, each with one end; what does not fit is cut and counted."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import FAMILIES, TOKENIZERS, byte_tokenizer
from written import examples_of

from ftune.data.encode import Example, Overlong
from ftune.data.encode_text import encode_rows
from ftune.data.pipeline import BATCH
from ftune.data.read import Row
from ftune.data.render import Renderer, TrainOn
from ftune.data.shape import Sample, to_sample
from ftune.data.tally import Report
from ftune.errors import DataError

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ANSWER = ANY_TEXT.filter(str.strip)


def chat(*words: str, system: str | None = None, number: int = 1) -> Sample:
    roles = zip(itertools.cycle(("user", "assistant")), words, strict=False)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": role, "content": content} for role, content in roles]
    sample = to_sample(Row("chat.jsonl", number, {"messages": messages}), "chat", {})
    assert isinstance(sample, Sample), sample
    return sample


def pair(prompt: str, completion: str, number: int = 1) -> Sample:
    row = Row("pairs.jsonl", number, {"prompt": prompt, "completion": completion})
    sample = to_sample(row, "prompt_completion", {}, ("prompt", "completion"))
    assert isinstance(sample, Sample), sample
    return sample


def document(text: str, number: int = 1) -> Sample:
    return Sample(Row("a.txt", number, {"text": text}), text=text)


def encode(
    samples: list[Sample],
    tokenizer: Any,
    *,
    template: str | None = None,
    train_on: TrainOn = "completion",
    max_length: int = 100_000,
    overlong: Overlong | None = None,
) -> tuple[list[Example], Report]:
    return examples_of(
        samples,
        lambda rows: encode_rows(
            rows,
            Renderer(tokenizer, template),
            train_on=train_on,
            max_length=max_length,
            overlong=overlong,
            tick=lambda done: None,
        ),
    )


def one(sample: Sample, tokenizer: Any, **options: Any) -> Example:
    (example,), _ = encode([sample], tokenizer, **options)
    return example


def learned(example: Example, tokenizer: Any) -> str:
    return str(tokenizer.decode(example.ids[example.is_target].tolist()))


# masks


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train_on", ["completion", "last"])
def test_exactly_the_answers_and_their_ends_are_learned(tokens: str, family: str, train_on: TrainOn) -> None:
    tokenizer = TOKENIZERS[tokens](template=FAMILIES[family].template)
    system = "Be {{ brief }}." if FAMILIES[family].system else None
    sample = chat("  What is it? ", "It is\n 5%.", "<b>", "ünï 🙂", "nothing after this", system=system)
    example = one(sample, tokenizer, train_on=train_on)
    terminator, space = FAMILIES[family].terminator, " " if family in ("mistral", "plain") else ""
    answers = ["It is\n 5%.", "ünï 🙂"][0 if train_on == "completion" else 1 :]
    if terminator:
        assert learned(example, tokenizer) == "".join(space + answer + terminator for answer in answers)
    else:  # a template without ends: only the last answer can have one
        assert learned(example, tokenizer) == "".join(space + answer for answer in answers) + "</s>"
    end = tokenizer.convert_tokens_to_ids(terminator or "</s>")
    assert example.ids[-1] == end
    assert example.is_target[-1]
    assert Counter(example.ids[example.is_target].tolist())[end] == (len(answers) if terminator else 1)
    assert example.ids.tolist().count(tokenizer.bos_token_id) == FAMILIES[family].writes_bos


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("template", [None, "Q: {{ prompt }}\nA:", "<s>Q: {{ prompt }}\nA:", *FAMILIES])
@pytest.mark.parametrize("prompt", ["What is it?", "  ünï 🙂 {{ x }} "])
def test_the_prompt_of_a_row_is_the_prompt_of_generation(tokens: str, template: str | None, prompt: str) -> None:
    tokenizer = TOKENIZERS[tokens]()
    template = FAMILIES[template].template if template in FAMILIES else template
    sample = pair(prompt, "It is.")
    example = one(sample, tokenizer, template=template)
    renderer = Renderer(tokenizer, template)
    before = example.ids[: int(example.is_target.argmax())].tolist()
    assert before == renderer.prompt_ids(renderer.prompt(sample))
    assert example.is_target[len(before) :].all()
    assert before.count(tokenizer.bos_token_id) <= 1
    assert learned(example, tokenizer).lstrip().startswith("It is.")
    assert example.ids[-1] in renderer.stop_ids


@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_raw_text_has_one_end_and_a_bos_if_the_tokenizer_adds_one(tokens: str) -> None:
    tokenizer = TOKENIZERS[tokens]()
    example = one(document("some words"), tokenizer)
    adds = tokens in ("adds_bos", "trims_offsets")
    front = [tokenizer.bos_token_id] if adds else []
    words = tokenizer("some words", add_special_tokens=False)["input_ids"]
    assert example.ids.tolist() == [*front, *words, tokenizer.eos_token_id]
    assert example.is_target.tolist() == [False, *[True] * (len(words) + adds)]
    assert (example.ids.dtype, example.is_target.dtype) == (np.int32, np.bool_)


def test_special_tokens_that_the_text_brings_are_not_doubled() -> None:
    tokenizer = byte_tokenizer(bos=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = one(document("<s>words</s>"), tokenizer).ids.tolist()
    assert (ids.count(bos), ids.count(eos), ids[0], ids[-1]) == (1, 1, bos, eos)
    example = one(pair("<s>p", "c</s>"), tokenizer)
    assert learned(example, tokenizer) == "c</s>"
    assert example.ids.tolist().count(bos) == 1


def test_a_tokenizer_without_eos_adds_none() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert learned(one(pair("p", "c"), tokenizer), tokenizer) == "c"


def test_train_on_all() -> None:
    tokenizer = byte_tokenizer(bos=True)
    example = one(pair("pp", "c"), tokenizer, train_on="all")
    assert learned(example, tokenizer) == "ppc</s>"
    assert not example.is_target[0]
    tokenizer = byte_tokenizer(template=FAMILIES["chatml"].template)
    example = one(chat("q", "a", "r"), tokenizer, train_on="all")
    assert (
        learned(example, tokenizer)
        == "user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
    )
    assert example.is_target.tolist() == [False, *[True] * (len(example.ids) - 1)]


def test_rows_whose_prompt_and_answer_share_a_token_are_counted() -> None:
    """In generation the prompt ends with another token there, which the model has not seen before an answer."""
    tokenizer = byte_tokenizer(merges=(("Ġ", "y"),))
    rows = [pair("Q: ", "yes", 1), pair("Q:", " yes", 2), pair("Q: ", "no", 3), pair("Q: ", "yo", 4)]
    notes = encode(rows, tokenizer)[1].notes
    assert notes == [
        "2 rows: one token spells the end of the prompt and the start of the answer, so a prompt alone is tokenised "
        "otherwise. End prompts without a space, and begin answers with one."
    ]
    renderer = Renderer(tokenizer, None)
    for row, same in zip(rows, (False, True, True, False), strict=True):
        ids = renderer.prompt_ids(renderer.prompt(row))
        assert (one(row, tokenizer).ids[: len(ids)].tolist() == ids) == same
    assert encode(rows[1:3], tokenizer)[1].notes == []
    assert encode(rows, tokenizer, train_on="all")[1].notes == []
    assert encode([document("a y")], tokenizer)[1].notes == []


@pytest.mark.parametrize("trims", [False, True])
def test_a_token_over_the_boundary_is_learned(trims: bool) -> None:
    """The line end of the template and that of the answer are one token, as are a space and the letter after it."""
    merges = (("Ċ", "Ċ"), ("Ġ", "y"), ("Ġ", "Ġ"), ("Ċ", "ĠĠ"))
    tokenizer = byte_tokenizer(template=FAMILIES["chatml"].template, merges=merges, trims=trims)
    assert learned(one(chat("q", "\nyes"), tokenizer), tokenizer) == "\n\nyes<|im_end|>"
    plain = byte_tokenizer(merges=merges, trims=trims)
    assert learned(one(pair("Q: ", "yes"), plain), plain) == " yes</s>"
    assert learned(one(pair("Q:", " yes"), plain), plain) == " yes</s>"
    assert learned(one(pair("Q:", "  yes"), plain), plain) == "  yes</s>"
    assert learned(one(pair("Q:\n", "  x"), plain), plain) == "\n  x</s>"
    assert learned(one(pair("Q: ", "  x"), plain), plain) == "   x</s>"


def test_the_longer_of_two_ends_that_begin_alike() -> None:
    tokenizer = byte_tokenizer(template=FAMILIES["chatml"].template.replace("<|im_end|>", "<|im_end|>!"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>!"]})
    example = one(chat("q", "a", "r", "b"), tokenizer)
    assert learned(example, tokenizer) == "a<|im_end|>!b<|im_end|>!"
    assert example.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>!")


def test_a_tokenizer_is_left_as_it_was() -> None:
    tokenizer = byte_tokenizer(bos=True, trims=True)
    before = tokenizer.backend_tokenizer.to_str()
    encode([document("a b")], tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    stopped = encode_rows(
        [document("a"), document("b")], Renderer(tokenizer, None), train_on="all", max_length=9, overlong=None,
        tick=lambda done: 1 // 0,
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        next(stopped)
    assert tokenizer.backend_tokenizer.to_str() == before


@settings(max_examples=80, deadline=None)
@given(
    ANY_TEXT.filter(str.strip), ANSWER, st.sampled_from(list(TOKENIZERS)), st.sampled_from([None, "Q: {{ prompt }}\n"])
)
def test_any_pair(prompt: str, answer: str, tokens: str, template: str | None) -> None:
    tokenizer = SHARED[tokens]
    example = one(pair(prompt, answer), tokenizer, template=template)
    assert learned(example, tokenizer) == answer + "</s>"
    assert (
        tokenizer.decode(example.ids, skip_special_tokens=True) == (f"Q: {prompt}\n" if template else prompt) + answer
    )
    assert example.num_bytes == len(answer.encode())


SHARED = {name: build() for name, build in TOKENIZERS.items()}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(ANY_TEXT, ANSWER), min_size=1, max_size=3), st.sampled_from(list(TOKENIZERS)),
       st.sampled_from(["chatml", "zephyr", "gemma"]))  # fmt: skip
def test_any_chat(turns: list[tuple[str, str]], tokens: str, family: str) -> None:
    tokenizer, terminator = SHARED[tokens], FAMILIES[family].terminator
    example = one(chat(*itertools.chain(*turns)), tokenizer, template=FAMILIES[family].template)
    answers = [answer.strip() if family == "gemma" else answer for _, answer in turns]
    assert learned(example, tokenizer) == "".join(answer + terminator for answer in answers)


# bytes


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("text", ["plain words  with \n  spaces ", " ünï 漢字 🙂🙂 x", "é", "  🙂  "])
@pytest.mark.parametrize("max_length", [2, 3, 7, 1000])
def test_bytes_of_all_windows_are_those_of_the_text(tokens: str, text: str, max_length: int) -> None:
    tokenizer = TOKENIZERS[tokens](merges=(("Ġ", "Ġ"), ("Ċ", "ĠĠ"), ("Ã", "¼")))
    examples, _ = encode([document(text)], tokenizer, max_length=max_length)
    predicted = len(text.encode())
    if tokens not in ("adds_bos", "trims_offsets"):  # the first token has nothing before it
        first = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0]
        predicted -= len(text[slice(*first)].encode())
    assert sum(example.num_bytes for example in examples) == predicted


def test_bytes_of_an_answer() -> None:
    tokenizer = byte_tokenizer()
    assert one(pair("ü", " 漢字 a"), tokenizer).num_bytes == 9
    assert one(pair("Q: ", "yes"), byte_tokenizer(merges=(("Ġ", "y"),), trims=True)).num_bytes == 4  # with the space


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_a_chat_are_those_of_its_answers(family: str) -> None:
    """So that bits per byte mean the same whatever the template writes at the end of a turn."""
    tokenizer = byte_tokenizer(template=FAMILIES[family].template)
    space = 2 if family in ("mistral", "plain") else 0  # these put one before each answer
    assert one(chat("q", "ünï", "r", "漢字"), tokenizer).num_bytes == 5 + 6 + space


def test_bytes_that_have_no_token_count_at_the_next_or_the_last() -> None:
    """Word pieces leave white space out."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "bé": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="[UNK]")  # noqa: S106
    example = one(document("a   bé  a\n\n"), tokenizer)
    assert example.ids.tolist() == [0, 1, 0, 3]
    assert example.num_bytes == len("   bé  a\n\n".encode())


# rows that are too long


LONG, MAX = (2, 5, 9), 30
"""Rows whose prompt alone exceeds the limit, and the limit."""


def ten_rows() -> list[Sample]:
    return [pair("x" * (40 if i in LONG else 8) + ":", f"answer{i}", number=i) for i in range(1, 11)]


def reconciled(report: Report) -> Report:
    assert report.rows == report.kept + sum(report.dropped.values())
    return report


@pytest.mark.parametrize("overlong", ["error", None])
def test_overlong_rows_are_an_error_by_default(overlong: Overlong | None) -> None:
    with pytest.raises(DataError) as caught:
        encode(ten_rows(), byte_tokenizer(), max_length=MAX, overlong=overlong)
    assert str(caught.value).splitlines() == [
        f"pairs.jsonl:{i}: has 49 tokens, more than max_length 30. "
        "Raise data.max_length or set data.overlong: drop, truncate_prompt or truncate."
        for i in LONG
    ]


def test_overlong_rows_can_be_dropped() -> None:
    examples, report = encode(ten_rows(), byte_tokenizer(), max_length=MAX, overlong="drop")
    assert [example.number for example in examples] == [1, 3, 4, 6, 7, 8, 10]
    assert (report.rows, report.kept, report.dropped) == (10, 7, {"overlong": 3})
    assert report.notes == [f"dropped (overlong): pairs.jsonl:{i}" for i in LONG]
    assert (report.truncated, report.truncated_rows, report.windows) == (0, [], 7)


@pytest.mark.parametrize("bos", [False, True])
def test_a_shortened_prompt_keeps_bos_its_end_and_the_answer(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    examples, report = encode(ten_rows(), tokenizer, max_length=MAX, overlong="truncate_prompt")
    assert [learned(example, tokenizer) for example in examples] == [f"answer{i}</s>" for i in range(1, 11)]
    for example in (examples[i - 1] for i in LONG):
        assert len(example.ids) == MAX
        front = "<s>" if bos else ""
        expected = f"{front}{'x' * (21 - bos)}:answer{example.number}</s>"
        assert tokenizer.decode(example.ids) == expected
    reconciled(report)
    assert (report.kept, report.truncated, report.dropped) == (10, 3, {})
    assert report.truncated_rows == [f"pairs.jsonl:{i}" for i in LONG]


@pytest.mark.parametrize("tokens", ["plain", "adds_bos"])
def test_a_shortened_chat_keeps_the_bos_that_its_template_wrote(tokens: str) -> None:
    tokenizer = TOKENIZERS[tokens](template=FAMILIES["gemma"].template)
    sample = chat("x" * 50, "answer")
    whole = one(sample, tokenizer)
    example = one(sample, tokenizer, max_length=43, overlong="truncate_prompt")
    assert example.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(example.ids) == tokenizer.decode(whole.ids).replace("x" * 50, "x" * 20)
    assert learned(example, tokenizer) == "answer<end_of_turn>"


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_is_shortened_to_one_token_at_least(bos: bool) -> None:
    """Something must stand before the first target; BOS will do."""
    tokenizer = byte_tokenizer(bos=bos)
    example = one(pair("xyz", "answer"), tokenizer, max_length=8, overlong="truncate_prompt")
    assert tokenizer.decode(example.ids) == ("<s>" if bos else "z") + "answer</s>"
    with pytest.raises(DataError) as caught:
        encode([pair("xyz", "answer")], tokenizer, max_length=7, overlong="truncate_prompt")
    assert str(caught.value) == (
        f"pairs.jsonl:1: has {10 + bos} tokens, more than max_length 7. "
        "What is trained on is too long by itself: raise data.max_length or use overlong: drop."
    )


def test_rows_can_be_truncated_and_those_without_targets_are_counted_once() -> None:
    rows = [pair("xx", "answer", 1), pair("x" * 40, "answer", 2), pair("x" * 28, "answer", 3)]
    tokenizer = byte_tokenizer()
    examples, report = encode(rows, tokenizer, max_length=MAX, overlong="truncate")
    assert [(example.number, learned(example, tokenizer)) for example in examples] == [(1, "answer</s>"), (3, "an")]
    reconciled(report)
    assert (report.rows, report.kept, report.dropped) == (3, 2, {"no_targets": 1})
    assert (report.truncated, report.truncated_rows) == (1, ["pairs.jsonl:3"])
    assert report.notes == ["dropped (no_targets): pairs.jsonl:2"]


def test_lists_of_rows_end_at_twenty() -> None:
    rows = [pair("x" * 40, "answer", i) for i in range(1, 51)]
    report = encode(rows, byte_tokenizer(), max_length=MAX, overlong="drop")[1]
    assert (report.dropped, len(report.notes)) == ({"overlong": 50}, 20)
    report = encode(rows, byte_tokenizer(), max_length=MAX, overlong="truncate_prompt")[1]
    assert (report.truncated, len(report.truncated_rows)) == (50, 20)
    with pytest.raises(DataError) as caught:
        encode(rows, byte_tokenizer(), max_length=MAX, overlong="error")
    assert str(caught.value).endswith("\n... and 30 more, 50 in all.")
    assert len(caught.value.problems) == 50


def test_a_row_that_fits_exactly_is_no_overlong_row() -> None:
    sample = pair("x" * 5, "y" * 4)
    assert len(one(sample, byte_tokenizer(), max_length=10, overlong="error").ids) == 10
    with pytest.raises(DataError):
        encode([sample], byte_tokenizer(), max_length=9, overlong="error")


# long texts


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [9_998, 9_999, 10_000, 10_001])
@pytest.mark.parametrize("max_length", [2, 256, 9_999, 20_000])
def test_a_long_text_is_learned_once_and_in_order(bos: bool, length: int, max_length: int) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    text = "".join(chr(32 + i * i % 95) for i in range(length))
    examples, report = encode([document(text)], tokenizer, max_length=max_length)
    targets = [int(i) for example in examples for i in example.ids[example.is_target]]
    whole = [*([tokenizer.bos_token_id] if bos else []), *tokenizer(text, add_special_tokens=False)["input_ids"],
             tokenizer.eos_token_id]  # fmt: skip
    assert targets == whole[1:]
    assert max(len(example.ids) for example in examples) <= max_length
    assert not any(example.is_target[0] for example in examples)
    assert all(example.is_target[1:].all() for example in examples)
    for before, after in itertools.pairwise(examples):
        assert before.ids[-1] == after.ids[0]  # the first context is the last target of the window before
    ids = [int(i) for example in examples for i in example.ids]
    assert ids.count(tokenizer.bos_token_id) == bos
    assert targets.count(tokenizer.eos_token_id) == 1
    assert (report.rows, report.kept, report.windows, report.truncated) == (1, 1, len(examples), 0)
    assert report.targets == len(targets) == length + bos
    assert (report.tokens, report.longest) == (len(ids), max(len(example.ids) for example in examples))


def test_two_documents_never_share_a_window() -> None:
    examples, report = encode([document("a" * 20, 1), document("b" * 20, 2)], byte_tokenizer(), max_length=8)
    assert all(len(set(example.ids.tolist()) & {97, 98}) <= 1 for example in examples)
    assert {example.place for example in examples} == {"a.txt:1", "a.txt:2"}
    assert (report.rows, report.kept, report.windows) == (2, 2, 6)


@pytest.mark.parametrize(("overlong", "kept"), [("truncate", 1), ("drop", 0)])
def test_other_policies_hold_for_texts(overlong: Overlong, kept: int) -> None:
    examples, report = encode([document("a" * 20)], byte_tokenizer(), max_length=8, overlong=overlong)
    assert [len(example.ids) for example in examples] == [8] * kept
    assert reconciled(report).kept == kept


def test_a_text_of_one_token_has_nothing_to_predict_without_an_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    examples, report = encode([document("a"), document("ab")], tokenizer)
    assert len(examples) == 1
    assert reconciled(report).dropped == {"no_targets": 1}


# the whole


def test_rows_that_cannot_be_rendered_are_named_together() -> None:
    tokenizer = byte_tokenizer(template=FAMILIES["gemma"].template)
    rows = [chat("q", "a", number=i, system="s" if i in (3, 40) else None) for i in range(1, 51)]
    with pytest.raises(DataError) as caught:
        encode(rows, tokenizer)
    message = "the chat template refuses the roles system, user, assistant: System role not supported. "
    message += "Set data.system to merge_into_user."
    assert str(caught.value).splitlines() == [f"chat.jsonl:{i}: {message}" for i in (3, 40)]


def test_every_kind_of_problem_comes_together() -> None:
    tokenizer = byte_tokenizer(template=FAMILIES["gemma"].template)
    rows = [chat("q", "a", system="s", number=1), chat("q" * 99, "a", number=2), chat("q", "a", number=3)]
    with pytest.raises(DataError) as caught:
        encode(rows, tokenizer, max_length=50)
    assert [problem.row for problem in caught.value.problems] == [1, 2]


def test_rows_do_not_depend_on_the_batches_they_are_tokenised_in() -> None:
    tokenizer = byte_tokenizer()
    rows = [pair(f"{i} + {i} = ", f"{2 * i}", i) for i in range(1, 2 * BATCH + 5)]
    examples, report = encode(rows, tokenizer)
    assert [example.number for example in examples] == [row.row.number for row in rows]
    for i in (0, BATCH - 1, BATCH, 2 * BATCH, len(rows) - 1):
        alone = one(rows[i], tokenizer)
        assert examples[i].ids.tolist() == alone.ids.tolist()
        assert examples[i].is_target.tolist() == alone.is_target.tolist()
    assert (report.rows, report.kept, report.windows) == (len(rows), len(rows), len(rows))
    assert report.targets == sum(example.num_targets for example in examples)


def test_progress_is_told_and_may_stop() -> None:
    told: list[int] = []
    renderer = Renderer(byte_tokenizer(), None)
    rows = [pair("p", "c", i) for i in range(2 * BATCH + 1)]
    found = list(encode_rows(rows, renderer, train_on="completion", max_length=9, overlong=None, tick=told.append))
    assert (told, len(found)) == ([0, BATCH, 2 * BATCH], len(rows))

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(encode_rows(rows, renderer, train_on="completion", max_length=9, overlong=None, tick=stop))


def test_nothing_to_encode() -> None:
    assert encode([], byte_tokenizer()) == ([], Report())
