"""Rows with labels: what is read, how labels are numbered, and which token has a word's label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import TOKENIZERS, byte_tokenizer

from ftune import builtin
from ftune.data.build import build_data, encode_split
from ftune.data.cache import Cache
from ftune.data.encoder import Encoder
from ftune.data.labelled import label_names
from ftune.data.render import Renderer
from ftune.data.samples import Samples, read_samples
from ftune.errors import DataError
from ftune.objectives import Objective
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.seq2seq_lm import Seq2SeqLM
from ftune.objectives.sequence_classification import SequenceClassification
from ftune.objectives.token_classification import TokenClassification
from ftune.recipe import Data

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")
SINGLE = SequenceClassification()
MULTI = SequenceClassification(problem="multi_label")
NUMBER = SequenceClassification(problem="regression")
TAGS = TokenClassification()


def read(folder: Path, objective: Objective, **values: Any) -> Samples:
    data = Data(**values)
    return read_samples(
        data, folder, accepted=objective.formats, seed=0, max_eval_rows=None, tick=lambda *_: None
    )  # fmt: skip


def encoded(folder: Path, objective: Objective, *, tokenizer: Any = None, max_length: int = 99, ends: bool = False,
            **values: Any) -> Any:  # fmt: skip
    samples = read(folder, objective, **values)
    data = Data(**values)
    renderer = Renderer(tokenizer or byte_tokenizer(), data.template)
    encoder = Encoder(data, objective, renderer, max_length, samples.labels, ends)
    return encode_split("train", samples.train, encoder, samples, tick=lambda *_: None, cache=Cache())


def jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_labels_are_numbered_by_size_or_by_name() -> None:
    assert label_names(["b", "a", "b"]) == ("a", "b")
    assert label_names(["10", "9", "-1"]) == ("-1", "9", "10")
    assert label_names(["10", "9", "x"]) == ("10", "9", "x")
    assert label_names([("c", "a"), (), ("b",)]) == ("a", "b", "c")
    assert label_names([1.5, 2.0, None]) == ()


def test_one_label(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": "b"}, {"text": "yy", "label": 3}, {"text": "z", "label": True}])
    split = encoded(tmp_path, SINGLE, train="a.jsonl")
    assert [example.labels.tolist() for example in split.examples] == [[2], [0], [1]]
    assert read(tmp_path, SINGLE, train="a.jsonl").labels == ("3", "True", "b")
    assert split.examples[1].ids.tolist() == list(b"yy")
    assert (split.report.rows, split.report.kept, split.report.targets) == (3, 3, 3)


def test_several_labels_and_none(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "x", "labels": ["b", "a", "b"]}, {"text": "y", "labels": []}])
    split = encoded(tmp_path, MULTI, train="a.jsonl")
    assert [example.labels.tolist() for example in split.examples] == [[1.0, 1.0], [0.0, 0.0]]
    assert split.report.targets == 4
    (tmp_path / "a.csv").write_text("text,labels\nx,b|a\ny,\n")
    table = encoded(tmp_path, MULTI, train="a.csv")
    assert [example.labels.tolist() for example in table.examples] == [[1.0, 1.0], [0.0, 0.0]]


def test_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1.5\ny,-2\n")
    split = encoded(tmp_path, NUMBER, train="a.csv")
    assert [example.labels.tolist() for example in split.examples] == [[1.5], [-2.0]]
    assert split.examples[0].labels.dtype == np.float32


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        (SINGLE, {"text": "x", "label": None}, "label: expected a label, received null."),
        (SINGLE, {"text": "x", "label": 1.5}, "label: expected a label, received float: '1.5'."),
        (SINGLE, {"text": "x", "label": " "}, "label: expected a label, received str: ' '."),
        (SINGLE, {"text": "", "label": "a"}, "text: is empty."),
        (MULTI, {"text": "x", "labels": [1.5]}, "labels: expected a list of labels, received list: '[1.5]'."),
        (NUMBER, {"text": "x", "label": "high"}, "label: expected a number, received str: 'high'."),
        (NUMBER, {"text": "x", "label": True}, "label: expected a number, received bool: 'True'."),
        (TAGS, {"tokens": ["a"], "tags": ["O", "O"]}, "tokens: has 1 words but 2 tags; expected one for each."),
        (TAGS, {"tokens": "a b", "tags": ["O"]}, "tokens: expected a list of words, received str: 'a b'."),
        (TAGS, {"tokens": ["a", ""], "tags": ["O", "O"]}, "tokens: expected a list of words, received list"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, objective: Objective, row: dict[str, Any], message: str) -> None:
    jsonl(tmp_path / "a.jsonl", [row, row])
    with pytest.raises(DataError) as caught:
        read(tmp_path, objective, train="a.jsonl", format=next(iter(objective.formats)))
    lines = str(caught.value).splitlines()
    assert f"a.jsonl:1 {message}" in lines[0] and "a.jsonl:2" in lines[1]


def test_a_label_of_held_out_rows_that_no_training_row_has(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": "spam"}, {"text": "y", "label": "ham"}])
    samples = read(tmp_path, SINGLE, train="a.jsonl")
    jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": "spma"}])
    other = read(tmp_path, SINGLE, train="b.jsonl")
    encoder = Encoder(Data(train="a.jsonl"), SINGLE, Renderer(byte_tokenizer(), None), 9, samples.labels, False)
    with pytest.raises(DataError, match=r"b.jsonl:1: label 'spma' is in no training row. Did you mean 'spam'\?"):
        encode_split("train", other.train, encoder, other, tick=lambda *_: None, cache=Cache())


def test_pairs_of_texts_and_templates(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = builtin.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 257), ("</s>", 258)]
    )
    jsonl(tmp_path / "a.jsonl", [{"text": "ab", "text_pair": "c", "label": "x"}, {"text": "d", "label": "y"}])
    split = encoded(tmp_path, SINGLE, tokenizer=tokenizer, train="a.jsonl")
    assert split.examples[0].ids.tolist() == [257, 97, 98, 258, 99, 258]
    jsonl(
        tmp_path / "b.jsonl",
        [{"premise": "ab", "claim": "c", "label": "x"}, {"premise": "d", "claim": "e", "label": "y"}],
    )
    template = "{{ premise }}>{{ claim }}"
    split = encoded(tmp_path, SINGLE, tokenizer=tokenizer, train="b.jsonl", template=template, format="classification")
    assert split.examples[0].ids.tolist() == [257, *b"ab>c", 258]


@pytest.mark.parametrize("policy", ["drop", "truncate", None])
def test_long_rows(tmp_path: Path, policy: str | None) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "abcdefgh", "label": "x"}, {"text": "d", "label": "y"}])
    if policy is None:
        with pytest.raises(DataError, match="has 9 tokens, more than max_length 5"):
            encoded(tmp_path, SINGLE, train="a.jsonl", max_length=5, ends=True)
        return
    split = encoded(tmp_path, SINGLE, train="a.jsonl", max_length=5, ends=True, overlong=policy)
    report = split.report
    assert report.rows == 2 == report.kept + sum(report.dropped.values())
    eos = byte_tokenizer().eos_token_id
    if policy == "truncate":
        assert split.examples[0].ids.tolist() == [*b"abcd", eos], "the end that an encoder-decoder looks for stays"
        assert report.truncated == 1
    else:
        assert len(split.examples) == 1 and report.dropped == {"overlong": 1}


SENTENCE = {"tokens": ["In", "Ångström", "x"], "tags": ["O", "B-p", "I-p"]}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("align", ["first", "last"])
def test_each_word_has_one_label_at_one_of_its_own_tokens(tmp_path: Path, name: str, align: Any) -> None:
    jsonl(tmp_path / "a.jsonl", [SENTENCE, {"tokens": ["a"], "tags": ["O"]}])
    tokenizer = TOKENIZERS[name]()
    split = encoded(tmp_path, TokenClassification(align=align), tokenizer=tokenizer, train="a.jsonl")
    example = split.examples[0]
    places = np.flatnonzero(example.is_target)
    labels = ("B-p", "I-p", "O")
    assert [labels[i] for i in example.labels[places]] == SENTENCE["tags"]
    letters = [tokenizer.decode([int(example.ids[place])]).strip() for place in places]
    assert letters[0] == ("I" if align == "first" else "n") and letters[2] == "x"
    assert len(example.is_target) == len(example.ids) == len(example.labels)


def test_words_that_merge_with_their_space_keep_their_label(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(merges=(("Ġ", "x"),))
    jsonl(tmp_path / "a.jsonl", [{"tokens": ["ab", "xy", "x"], "tags": ["A", "B", "C"]}])
    example = encoded(tmp_path, TokenClassification(), tokenizer=tokenizer, train="a.jsonl").examples[0]
    tokens = tokenizer.convert_ids_to_tokens(example.ids.tolist())
    assert tokens == ["a", "b", "Ġx", "y", "Ġx"]
    assert example.is_target.tolist() == [True, False, True, False, True]
    assert example.labels[example.is_target].tolist() == [0, 1, 2]


def test_words_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [SENTENCE])
    split = encoded(tmp_path, TokenClassification(), train="a.jsonl", max_length=4, overlong="truncate")
    assert split.examples[0].num_targets == 2
    assert any("1 words have no token of their own" in note for note in split.report.notes)


def test_conll_files(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O O\n\nIn\tO\nParis\tB-loc\n\t\n\nwe IN PRP O\nmet VB X B-x\n")
    samples = read(tmp_path, TokenClassification(), train="a.conll")
    assert [sample.words for sample in samples.train] == [("In", "Paris"), ("we", "met")]
    assert [sample.row.number for sample in samples.train] == [3, 7]
    assert samples.labels == ("B-loc", "B-x", "O")
    (tmp_path / "b.conll").write_text("In\tO\nParis\n")
    with pytest.raises(DataError, match="b.conll:2: expected a word and a tag, received 'Paris'"):
        read(tmp_path, TokenClassification(), train="b.conll")


def test_prompts_and_answers_of_an_encoder_decoder(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"source": "ab", "target": "é"}, {"source": "c", "target": "def"}])
    split = encoded(tmp_path, Seq2SeqLM(), train="a.jsonl", template="to fr: {{ source }}")
    eos = byte_tokenizer().eos_token_id
    first = split.examples[0]
    assert first.ids.tolist() == [*b"to fr: ab", eos]
    assert first.answer.tolist() == [*"é".encode(), eos] and first.is_target.all() and first.num_bytes == 2
    assert split.report.tokens == 10 + 3 + 9 + 4 and split.report.targets == 7
    cut = encoded(tmp_path, Seq2SeqLM(), train="a.jsonl", template="{{ source }}{{ source }}xyz", max_length=4,
                  overlong="truncate_prompt")  # fmt: skip
    assert cut.examples[0].ids.tolist() == [*b"xyz", eos], "the end of a long prompt stays"


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7, 8])
def test_a_cut_answer_is_not_taught_to_end(tmp_path: Path, limit: int) -> None:
    """Of an encoder-decoder and of a decoder alike; and its bytes are those that are left."""
    jsonl(tmp_path / "a.jsonl", [{"source": "ab", "target": "éü de"}])  # 7 bytes, and EOS
    (one,) = encoded(
        tmp_path, Seq2SeqLM(), train="a.jsonl", max_length=limit, overlong="truncate", template="{{ source }}"
    ).examples
    eos = byte_tokenizer().eos_token_id
    assert one.answer.tolist() == [*"éü de".encode(), eos][:limit]
    assert (eos in one.answer.tolist()) == (limit == 8)
    assert one.num_targets == limit
    assert one.num_bytes == {3: 4, 8: 7}.get(limit, limit)  # half of a letter counts as the whole of it
    assert one.ids.tolist() == [*b"ab", eos], "what is read keeps its end"
    (decoded,) = encoded(
        tmp_path, CausalLM(), train="a.jsonl", max_length=2 + limit, overlong="truncate", template="{{ source }}"
    ).examples
    assert decoded.ids[2:].tolist() == one.answer.tolist()
    assert (decoded.num_targets, decoded.num_bytes) == (one.num_targets, one.num_bytes)


def test_text_with_answers_and_text_without_do_not_mix(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "ab"}])
    jsonl(tmp_path / "b.jsonl", [{"source": "ab", "target": "é"}])
    with pytest.raises(DataError, match="1 rows have an answer and 1 are plain text"):
        encoded(tmp_path, Seq2SeqLM(), train=["a.jsonl", "b.jsonl"])


@needs_real
def test_real_sets(tmp_path: Path) -> None:
    tags = read(tmp_path, TokenClassification(), train=str(REAL / "wnut17" / "train.conll"))
    assert len(tags.train) == 3394 and len(tags.labels) == 13
    bank = read(tmp_path, SINGLE, train=str(REAL / "banking77" / "train.csv"), columns={"label": "category"})
    assert len(bank.train) == 10003 and len(bank.labels) == 77


@pytest.mark.parametrize(
    ("objective", "known", "unknown"),
    [
        (SINGLE, {"text": "x", "label": "spam"}, {"text": "x", "label": "spma"}),
        (MULTI, {"text": "x", "labels": ["spam"]}, {"text": "x", "labels": ["spam", "spma"]}),
        (TAGS, {"tokens": ["x"], "tags": ["spam"]}, {"tokens": ["x", "y"], "tags": ["spam", "spma"]}),
    ],
    ids=["one", "several", "tags"],
)
def test_unknown_labels_of_eval_and_test_are_named_together(
    tmp_path: Path, objective: Objective, known: dict[str, Any], unknown: dict[str, Any]
) -> None:
    jsonl(tmp_path / "train.jsonl", [known])
    jsonl(tmp_path / "eval.jsonl", [known, unknown])
    jsonl(tmp_path / "test.jsonl", [unknown, known, unknown])
    data = Data(train="train.jsonl", eval="eval.jsonl", test="test.jsonl")
    with pytest.raises(DataError) as caught:
        build_data(
            data, tmp_path, Renderer(byte_tokenizer(), None), objective, accepted=objective.formats, guard=[],
            max_length=99, seed=0, max_eval_rows=None, encoder_decoder=False, tick=lambda *_: None,
        )  # fmt: skip
    places = [(Path(problem.file).name, problem.row) for problem in caught.value.problems]
    assert places == [("eval.jsonl", 2), ("test.jsonl", 1), ("test.jsonl", 3)]
    assert all("'spma' is in no training row. Did you mean 'spam'?" in p.message for p in caught.value.problems)


def test_columns_that_are_missing_are_not_called_null(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"tags": ["O"], "words": ["x"]}])
    with pytest.raises(DataError, match="a.jsonl:1 tokens: is missing. Known: tags, words. Map it with data.columns."):
        read(tmp_path, TAGS, train="a.jsonl", format="token_labels")
    jsonl(tmp_path / "b.jsonl", [{"tokens": ["x"], "tags": None}])
    with pytest.raises(DataError, match="b.jsonl:1 tags: expected a list of labels, received null."):
        read(tmp_path, TAGS, train="b.jsonl")
    jsonl(tmp_path / "c.jsonl", [{"text": None, "label": "x"}])
    with pytest.raises(DataError, match="c.jsonl:1 text: expected text, received null."):
        read(tmp_path, SINGLE, train="c.jsonl")
