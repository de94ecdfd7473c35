"""What `ftune data` shows is what training sees: for every objective, method, format, tokenizer and policy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import FAMILIES, TOKENIZERS

from ftune import builtin, methods
from ftune.data.encode import Example
from ftune.data.order import window
from ftune.data.pack import Cut
from ftune.data.view import Side, View, view_json
from ftune.data_view import Request, Seen, look_at_rows, splits_of
from ftune.errors import RecipeError
from ftune.load import load_recipe

WORDS = ["red", "ünï", "🙂", "the", "sea", "of", "green"]
TEXTS = [{"text": " ".join(WORDS[i % 3 : 3 + i % 4]) + f" {i * 7}!"} for i in range(9)]
PAIRS = [{"prompt": f"{i} + ü{i} =", "completion": f" {2 * i} 🙂" * (1 + i % 3)} for i in range(9)]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It is {i} 🙂."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"Then {i + 1}."},
        ][i % 2 :]
    }
    for i in range(6)
]
LABELLED = [{"text": f"{WORDS[i % 5]} {i}", "label": WORDS[i % 3]} for i in range(9)]
MULTI = [{"text": f"{WORDS[i % 5]} {i}", "labels": WORDS[: i % 3]} for i in range(9)]
NUMBERS = [{"text": f"{WORDS[i % 5]} {i}", "label": i / 4} for i in range(9)]
TAGGED = [{"tokens": WORDS[: 2 + i % 5], "tags": ["B-x", "O", "I-x", "O", "B-y", "O"][: 2 + i % 5]} for i in range(9)]
MULTI_LABEL = {"name": "sequence_classification", "problem": "multi_label"}
REGRESSION = {"name": "sequence_classification", "problem": "regression"}
CASES: dict[str, tuple[Any, str, list[dict[str, Any]], dict[str, Any]]] = {
    "text": ("causal_lm", "llama", TEXTS, {}),
    "split_text": ("causal_lm", "gpt2", TEXTS, {"max_length": 9}),
    "prompts": ("causal_lm", "llama", PAIRS, {}),
    "a_template": ("causal_lm", "qwen3", PAIRS, {"template": "Q: {{ prompt }}\nA:"}),
    "chats": ("causal_lm", "gemma3", CHATS, {}),
    "last_turns": ("causal_lm", "llama", CHATS, {"train_on": "last"}),
    "all_of_chats": ("causal_lm", "llama", CHATS, {"train_on": "all"}),
    "shortened": ("causal_lm", "llama", PAIRS, {"max_length": 46, "overlong": "truncate_prompt"}),
    "hidden": ("masked_lm", "bert", TEXTS, {}),
    "hidden_windows": ("masked_lm", "bert", TEXTS, {"max_length": 12}),
    "spans_out": ("seq2seq_lm", "bart", TEXTS, {}),
    "sides": ("seq2seq_lm", "t5", PAIRS, {}),
    "short_sides": ("seq2seq_lm", "bart", PAIRS, {"max_length": 16, "overlong": "truncate"}),
    "labels": ("sequence_classification", "bert", LABELLED, {}),
    "label_sets": (MULTI_LABEL, "llama", MULTI, {"format": "multi_label"}),
    "values": (REGRESSION, "t5", NUMBERS, {"format": "regression"}),
    "tags": ("token_classification", "bert", TAGGED, {}),
    "tags_at_the_end": ({"name": "token_classification", "align": "last"}, "llama", TAGGED, {}),
}


def look(
    folder: Path, rows: list[dict[str, Any]], request: Request | None = None, model: str = "llama", **sections: Any
) -> Seen:
    """Look at rows through a recipe; `data` is laid over its own."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": "rows.jsonl", **sections.pop("data", {})}
    values = {"model": f"builtin:tiny-{model}", "method": "full", "data": data, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return look_at_rows(load_recipe(folder / "recipe.yaml"), request or Request(rows=100), lambda *progress: None)


def case(folder: Path, name: str, **sections: Any) -> Seen:
    objective, model, rows, data = CASES[name]
    return look(folder, rows, model=model, objective=objective, data=data, **sections)


def pieces(ids: np.ndarray, is_target: np.ndarray, tokenizer: Any) -> list[str]:
    """What each run of supervised ids spells, by transformers' own decoder."""
    runs = itertools.groupby(zip(ids.tolist(), is_target.tolist(), strict=True), key=lambda pair: pair[1])
    return [
        tokenizer.decode([i for i, _ in run], clean_up_tokenization_spaces=False)
        for is_learned, run in runs
        if is_learned
    ]


def spelled(side: Side) -> list[str]:
    return [side.text[span.start : span.end] for span in side.spans]


def drawn(seen: Seen, seed: int = 0) -> list[Example]:
    """Every example of the first epoch as training sees it."""
    examples = seen.rows.dataset.train.examples
    whole = window(examples, 0, batch_size=len(examples), cut=Cut(len(examples)), seed=seed, draw=seen.rows.draw)
    found = [example for batch in whole.micro_batches for example in batch]
    assert len(found) == len(examples)
    return found


# the same as training


@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_is_what_training_reads_and_learns(tmp_path: Path, name: str) -> None:
    seen = case(tmp_path, name)
    shown = {(tuple(t.id for t in view.reads.tokens), _written(view), _learned(view)) for view in seen.views}
    trained = set()
    for example in drawn(seen):
        answer = () if example.answer is None else tuple(example.answer.tolist())
        of_row = CASES[name][0] in ("sequence_classification", MULTI_LABEL, REGRESSION)
        mask = () if of_row else tuple(example.is_target.tolist())
        trained.add((tuple(example.ids.tolist()), answer, mask))
    assert shown == trained
    assert len(seen.views) == len(seen.rows.dataset.train.examples)


def _written(view: View) -> tuple[int, ...]:
    return () if view.writes is None else tuple(token.id for token in view.writes.tokens)


def _learned(view: View) -> tuple[bool, ...]:
    if view.labels is not None or view.value is not None:
        return ()
    return tuple(token.target for token in view.sides[-1].tokens)


@pytest.mark.parametrize("name", CASES)
def test_spans_are_what_supervised_tokens_spell(tmp_path: Path, name: str) -> None:
    seen = case(tmp_path, name)
    tokenizer, split = seen.rows.tokenizer, seen.rows.dataset.train
    cut_characters = 0
    for view, example in zip(seen.views, split.examples, strict=True):
        side = view.sides[-1]
        assert side.text == tokenizer.decode([t.id for t in side.tokens], clean_up_tokenization_spaces=False)
        ids, mask = np.array([t.id for t in side.tokens]), np.array([t.target for t in side.tokens])
        if view.labels is not None or view.value is not None:
            assert side.spans == ()
            continue
        if view.words is not None:
            expected = [tokenizer.decode([i]) for i in ids[mask].tolist()]
        else:
            expected = pieces(ids, mask, tokenizer)
        good = [(got, want) for got, want in zip(spelled(side), expected, strict=True) if "\ufffd" not in want]
        cut_characters += len(expected) - len(good)
        assert all(got == want for got, want in good)
        assert [span.start for span in side.spans] == sorted(span.start for span in side.spans)
        if CASES[name][0] == "masked_lm":
            hidden = pieces(example.ids, mask, tokenizer)
            assert [span.target for span in side.spans] == hidden
        elif view.words is None:
            assert [span.target for span in side.spans] == spelled(side)
    windows = name in ("text", "split_text", "hidden_windows", "short_sides", "hidden", "tags", "tags_at_the_end")
    assert windows or not cut_characters, "elsewhere, no span begins or ends inside of a character"


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_every_tokenizer_and_template(tmp_path: Path, tokens: str, family: str) -> None:
    """The model is a folder with a configuration and a tokenizer, and no weights."""
    tokenizer = TOKENIZERS[tokens](template=FAMILIES[family].template)
    tokenizer.save_pretrained(tmp_path / "base")
    builtin.config("llama").save_pretrained(tmp_path / "base")
    rows = [row for row in CHATS if FAMILIES[family].system or row["messages"][0]["role"] == "user"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"model": "./base", "method": "lora", "data": {"train": "rows.jsonl"}}), encoding="utf-8"
    )
    seen = look_at_rows(load_recipe(tmp_path / "recipe.yaml"), Request(rows=100), lambda *progress: None)
    end = FAMILIES[family].terminator
    space = " " if family in ("mistral", "plain") else ""
    for view, row in zip(seen.views, rows, strict=True):
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        expected = [space + answer + end for answer in answers]
        expected[-1] += "" if end else "</s>"
        assert spelled(view.reads) == expected
        assert [t.id for t in view.reads.tokens if t.target and t.special][-1] in seen.rows.renderer.stop_ids


@pytest.mark.parametrize("method", methods.names())
def test_every_method(tmp_path: Path, method: str) -> None:
    """Which weights learn changes nothing of the rows, but for tokens that are added."""
    kind = methods.load(method)
    if "causal_lm" in kind.objectives:
        rows, objective, sections = (TEXTS if method == "domain" else PAIRS), "causal_lm", {}
    else:
        rows, objective, sections = LABELLED, "sequence_classification", {}
    seen = look(tmp_path, rows, objective=objective, method=method, **sections)
    assert len(seen.views) == 9
    if method == "lora":
        block = {"name": "lora", "new_tokens": ["<call>"]}
        (view,) = look(tmp_path, [{"prompt": "a", "completion": "<call>b"}], method=block).views
        assert [(t.id, t.target) for t in view.reads.tokens if t.id >= 263] == [(263, True)]
        assert spelled(view.reads) == ["<call>b<|im_end|>"]


# labels, words, windows, cuts


def test_labels_have_their_numbers_and_names(tmp_path: Path) -> None:
    seen = case(tmp_path, "labels")
    names = seen.rows.dataset.labels
    assert names == ("red", "ünï", "🙂")
    assert [view.labels for view in seen.views[:4]] == [((i, names[i]),) for i in (0, 1, 2, 0)]
    assert view_json(seen.views[1], tokens=False)["labels"] == [{"id": 1, "name": "ünï"}]
    sets = case(tmp_path, "label_sets")
    assert [view.labels for view in sets.views[:3]] == [(), ((0, "red"),), ((0, "red"), (1, "ünï"))]
    assert view_json(sets.views[0], tokens=False)["labels"] == []
    values = case(tmp_path, "values")
    assert [view.value for view in values.views[:3]] == [0.0, 0.25, 0.5]
    assert "labels" not in view_json(values.views[0], tokens=False)


@pytest.mark.parametrize(("name", "where"), [("tags", 0), ("tags_at_the_end", -1)])
def test_each_word_has_its_label_on_one_of_its_tokens(tmp_path: Path, name: str, where: int) -> None:
    for view, row in zip(case(tmp_path, name).views, TAGGED, strict=True):
        assert view.words is not None
        assert [(word.word, word.label) for word in view.words] == list(zip(row["tokens"], row["tags"], strict=True))
        text = " ".join(row["tokens"])
        for word in view.words:
            token = view.reads.tokens[word.token]
            letter = (word.word or "")[where]
            assert view.reads.text[token.start : token.end] == letter
            assert token.label == word.label
        assert text in view.reads.text


def test_words_of_a_cut_row_keep_their_names(tmp_path: Path) -> None:
    data = {"max_length": 9, "overlong": "truncate"}
    (view,) = look(tmp_path, TAGGED[4:5], model="bert", objective="token_classification", data=data).views
    assert view.words is not None
    assert [word.word for word in view.words] == ["red", "ünï"]
    (cut,) = view.reads.cuts
    whole = " ".join(TAGGED[4]["tokens"]).encode()
    kept = view.reads.text[: cut.at].encode()
    assert len(kept) + cut.tokens == len(whole)


def test_windows_are_numbered_and_lay_the_text_end_to_end(tmp_path: Path) -> None:
    seen = look(tmp_path, [{"text": "a short one"}, {"text": "abcdefghijklmnopqrstuvwxyz"}], data={"max_length": 9})
    assert [(v.row, v.window, v.windows) for v in seen.views] == [
        (1, 1, 2), (1, 2, 2), (2, 1, 4), (2, 2, 4), (2, 3, 4), (2, 4, 4),
    ]  # fmt: skip
    letters = [view.reads.text for view in seen.views[2:]]
    assert letters[0] + "".join(text[1:] for text in letters[1:]) == "abcdefghijklmnopqrstuvwxyz</s>"
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(letters))
    hidden = look(tmp_path, [{"text": "abcdefgh"}], model="bert", objective="masked_lm", data={"max_length": 5})
    assert [(view.window, view.windows) for view in hidden.views] == [(1, 2), (2, 2)]


THINKING = (Path(__file__).parents[1] / "golden" / "templates" / "qwen_thinking.jinja").read_text(encoding="utf-8")
TALK = {
    "messages": [
        {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "No."},
    ]
}  # fmt: skip


def test_answers_that_are_examples_of_their_own_are_numbered(tmp_path: Path) -> None:
    rows = [{"messages": TALK["messages"][:2]}, TALK, TALK]
    seen = look(tmp_path, rows, data={"template": THINKING})
    assert [(v.row, v.window, v.windows, v.answers, v.part) for v in seen.views] == [
        (1, 1, 1, False, ""), (2, 1, 2, True, "answer 1 of 2"), (2, 2, 2, True, "answer 2 of 2"),
        (3, 1, 2, True, "answer 1 of 2"), (3, 2, 2, True, "answer 2 of 2"),
    ]  # fmt: skip
    assert [spelled(view.reads) for view in seen.views[1:3]] == [
        ["<think>\nhm\n</think>\n\nYes.<|im_end|>"], ["<think>\n\n</think>\n\nNo.<|im_end|>"],
    ]  # fmt: skip
    assert "hm" not in seen.views[2].reads.text
    shown = [view_json(view, tokens=False) for view in seen.views]
    assert [one.get("parts") for one in shown] == [None, "answers", "answers", "answers", "answers"]
    (second,) = look(tmp_path, rows, Request(number=2, rows=1), data={"template": THINKING}).views
    assert second == seen.views[1]


def test_answers_that_were_cut_or_left_out_are_shown_whole(tmp_path: Path) -> None:
    long = {"messages": [*TALK["messages"][:2], {"role": "user", "content": "x" * 70}, TALK["messages"][3]]}
    data = {"template": THINKING, "max_length": 130}
    first, second, single = look(tmp_path, [long, TALK][:2], data={**data, "overlong": "truncate"}).views[:3]
    assert (first.reads.cuts, second.windows, single.row) == ((), 2, 2)
    (cut,) = second.reads.cuts
    assert (cut.at, second.reads.text[: cut.at][-4:]) == (len(second.reads.text), ">\n\n<")
    rows = [*[TALK] * 9, long]
    left = look(tmp_path, rows, Request(number=10), data={**data, "overlong": "drop", "max_dropped": "10%"}).views
    assert [(view.part, view.dropped) for view in left] == [
        ("answer 1 of 2", "overlong"),
        ("answer 2 of 2", "overlong"),
    ]
    assert left[1].reads.text.endswith("No.<|im_end|>")


@pytest.mark.parametrize("policy", ["truncate_prompt", "truncate"])
def test_a_cut_is_where_tokens_are_missing(tmp_path: Path, policy: str) -> None:
    row = {"prompt": "0123456789" * 3, "completion": "abcdefghij"}
    data = {"template": "{{ prompt }}", "max_length": 35, "overlong": policy}
    (view,) = look(tmp_path, [row], data=data).views
    (cut,) = view.reads.cuts
    assert cut.tokens == 30 + 10 + 1 - 35
    assert cut.at == (0 if policy == "truncate_prompt" else 35)
    assert spelled(view.reads) == ["abcdefghij</s>" if policy == "truncate_prompt" else "abcde"]


def test_cuts_on_both_sides_and_before_the_end(tmp_path: Path) -> None:
    row = {"source": "0123456789", "target": "abcdefghij"}
    data = {"template": "{{ source }}", "max_length": 6, "overlong": "truncate"}
    (view,) = look(tmp_path, [row], model="t5", objective="seq2seq_lm", data=data).views
    assert view.writes is not None
    assert (view.reads.text, view.writes.text) == ("01234</s>", "abcdef")
    assert [(c.at, c.tokens) for c in view.reads.cuts] == [(5, 5)], "before the end that every text has"
    assert [(c.at, c.tokens) for c in view.writes.cuts] == [(6, 5)]
    data = {"max_length": 12, "overlong": "truncate"}
    texts = [{"text": "abcdefghijklmnopqrstuvwxyz"}]
    (view,) = look(tmp_path, texts, model="bart", objective="seq2seq_lm", data=data).views
    assert view.writes is not None
    assert view.reads.text.endswith("</s>")
    assert [(len(view.reads.text) - c.at, c.tokens) for c in view.reads.cuts] == [(len("</s>"), 15)]
    assert [(view.writes.text[: c.at], c.tokens) for c in view.writes.cuts] == [("abcdefghijk", 15)]
    (view,) = look(tmp_path, texts, model="bert", objective="masked_lm", data=data).views
    assert [(len(view.reads.text) - c.at, c.tokens) for c in view.reads.cuts] == [(len("</s>"), 15)]


def test_what_was_not_cut_has_no_cut(tmp_path: Path) -> None:
    seen = case(tmp_path, "shortened")
    assert seen.rows.dataset.train.report.truncated == sum(bool(view.reads.cuts) for view in seen.views) > 0
    assert any(not view.reads.cuts for view in seen.views)


# which rows


def test_first_rows_and_how_many(tmp_path: Path) -> None:
    assert [view.row for view in look(tmp_path, PAIRS, Request(rows=3)).views] == [1, 2, 3]
    assert look(tmp_path, PAIRS, Request(rows=0)).views == []
    assert len(look(tmp_path, PAIRS, Request(rows=99)).views) == 9


def test_shuffled_rows_are_the_first_epoch(tmp_path: Path) -> None:
    seen = look(tmp_path, PAIRS, Request(rows=4, shuffle=True), seed=3)
    first = window(seen.rows.dataset.train.examples, 0, batch_size=4, cut=Cut(4), seed=3)
    assert {view.row for view in seen.views} == {
        example.number for (batch,) in [first.micro_batches] for example in batch
    }
    assert [v.row for v in look(tmp_path, PAIRS, Request(rows=9, shuffle=True), seed=4).views] != [
        v.row for v in look(tmp_path, PAIRS, Request(rows=9, shuffle=True), seed=3).views
    ]


def test_a_row_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,completion\n"two\nlines",a\nb,c\n', encoding="utf-8")
    values = {"model": "builtin:tiny-llama", "method": "full", "data": {"train": ["rows.csv", "more/rows.jsonl"]}}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")

    def places(**wanted: Any) -> list[tuple[str, int]]:
        seen = look_at_rows(load_recipe(tmp_path / "recipe.yaml"), Request(**wanted), lambda *progress: None)
        return [(Path(view.file).name, view.row) for view in seen.views]

    assert places(number=4) == [("rows.csv", 4), ("rows.jsonl", 4)]
    assert places(number=4, file="rows.jsonl") == [("rows.jsonl", 4)]
    assert places(number=4, file="more/rows.jsonl") == [("rows.jsonl", 4)]
    assert places(number=4, file=str(tmp_path / "rows.csv")) == [("rows.csv", 4)]
    assert places(number=2, file="rows.csv") == [("rows.csv", 2)]
    with pytest.raises(RecipeError, match=r"train has no ows\.csv:2"):
        places(number=2, file="ows.csv")
    with pytest.raises(RecipeError, match="train has no row 3 *"):
        look(tmp_path, PAIRS[:2], Request(number=3))


def test_a_dropped_row_is_shown_with_the_reason(tmp_path: Path) -> None:
    """One of 200, so that no limit of losses is met."""
    rows = [{"prompt": f"{i}", "completion": "x"} for i in range(199)]
    long = {"prompt": "p" * 30, "completion": "answer"}
    data = {"template": "{{ prompt }}", "max_length": 20, "overlong": "drop"}
    (view,) = look(tmp_path, [*rows, long], Request(number=200), data=data).views
    assert (view.dropped, len(view.reads.tokens), spelled(view.reads)) == ("overlong", 37, ["answer</s>"])
    data["overlong"] = "truncate"
    (view,) = look(tmp_path, [*rows, long], Request(number=200), data=data).views
    assert (view.dropped, spelled(view.reads)) == ("no_targets", ["answer</s>"])
    assert view_json(view, tokens=False)["dropped"] == "no_targets"


def test_rows_that_are_elsewhere(tmp_path: Path) -> None:
    rows = [*PAIRS, PAIRS[0]]
    data = {"eval": "30%"}
    seen = look(tmp_path, rows, data=data)
    known = {name: {e.number for e in split.examples} for name, split in splits_of(seen.rows).items()}
    assert known["train"] | known["eval"] == set(range(1, 10))
    held = min(known["eval"])
    with pytest.raises(RecipeError, match=rf"train has no row {held}\. It is in eval: add --split eval"):
        look(tmp_path, rows, Request(number=held), data=data)
    (view,) = look(tmp_path, rows, Request(number=held, split="eval"), data=data).views
    assert view.row == held
    with pytest.raises(RecipeError, match="1 exact duplicates of other rows are left out"):
        look(tmp_path, rows, Request(number=10), data=data)
    with pytest.raises(RecipeError, match="the recipe has no test rows. It has: train, eval"):
        look(tmp_path, rows, Request(split="test"), data=data)


def test_held_out_rows_hide_what_every_evaluation_hides(tmp_path: Path) -> None:
    from ftune.data.order import derived_seed

    seen = look(
        tmp_path,
        TEXTS,
        Request(split="eval", rows=100),
        model="bert",
        objective="masked_lm",
        data={"eval": "rows.jsonl"},
    )
    assert seen.rows.draw is not None
    held = seen.rows.dataset.eval
    assert held is not None
    for i, view in enumerate(seen.views):
        expected = seen.rows.draw(held.examples[i], derived_seed("held-out", i))
        assert [token.id for token in view.reads.tokens] == expected.ids.tolist()


def test_a_weight_is_said_and_not_shown_again(tmp_path: Path) -> None:
    source = {"path": "rows.jsonl", "weight": 2.5}
    seen = look(tmp_path, PAIRS, data={"train": [source]})
    assert (len(seen.rows.dataset.train.examples), seen.rows.dataset.train.per_epoch) == (9, 22)
    assert [view.row for view in seen.views] == list(range(1, 10))
    assert sorted(view.times for view in seen.views) == [2.5] * 9
    assert all((view.window, view.windows) == (1, 1) for view in seen.views)
    text = [{"text": "abcdefghijklmnop"}]
    seen = look(tmp_path, text, data={"train": [{"path": "rows.jsonl", "weight": 2}], "max_length": 9})
    assert [(view.window, view.windows, view.times) for view in seen.views] == [(1, 2, 2), (2, 2, 2)]
