"""`ftune predict`: a line for every row, answered or not, of every kind of target; the same as `ftune eval` scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import ftune
from laws import Shared, train
from laws import recipe as write
from matrix import ROWS, Cell

from ftune.data.unanswered import read_to_predict
from ftune.errors import DataError, RecipeError
from ftune.predicting import Predicted, predict_rows
from ftune.recipe import Data
from ftune.scoring import evaluate


def predicted(path: Path, **options: Any) -> Predicted:
    settings = {"split": None, "data_file": None, "max_rows": None, "batch_size": 3, "overrides": ()} | options
    return predict_rows(path, tick=lambda *_: None, **settings)  # type: ignore[arg-type]


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_of(shared: Shared, method: str, objective: str, model: str) -> Path:
    """A run of five steps."""
    cell = Cell(method, objective, model)
    return shared.make(f"predict-{cell}", lambda folder: train(cell.recipe(folder))) / "run"


def exact(row: dict[str, Any]) -> bool:
    return bool(row["received"].strip()) and row["received"].strip() == row["expected"].strip()


@pytest.mark.parametrize(
    ("method", "objective", "model"), [("lora", "causal_lm", "llama"), ("full", "seq2seq_lm", "t5")]
)
def test_language_models(shared: Shared, tmp_path: Path, method: str, objective: str, model: str) -> None:
    run = run_of(shared, method, objective, model)
    found = predicted(run, split="eval", overrides=())
    assert [line["number"] for line in found.lines] == list(range(1, 12)) and found.left_out == 0
    scored = evaluate(
        run, split="eval", data_file=None, metrics=["exact_match"], max_rows=None, batch_size=2, overrides=(),
        tick=lambda *_: None,
    )  # fmt: skip
    assert [line["received"] for line in found.lines] == [one.received for one in scored.predictions]
    assert scored.metrics["exact_match"].value == sum(map(exact, found.lines)) / 11
    answer = "completion" if objective == "causal_lm" else "target"
    rows = [
        {k: v for k, v in row.items() if k != answer or i % 2}
        for i, row in enumerate(ROWS[Cell(method, objective, model).format])
    ]
    mixed = predicted(run, data_file=lines(tmp_path, rows))
    assert [line["received"] for line in mixed.lines] == [line["received"] for line in found.lines]
    assert [line.get("expected") for line in mixed.lines] == [row.get(answer) for row in rows]
    assert [line["prompt"] for line in mixed.lines] == [line["prompt"] for line in found.lines]


@pytest.mark.parametrize("method", ["lora", "feature_based", "prompt"])
def test_labels(shared: Shared, tmp_path: Path, method: str) -> None:
    run = run_of(shared, method, "sequence_classification", "bert")
    found = predicted(run, split="eval").lines
    scored = evaluate(
        run, split="eval", data_file=None, metrics=["accuracy"], max_rows=None, batch_size=2, overrides=(),
        tick=lambda *_: None,
    )  # fmt: skip
    right = [line["label"] == line["expected"] for line in found]
    assert scored.metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    for line in found:
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        assert list(line["probabilities"]) == ["blue", "green", "red"]
    asked = [{"text": row["text"]} for row in ROWS["classification"][:3]]
    asked[1]["label"] = "a label that no training row has"
    free = predicted(run, data_file=lines(tmp_path, asked)).lines
    assert [line["label"] for line in free] == [line["label"] for line in found[:3]]
    assert ["expected" in line for line in free] == [False, True, False]


def test_labels_of_words(shared: Shared, tmp_path: Path) -> None:
    run = run_of(shared, "lora", "token_classification", "bert")
    found = predicted(run, split="eval").lines
    scored = evaluate(
        run, split="eval", data_file=None, metrics=["token_accuracy"], max_rows=None, batch_size=2, overrides=(),
        tick=lambda *_: None,
    )  # fmt: skip
    pairs = [pair for line in found for pair in zip(line["labels"], line["expected"], strict=True)]
    assert scored.metrics["token_accuracy"].value == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    asked = [{"tokens": ["red", "\u200b", "sea"]}, {"tokens": ["of"], "tags": None}]
    free = predicted(run, data_file=lines(tmp_path, asked)).lines
    assert [len(line["labels"]) for line in free] == [3, 1] and "expected" not in free[0]


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_several_labels_and_numbers(shared: Shared, tmp_path: Path, problem: str) -> None:
    label: dict[str, Any] = {"labels": ["a", "b"]} if problem == "multi_label" else {"label": 2.5}
    rows = [{"text": f"row {i} {'x' * i}", **label} for i in range(6)]
    objective = {"name": "sequence_classification", "problem": problem}
    train(write(tmp_path, rows=rows, model="builtin:tiny-bert", objective=objective, data={"template": None}))
    run = tmp_path / "run"
    asked = lines(tmp_path, [{"text": "row 1 x"}, {"text": "other", **label}])
    first, second = predicted(run, data_file=asked).lines
    assert "expected" not in first
    if problem == "multi_label":
        assert second["expected"] == ["a", "b"]
        for line in (first, second):
            assert line["labels"] == [name for name, chance in line["probabilities"].items() if chance > 0.5]
    else:
        assert second["expected"] == 2.5 and isinstance(first["prediction"], float)


def test_masked_language_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path, rows=ROWS["text"], model="builtin:tiny-bert", objective="masked_lm", data={"template": None})
    with pytest.raises(RecipeError, match="masked_lm guesses words that were hidden, and has nothing to say of a row"):
        predicted(tmp_path / "recipe.yaml", split="train")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a"}, False), ({"prompt": "a", "completion": None}, False),
        ({"prompt": "a", "completion": ""}, False),
        ({"prompt": "a", "completion": "b"}, True), ({"instruction": "a"}, False), ({"source": "a"}, False),
        ({"messages": [{"role": "user", "content": "a"}]}, False),
        ({"conversations": [{"from": "human", "value": "a"}]}, False),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, True),
        ({"question": "a", "choices": ["b", "c"]}, False),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, True),
    ],
)  # fmt: skip
def test_rows_of_every_format_with_and_without_answers(tmp_path: Path, row: dict[str, Any], expected: bool) -> None:
    accepted = frozenset({"text", "prompt_completion", "instruction", "chat", "pairs", "multiple_choice", "tokens"})
    (found,) = read_to_predict(lines(tmp_path, [row]), Data(train="x"), accepted, ())
    assert found.answered is expected
    assert found.sample.turns[-1].role == "assistant" and found.sample.turns[0].content.startswith("a")


def test_bad_rows_are_named(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"prompt": "a"}, {"prompt": 3}, {"completion": "b"}])
    with pytest.raises(DataError) as raised:
        read_to_predict(path, Data(train="x"), frozenset({"prompt_completion"}), ())
    assert "asked.jsonl:2 prompt: expected text" in str(raised.value) and "asked.jsonl:3" in str(raised.value)
    skipping = Data(train="x", on_bad_row="skip")
    assert len(read_to_predict(path, skipping, frozenset({"prompt_completion"}), ())) == 1
    with pytest.raises(DataError, match="no format fits the columns id"):
        read_to_predict(lines(tmp_path, [{"id": 1}]), Data(train="x"), frozenset({"prompt_completion"}), ())


def test_prompts_that_do_not_fit_are_named(shared: Shared, tmp_path: Path) -> None:
    run = run_of(shared, "lora", "causal_lm", "llama")
    with pytest.raises(DataError, match=r"asked.jsonl:2: has a prompt of 2001 tokens"):
        predicted(run, data_file=lines(tmp_path, [{"prompt": "a"}, {"prompt": "a" * 2000}]))
    write(tmp_path)
    with pytest.raises(DataError, match="is plain text, which asks nothing"):
        predicted(tmp_path / "recipe.yaml", data_file=lines(tmp_path, [{"text": "a"}]))


def test_the_command(shared: Shared, tmp_path: Path) -> None:
    run = run_of(shared, "lora", "sequence_classification", "bert")
    asked = lines(tmp_path, [{"text": "red\u2028sea"}, {"text": "blue"}])
    done = ftune("predict", run, "--data", asked, "--out", "out.jsonl", "--json", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["left_out"], summary["split"], summary["out"]) == (2, 0, "data", "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["number"] for line in found] == [1, 2]
    done = ftune("predict", run, "--data", asked, "--split", "eval", "--out", "x", cwd=tmp_path, code=2)
    assert "--split has no effect with --data" in done.stderr and not (tmp_path / "x").exists()
