"""Multiple choice and rows of tokens: what is read, what could mean two things, and what a model learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import byte_tokenizer

from ftune.data.build import Dataset, build_data
from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.samples import read_samples
from ftune.data.shape import Sample, detect_format, reach, reading_notes, to_sample
from ftune.errors import DataError
from ftune.objectives import Objective
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.seq2seq_lm import Seq2SeqLM
from ftune.recipe import Data

QUESTION = {"question": "What?", "choices": ["one", "two", "three"]}


def shaped(row_format: str, mapping: dict[str, str] | None = None, **values: Any) -> Sample | list[str]:
    found = to_sample(Row("f", 7, values), row_format, mapping or {})
    return found if isinstance(found, Sample) else [str(problem).removeprefix("f:7 ") for problem in found]


def built(folder: Path, rows: list[Any], objective: Objective | None = None, **values: Any) -> Dataset:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    objective = objective or CausalLM()
    data = Data(train="a.jsonl", **values)
    return build_data(
        data, folder, Renderer(byte_tokenizer(), data.template), objective, accepted=objective.formats, guard=[],
        max_length=values.get("max_length", 99), seed=0, max_eval_rows=None, encoder_decoder=False,
        tick=lambda *_: None,
    )  # fmt: skip


# multiple choice


@pytest.mark.parametrize(
    ("answer", "correct"),
    [({"answer": 1}, "B"), ({"answer": "1"}, "B"), ({"answer": "B"}, "B"), ({"answer": "b"}, "B"),
     ({"answer": " two "}, "B"), ({"answer": 0}, "A"), ({"answer_index": "2"}, "C"), ({"answer_letter": "C"}, "C"),
     ({"answer_text": "three"}, "C")],
)  # fmt: skip
def test_the_right_choice_may_be_a_number_a_letter_or_its_text(answer: dict[str, Any], correct: str) -> None:
    found = shaped("multiple_choice", **QUESTION, **answer)
    assert isinstance(found, Sample)
    assert found.choices == ("one", "two", "three")
    assert [turn.content for turn in found.turns] == ["What?\nA. one\nB. two\nC. three\nAnswer:\n", correct]


def test_choices_may_have_a_column_each_and_a_context() -> None:
    found = shaped(
        "multiple_choice", {"choice0": "sol1", "choice1": "sol2", "question": "goal", "answer_index": "label"},
        goal="Fix it", sol1="a", sol2="b", label=0, context="On Monday.", choice2="not one of them, but it is here",
    )  # fmt: skip
    assert isinstance(found, Sample)
    assert found.choices == ("a", "b", "not one of them, but it is here")
    assert found.turns[0].content.startswith("On Monday.\n\nFix it\nA. a\nB. b\n")


def test_a_column_that_is_mapped_to_one_choice_is_no_other_as_well() -> None:
    """Columns that count from 1: choice1 is our choice0, and must not come again as our choice1 or choice2."""
    mapping = {"choice0": "choice1", "choice1": "choice2"}
    found = shaped("multiple_choice", mapping, question="q", choice1="a", choice2="b", answer_index=1)
    assert isinstance(found, Sample)
    assert (found.choices, found.turns[1].content) == (("a", "b"), "B")


def test_a_row_may_have_fewer_choices_than_the_table() -> None:
    found = shaped("multiple_choice", question="q", choice0="a", choice1="b", choice2=None, choice3="", answer="A")
    assert isinstance(found, Sample) and found.choices == ("a", "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer": 3}, "answer: expected a number from 0 to 2, a letter from A to C, or the text of a choice, "
                        "received int: '3'."),
        ({"answer": -1}, "answer: expected a number from 0 to 2"),
        ({"answer": True}, "answer: expected a number from 0 to 2"),
        ({"answer": None}, "answer: expected a number from 0 to 2"),
        ({"answer_index": "A"}, "answer_index: expected a number from 0 to 2, received str: 'A'."),
        ({"answer_letter": "2"}, "answer_letter: expected a letter from A to C, received str: '2'."),
        ({"answer_text": "four"}, "answer_text: expected the text of a choice, received str: 'four'."),
        ({}, "answer: is missing. Expected one of answer, answer_index, answer_letter, answer_text."),
        ({"answer": 1, "answer_text": "two"}, "answer: is told 2 times (answer, answer_text)."),
        ({"answer": 1, "choices": ["1", "2"]}, ""),
        ({"answer": "1", "choices": ["1", "2"]},
         "answer: str: '1' could mean choice 0 ('1') or choice 1 ('2'). Map it as answer_index, answer_letter or "),
        ({"answer_index": "1", "choices": ["1", "2"]}, ""),
        ({"answer_text": "1", "choices": ["1", "2"]}, ""),
        ({"answer": "B", "choices": ["B", "C"]}, "answer: str: 'B' could mean choice 0 ('B') or choice 1 ('C')."),
        ({"answer_text": "x", "choices": ["x", "x"]}, "answer_text: str: 'x' could mean choice 0 ('x') or choice 1"),
        ({"answer": 0, "choices": ["x"]}, "choices: expected 2 to 26 answers, received 1."),
        ({"answer": 0, "choices": ["x", None]}, "choices[1]: expected text, received null."),
        ({"answer": 0, "choices": "x"}, "choices: expected a list of answers, received str: 'x'."),
        ({"answer": 0, "question": " "}, "question: is empty."),
        ({"answer": 0, "question": 5}, "question: expected text, received int: '5'."),
        ({"answer": 0, "context": 5}, "context: expected text, received int: '5'."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_question(values: dict[str, Any], message: str) -> None:
    found = shaped("multiple_choice", **{**QUESTION, **values})
    if not message:
        assert isinstance(found, Sample)
        return
    assert isinstance(found, list) and len(found) == 1 and found[0].startswith(message), found


def test_the_letter_is_learned_and_templates_see_the_choices(tmp_path: Path) -> None:
    rows = [{**QUESTION, "answer": "B"}]
    data = built(tmp_path, rows)
    (example,) = data.train.examples
    assert bytes(example.ids[example.is_target][:-1].tolist()) == b"B"
    assert bytes(example.ids[~example.is_target].tolist()) == b"What?\nA. one\nB. two\nC. three\nAnswer:\n"
    template = "{{ question }}{% for choice in choices %} ({{ choice }}){% endfor %}\n"
    (example,) = built(tmp_path, rows, template=template).train.examples
    assert bytes(example.ids[~example.is_target].tolist()) == b"What? (one) (two) (three)\n"
    (pair,) = built(tmp_path, rows, Seq2SeqLM()).train.examples
    assert pair.answer is not None and bytes(pair.answer[:-1].tolist()) == b"B"


# tokens


def test_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [72, 105, 33]},
        {"input_ids": [72, 105, 33], "loss_mask": [0, 0, 1]},
        {"input_ids": [72, 105, 33], "labels": [-100, 105, -100]},
    ]
    split = built(tmp_path, rows).train
    assert [example.ids.tolist() for example in split.examples] == [[72, 105, 33]] * 3
    assert [example.is_target.tolist() for example in split.examples] == [
        [False, True, True], [False, False, True], [False, True, False],
    ]  # fmt: skip
    assert [example.num_bytes for example in split.examples] == [2, 1, 1]
    assert (split.report.rows, split.report.kept, split.report.targets) == (3, 3, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "input_ids: is missing."),
        ({"input_ids": []}, "input_ids: expected a list of token ids, received list: '[]'."),
        ({"input_ids": [1, "2"]}, "input_ids: expected a list of token ids"),
        ({"input_ids": [1, -2]}, "input_ids: expected token ids from 0, received -2."),
        ({"input_ids": [1, 2], "labels": [1]}, "labels: has 1 entries for 2 token ids; expected one for each."),
        ({"input_ids": [1, 2], "labels": "x"}, "labels: expected a list of numbers, received str: 'x'."),
        ({"input_ids": [1, 2], "labels": [2, -100]},
         "labels: expected the token id 1 or -100, received 2 at position 0"),
        ({"input_ids": [1, 2], "loss_mask": [0, 2]}, "loss_mask: expected 0 or 1, received 2 at position 1."),
        ({"input_ids": [1], "loss_mask": [1], "labels": [1]},
         "labels: has labels and a loss_mask; expected one of them."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tokens(values: dict[str, Any], message: str) -> None:
    found = shaped("tokens", **values)
    assert isinstance(found, list) and len(found) == 1 and found[0].startswith(message), found


def test_an_id_that_the_tokenizer_does_not_have(tmp_path: Path) -> None:
    size = len(byte_tokenizer())
    with pytest.raises(DataError) as caught:
        built(tmp_path, [{"input_ids": [1, size - 1]}, {"input_ids": [1, size]}])
    (problem,) = caught.value.problems
    assert (problem.row, problem.message) == (
        2,
        f"has the token id {size}, but the tokenizer has ids 0 to {size - 1} only.",
    )


@pytest.mark.parametrize("policy", [None, "drop", "truncate", "split"])
def test_long_rows_of_tokens(tmp_path: Path, policy: str | None) -> None:
    rows = [{"input_ids": list(range(10))}, {"input_ids": [1, 2]}]
    keys = {"max_length": 4, "overlong": policy, "max_dropped": "50%"}
    if policy is None:
        with pytest.raises(DataError, match="a.jsonl:1: has 10 tokens, more than max_length 4"):
            built(tmp_path, rows, **keys)
        return
    split = built(tmp_path, rows, **keys).train
    lengths = {"drop": [2], "truncate": [4, 2], "split": [4, 4, 4, 2]}[policy]
    assert [len(example.ids) for example in split.examples] == lengths
    assert split.report.rows == split.report.kept + sum(split.report.dropped.values())
    if policy == "split":
        assert split.report.targets == 9 + 1


def test_tokens_and_text_may_come_from_two_sources(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "xy"}\n')
    (tmp_path / "c.jsonl").write_text('{"input_ids": [1, 2]}\n')
    objective = CausalLM()
    data = build_data(
        Data(train=["b.jsonl", "c.jsonl"]), tmp_path, Renderer(byte_tokenizer(), None), objective,
        accepted=objective.formats, guard=[], max_length=9, seed=0, max_eval_rows=None, encoder_decoder=False,
        tick=lambda *_: None,
    )  # fmt: skip
    assert [example.ids.tolist()[:2] for example in data.train.examples] == [[120, 121], [1, 2]]
    assert data.formats == ("text", "tokens")


# which format, and what is not read


def test_equal_tokens_are_one_group_and_duplicates_only_with_equal_masks() -> None:
    first, second, third = (
        shaped("tokens", input_ids=[1, 2], **mask) for mask in ({}, {"loss_mask": [1, 1]}, {"loss_mask": [0, 1]})
    )
    assert isinstance(first, Sample) and isinstance(second, Sample) and isinstance(third, Sample)
    assert first.content == second.content != third.content
    assert first.group == third.group == "1 2"


@pytest.mark.parametrize(
    ("columns", "found"),
    [(["question", "choices", "answer"], "multiple_choice"),
     (["question", "choice0", "choice1", "answer"], "multiple_choice"),
     (["input_ids", "labels"], "tokens"), (["input_ids", "attention_mask"], "tokens")],
)  # fmt: skip
def test_new_formats_are_known_by_their_columns(columns: list[str], found: str) -> None:
    assert detect_format(columns, {}, "f", CausalLM().formats) == found


def test_question_and_answer_alone_are_no_multiple_choice() -> None:
    with pytest.raises(DataError, match="no format fits the columns answer, question"):
        detect_format(["question", "answer"], {}, "f", CausalLM().formats)
    with pytest.raises(DataError, match=r"several formats fit \(chat, tokens\)"):
        detect_format(["messages", "input_ids"], {}, "f", CausalLM().formats)


@pytest.mark.parametrize(
    ("row_format", "columns", "keys", "notes"),
    [
        ("chat", ["messages", "id"], {"auto": True}, ["format chat, as its columns say (messages)."]),
        ("chat", ["conversations", "rejected"], {}, ["format chat does not read rejected."]),
        ("prompt_completion", ["prompt", "completion", "context", "score"], {"auto": True},
         ["format prompt_completion, as its columns say (prompt, completion); "
          "format prompt_completion does not read context."]),
        ("prompt_completion", ["prompt", "completion", "context"], {"shown": ("context",)}, []),
        ("prompt_completion", ["q", "completion"], {"mapping": {"prompt": "q"}}, []),
        ("prompt_completion", ["q", "prompt", "completion"], {"mapping": {"prompt": "q"}},
         ["format prompt_completion does not read prompt."]),
        ("chat", ["messages", "text"], {}, []),
    ],
)  # fmt: skip
def test_what_is_said_of_a_source(row_format: str, columns: list[str], keys: dict[str, Any], notes: list[str]) -> None:
    row = Row("f", 1, dict.fromkeys(columns))
    given = {"auto": False, "shown": (), **keys}
    assert reading_notes(row, row_format, given.pop("mapping", {}), **given) == notes


# inside other values, and other words


def test_dots_lead_inside() -> None:
    values = {"t": {"en": "Hello", "sv": "Hej"}, "list": [{"x": "first"}], "a.b": "flat", "a": {"b": "deep"}}
    found = reach(Row("f", 1, values), {"source": "t.en", "target": "list.0.x", "text": "a.b", "label": "t.fr"})
    assert found.values == {**values, "t.en": "Hello", "list.0.x": "first"}
    sample = shaped("pairs", {"source": "t.en", "target": "t.sv"}, t=values["t"])
    assert isinstance(sample, Sample) and [turn.content for turn in sample.turns] == ["Hello", "Hej"]
    assert shaped("pairs", {"source": "t.fr", "target": "t.sv"}, t=values["t"]) == [
        "t.fr: is missing. Known: t, t.sv. Map it with data.columns."
    ]


def test_chats_may_have_other_keys_and_other_roles(tmp_path: Path) -> None:
    rows = [{"dialog": [{"speaker": "customer", "utterance": "Hi"}, {"speaker": "agent", "utterance": "Hello"}]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    keys: dict[str, Any] = {
        "train": "a.jsonl",
        "columns": {"messages": "dialog", "role": "speaker", "content": "utterance"},
        "roles": {"customer": "user", "agent": "assistant"},
    }

    def read(**changed: Any) -> list[Sample]:
        rows = read_samples(
            Data(**{**keys, **changed}), tmp_path, accepted=CausalLM().formats, seed=0, max_eval_rows=None,
            tick=lambda *_: None,
        ).train  # fmt: skip
        return list(rows)

    (sample,) = read()
    assert [(turn.role, turn.content) for turn in sample.turns] == [("user", "Hi"), ("assistant", "Hello")]
    with pytest.raises(DataError, match=r"dialog\[1\].speaker: unknown role 'agent'.* Map it with data.roles."):
        read(roles={})
    with pytest.raises(DataError, match=r"dialog\[0\].role: expected text, received null."):
        read(columns={"messages": "dialog", "content": "utterance"})


def test_notes_reach_the_caller(tmp_path: Path) -> None:
    data = built(tmp_path, [{"prompt": "a", "completion": "b", "tools": "[]"}])
    assert data.notes[:1] == (
        "a.jsonl: format prompt_completion, as its columns say (prompt, completion); "
        "format prompt_completion does not read tools.",
    )
    assert built(tmp_path, [{"prompt": "a", "completion": "b"}], format="prompt_completion").notes[:1] == ()
