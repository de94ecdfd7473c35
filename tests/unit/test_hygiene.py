"""Duplicates, splits by column and by label, leaks and weights, from the recipe to the report."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import byte_tokenizer
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data.build import Dataset, Samples, build_data, read_samples
from ftune.data.cache import Cache
from ftune.data.render import Renderer
from ftune.errors import DataError, RecipeError
from ftune.facts import facts_of_data
from ftune.load import load_recipe
from ftune.objectives import Objective
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.sequence_classification import SequenceClassification
from ftune.recipe import Data, Source


def read(folder: Path, objective: Objective | None = None, seed: int = 0, **values: Any) -> Samples:
    accepted = (objective or CausalLM()).formats
    return read_samples(
        Data(**values), folder, accepted=accepted, seed=seed, max_eval_rows=None, tick=lambda *_: None
    )  # fmt: skip


def build(folder: Path, **values: Any) -> Dataset:
    data = Data(**values)
    return build_data(
        data, folder, Renderer(byte_tokenizer(), data.template), CausalLM(), max_length=1000, seed=0, guard=[],
        max_eval_rows=None, accepted=CausalLM().formats, encoder_decoder=False, tick=lambda *_: None,
    )  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} = ", "completion": str(2 * i), **more} for i in numbers]


SENTENCES = [f"The {i} of the {i + 1} rows that we have here says {i * i} about it" for i in range(40)]


# splits


def test_rows_with_the_same_value_of_a_column_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": "yes", "patient": f"p{i % 25}"} for i in range(200)]
    write(tmp_path / "a.jsonl", rows)
    for seed in range(3):
        found = read(tmp_path, train="a.jsonl", eval="20%", group_by="patient", seed=seed)
        assert (len(found.train), len(found.eval)) == (160, 40)
        sides = [{rows[sample.row.number - 1]["patient"] for sample in side} for side in (found.train, found.eval)]
        assert [len(side) for side in sides] == [20, 5]
        assert not sides[0] & sides[1]
    plain = read(tmp_path, train="a.jsonl", eval="20%")
    assert {rows[s.row.number - 1]["patient"] for s in plain.train} & {
        rows[s.row.number - 1]["patient"] for s in plain.eval
    }


def test_a_row_without_a_group_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*pairs(1, 2, patient="x"), *pairs(3, patient=None), *pairs(4)])
    with pytest.raises(DataError) as caught:
        read(tmp_path, train="a.jsonl", eval="20%", group_by="patient")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/a.jsonl:3 patient: expected a value to group by (data.group_by), received null.",
        f"{tmp_path}/a.jsonl:4 patient: is missing. data.group_by names it.",
    ]


def test_labels_keep_their_shares(tmp_path: Path) -> None:
    labels = ["a"] * 200 + ["b"] * 80 + ["c"] * 20 + ["once"]
    write(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])
    for seed in range(3):
        found = read(tmp_path, SequenceClassification(), seed, train="a.jsonl", eval="10%", stratify=True)
        assert Counter(sample.label for sample in found.eval) == {"a": 20, "b": 8, "c": 2}
        assert found.notes == ["stratify: only one group has these labels, and it is trained on: once."]
    plain = [read(tmp_path, SequenceClassification(), seed, train="a.jsonl", eval="10%") for seed in range(3)]
    assert any(Counter(sample.label for sample in found.eval)["b"] != 8 for found in plain)
    assert plain[0].notes == []


def test_groups_and_labels_at_once(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 4 == 0], "author": i // 4} for i in range(400)]
    write(tmp_path / "a.jsonl", rows)
    found = read(tmp_path, SequenceClassification(), train="a.jsonl", eval="10%", group_by="author", stratify=True)
    assert Counter(sample.label for sample in found.eval) == {"a": 30, "b": 10}
    sides = [{rows[sample.row.number - 1]["author"] for sample in side} for side in (found.train, found.eval)]
    assert not sides[0] & sides[1]


# leaks


def leaky(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": text, "completion": f"answer {i}"} for i, text in enumerate(SENTENCES)]
    write(folder / "train.jsonl", rows[:30])
    write(folder / "eval.jsonl", [rows[3], {"prompt": SENTENCES[7].upper() + "?", "completion": "other"}, *rows[30:35]])
    write(folder / "test.jsonl", [*rows[35:], rows[20]])
    return {"train": "train.jsonl", "eval": "eval.jsonl", "test": "test.jsonl", "near_duplicates": 0.95}


def test_leaks_are_counted_and_named(tmp_path: Path) -> None:
    built = build(tmp_path, **leaky(tmp_path))
    notes = [note.replace(f"{tmp_path}/", "") for note in built.train.report.notes]
    assert notes == [
        "leakage: 2 of 7 rows of eval are also in train: 1 word for word, 1 nearly (similarity >= 0.95).",
        "leakage: 1 of 6 rows of test are also in train: 1 word for word, 0 nearly (similarity >= 0.95).",
        "leakage: train.jsonl:4 ~ eval.jsonl:1 (word for word)",
        "leakage: train.jsonl:8 ~ eval.jsonl:2 (1.00)",
        "leakage: train.jsonl:21 ~ test.jsonl:6 (word for word)",
    ]
    assert (built.train.report.rows, built.train.report.kept, built.train.report.dropped) == (30, 30, {})


def test_leaked_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    built = build(tmp_path, **leaky(tmp_path), leakage="drop")
    report = built.train.report
    assert (report.rows, report.kept, report.dropped) == (30, 27, {"leaked": 3})
    assert {4, 8, 21}.isdisjoint(sample.row.number for sample in built.train.samples)
    assert built.eval is not None
    assert built.test is not None
    assert (built.eval.report.rows, built.test.report.rows) == (7, 6)


def test_leaks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build(tmp_path, **leaky(tmp_path), leakage="error")
    assert caught.value.exit_code == 3
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines()[1:] == [
        "train.jsonl:4: of train is also in eval, word for word: eval.jsonl:1.",
        "train.jsonl:8: of train is also in eval, nearly, with similarity 1.00: eval.jsonl:2.",
        "train.jsonl:21: of train is also in test, word for word: test.jsonl:6.",
    ]
    clean = leaky(tmp_path) | {"eval": None, "test": None}
    assert build(tmp_path, **clean, leakage="error").train.report.notes == []


def test_dropping_everything_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(1, 2))
    with pytest.raises(DataError, match="every training row is also in eval or test"):
        build(tmp_path, train="a.jsonl", eval="a.jsonl", leakage="drop")


def test_a_held_out_share_is_looked_at_too(tmp_path: Path) -> None:
    """Near duplicates are of different groups, so a split may part them."""
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(20)) for _ in range(40)]
    rows = [{"prompt": text + end, "completion": "yes"} for text in texts for end in (" today", " now today")]
    write(tmp_path / "a.jsonl", rows)
    found = read(tmp_path, train="a.jsonl", eval="25%")
    parted = {s.turns[0].content[:40] for s in found.train} & {s.turns[0].content[:40] for s in found.eval}
    assert found.leaks.near == len(parted) > 5
    dropped = read(tmp_path, train="a.jsonl", eval="25%", leakage="drop")
    assert len(dropped.leaked) == len(found.leaks.train)
    assert [sample.row.number for sample in dropped.eval] == [sample.row.number for sample in found.eval]
    assert read(tmp_path, train="a.jsonl", eval="25%", near_duplicates=None).leaks.near == 0


# weights


def test_weights_of_sources(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(10)))
    write(tmp_path / "b.jsonl", pairs(*range(100, 140)))
    built = build(tmp_path, train=["a.jsonl", Source(path="b.jsonl", weight=0.25)])
    train = built.train
    assert train.mix is not None
    assert (len(train.examples), train.per_epoch, train.mix.per_epoch) == (50, 20, (10, 10))
    assert train.report.notes[0].startswith(
        "weights: an epoch sees 20 examples: 10 of 10 from a.jsonl (weight 1), 10 of 40 from b.jsonl (weight 0.25)."
    )
    tokens = [example.num_tokens for example in train.examples]
    assert train.report.tokens == round(sum(tokens[:10]) + sum(tokens[10:]) / 4)
    facts = facts_of_data(built)
    assert (facts.examples, facts.rows, facts.tokens) == (20, 50, train.report.tokens)
    assert (train.report.rows, train.report.kept, train.report.dropped) == (50, 50, {})


def test_a_weight_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(10)))
    prints = {
        build(tmp_path, train=[Source(path="a.jsonl", weight=weight)]).train.fingerprint for weight in (0.5, 0.6, 1, 2)
    }
    assert len(prints) == 4
    plain = build(tmp_path, train="a.jsonl").train
    assert plain.mix is None
    assert plain.fingerprint in prints  # a weight of 1 is none


def test_weights_reach_the_plan_and_what_is_never_seen_is_said(tmp_path: Path) -> None:
    from ftune.prepare import prepare

    write(tmp_path / "a.jsonl", pairs(*range(10)))
    write(tmp_path / "b.jsonl", pairs(*range(100, 140)))
    (tmp_path / "r.yaml").write_text(
        "model: builtin:tiny-llama\nmethod: lora\n"
        "data: {train: [a.jsonl, {path: b.jsonl, weight: 0.25}]}\ntrain: {duration: 3 epochs, batch_size: 8}\n"
    )
    prepared = prepare(load_recipe(tmp_path / "r.yaml", (f"output_dir={tmp_path / 'run'}",)), lambda *_: None)
    assert (prepared.plan.examples, prepared.plan.steps_per_epoch, prepared.plan.steps) == (20, 3, 9)
    assert prepared.dataset.train.report.notes[1:] == [
        "weights: 10 of 40 examples of b.jsonl are not seen in the 9 steps of this run."
    ]


# keys


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            "data: {train: a.jsonl, eval: b.jsonl, group_by: patient}",
            "data.group_by: has no effect unless data.eval is a share such as '5%'. Remove it.",
        ),
        (
            "data: {train: a.jsonl, stratify: true}\nobjective: sequence_classification",
            "data.stratify: has no effect unless data.eval is a share such as '5%'. Remove it.",
        ),
        (
            "data: {train: a.jsonl, eval: 5%, stratify: true}",
            "data.stratify: keeps shares of labels; rows of causal_lm have none. Remove it.",
        ),
        (
            "data: {train: a.jsonl, leakage: drop}",
            "data.leakage: has no effect without data.eval or data.test. Remove it.",
        ),
        (
            "data: {train: a.jsonl, near_duplicates: 0.7}",
            "data.near_duplicates: has no effect without data.eval or data.test. Remove it.",
        ),
        (
            "data: {train: a.jsonl, test: b.jsonl, near_duplicates: 0}",
            "data.near_duplicates: expected 'auto' or a number above 0, received 0.",
        ),
        (
            "data: {train: a.jsonl, test: b.jsonl, near_duplicates: 1.5}",
            "data.near_duplicates: expected 'auto' or a number at most 1, received 1.5.",
        ),
        (
            "data: {train: a.jsonl, test: b.jsonl, leakage: drp}",
            "data.leakage: expected 'warn', 'drop' or 'error' (did you mean 'drop'?), received 'drp'.",
        ),
    ],
)
def test_keys_that_cannot_be_obeyed(tmp_path: Path, recipe: str, line: str) -> None:
    (tmp_path / "r.yaml").write_text(f"model: builtin:tiny-llama\n{recipe}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", ())
    (problem,) = caught.value.problems
    assert f"{problem.path}: {problem.message}" == line


@pytest.mark.parametrize(
    "keys",
    ["group_by: patient", "near_duplicates: null", "near_duplicates: 0.5", "near_duplicates: 1", "leakage: error"],
)
def test_keys_that_can(tmp_path: Path, keys: str) -> None:
    (tmp_path / "r.yaml").write_text(f"model: builtin:tiny-llama\ndata: {{train: a.jsonl, eval: 5%, {keys}}}\n")
    assert load_recipe(tmp_path / "r.yaml", ()).recipe.data.eval == "5%"


def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each search for leaks reads."""
    from ftune.data import hygiene

    read: list[int] = []
    original = hygiene.find_leaks

    def counted(train: Any, *arguments: Any, **options: Any) -> Any:
        read.append(len(train))
        return original(train, *arguments, **options)

    monkeypatch.setattr(hygiene, "find_leaks", counted)
    return read


def test_a_second_start_does_not_search_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": f"how do I change the number {i} of my card today please", "completion": "so"} for i in range(40)
    ]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "t.jsonl", [*rows[:2], {"prompt": rows[5]["prompt"] + " thanks", "completion": "so"}])
    read = searches(monkeypatch)

    def found(**values: Any) -> Samples:
        data = Data(train="a.jsonl", test="t.jsonl", **values)
        return read_samples(
            data, tmp_path, accepted=CausalLM().formats, seed=0, max_eval_rows=None, tick=lambda *_: None,
            cache=Cache(tmp_path / "cache"),
        )  # fmt: skip

    first, second = found(), found(leakage="drop")
    assert read == [40]
    assert first.leaks.notes() == second.leaks.notes() and first.leaks.pairs == second.leaks.pairs
    assert (first.leaks.exact, first.leaks.near, len(second.leaked)) == (2, 1, len(first.leaks.train))
    found(near_duplicates=0.5)
    assert read == [40, 40]
    other = {"prompt": "where can I see the fees of my account this year", "completion": "there"}
    write(tmp_path / "t.jsonl", [rows[3], other, {**other, "completion": "here"}])
    assert (found().leaks.exact, found().leaks.near) == (1, 0)
    assert read == [40, 40, 40]


@pytest.mark.parametrize(("test", "compared"), [(None, 0), ("t.jsonl", 2)])
def test_equal_rows_are_found_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str | None, compared: int
) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(30)))
    write(tmp_path / "t.jsonl", pairs(7, 21, 99))
    seen = searches(monkeypatch)
    found = read(tmp_path, train="a.jsonl", test=test, near_duplicates=None, leakage="drop")
    assert seen == [compared]
    assert found.leaks.train.tolist() == ([7, 21] if test else [])
    assert len(found.train) == 30 - compared


def test_kept_rows_are_grouped_anew_by_another_column(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "one": i % 4, "two": i // 25} for i in range(100)]
    write(tmp_path / "a.jsonl", rows)
    cache = Cache(tmp_path / "cache")
    for column in ("one", "two", "one"):
        found = read_samples(
            Data(train="a.jsonl", eval="25%", group_by=column), tmp_path, accepted=CausalLM().formats, seed=0,
            max_eval_rows=None, tick=lambda *_: None, cache=cache,
        )  # fmt: skip
        assert len({rows[sample.row.number - 1][column] for sample in found.eval}) == 1


def test_the_plan_says_each_thing_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(8)))
    (tmp_path / "r.yaml").write_text("model: builtin:tiny-llama\ndata: {train: a.jsonl}\n")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "r.yaml"), "--json", "--quiet"])
    notes = json.loads(result.stdout)["notes"]
    assert len(notes) == len(set(notes)) == 1
