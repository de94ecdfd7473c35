"""What a classifier said of each row is kept, counts to the metrics of the report, and survives a kill at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest

from ftune.generation import predictions_lines
from ftune.label_predictions import TEXT, LabelPrediction
from ftune.load import load_recipe
from ftune.objectives._answers import MOST_PROBABLE, numbers, one_label, several_labels

LABELS = [{"text": f"{'red' if i % 3 else 'blue'} {i}", "label": "warm" if i % 3 else "cold"} for i in range(24)]
LABELS[-1]["text"] += "y" * 5000
SEVERAL = [{"text": f"row {i}", "labels": [["a"], ["a", "b"], []][i % 3]} for i in range(24)]
VALUES = [{"text": "x" * i, "label": i / 10} for i in range(1, 25)]
WORDS = [{"tokens": ["Ann", "saw", "Bob"], "tags": ["B-per", "O", "B-per"]} for _ in range(3)] + [
    {"tokens": ["it", "rained"], "tags": ["O", "O"]}
] * 21


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finished(folder: Path, rows: list[dict[str, Any]], objective: Any, form: str, **sections: Any) -> Path:
    """A run of a tiny encoder, scored on the rows it learned from and on a test set of the same."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": "builtin:tiny-bert",
        "objective": objective,
        "method": "task",
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl", "test": "rows.jsonl", "format": form,
                 "overlong": "truncate"},
        "output_dir": str(folder / "run"),
        **({"train": {"duration": "2 steps", "batch_size": 4}} if "method" not in sections else {}),
        **sections,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    laws.train(load_recipe(folder / "recipe.yaml"))
    return folder / "run"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one label a row."""
    return finished(tmp_path_factory.mktemp("labelled"), LABELS, "sequence_classification", "classification")


def test_a_label_a_row(labelled: Path) -> None:
    run = labelled
    report = json.loads((run / "report.json").read_text())
    for split in ("eval", "test"):
        rows = rows_of(run / f"predictions_{split}.jsonl")
        assert [row["number"] for row in rows] == list(range(1, 25))
        assert [row["expected"] for row in rows] == [row["label"] for row in LABELS]
        assert [row["text"] for row in rows[:-1]] == [row["text"] for row in LABELS[:-1]]
        assert rows[-1]["text"] == LABELS[-1]["text"][: TEXT - 1] + "…"
        for row in rows:
            assert row["exact"] is (row["expected"] == row["received"])
            assert next(iter(row["probabilities"])) == row["received"]
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert np.mean([row["exact"] for row in rows]) == report["metrics"][split]["accuracy"]["value"]
        names = list(report["classes"][split]["classes"])
        counted = [[sum(r["expected"] == a and r["received"] == b for r in rows) for b in names] for a in names]
        assert report["classes"][split]["confusion"] == counted
        assert names == ["cold", "warm"]
    assert "2 labels" in (run / "report.md").read_text()
    assert "cold, taken for" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("rows", "objective", "form", "expected"),
    [
        (SEVERAL, {"name": "sequence_classification", "problem": "multi_label"}, "multi_label", ["a", "b"]),
        (VALUES, {"name": "sequence_classification", "problem": "regression"}, "regression", pytest.approx(0.2)),
        (WORDS, "token_classification", "token_labels", ["B-per", "O", "B-per"]),
    ],
)
def test_other_answers_a_row(tmp_path: Path, rows: Any, objective: Any, form: str, expected: Any) -> None:
    run = finished(tmp_path, rows, objective, form)
    second = rows_of(run / "predictions_test.jsonl")[1]
    assert second["expected"] == expected
    assert type(second["received"]) is type(second["expected"])
    assert (second["probabilities"] is None) is (form != "multi_label")
    classes = json.loads((run / "report.json").read_text())["classes"]
    assert set(classes) == (set() if form == "regression" else {"eval", "test"})
    assert "Predictions of the test rows" in (run / "report.html").read_text()


def test_a_run_that_was_killed_before_its_report_ends_with_the_same_files(labelled: Path) -> None:
    run = labelled
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for name in ("report.json", "report.html", "predictions_test.jsonl"):
        (run / name).unlink()
    finished(run.parent, LABELS, "sequence_classification", "classification")
    assert {path.name for path in run.iterdir() if path.is_file()} == set(before)
    for name in ("predictions_eval.jsonl", "predictions_test.jsonl"):
        assert (run / name).read_bytes() == before[name]


def test_a_frozen_body_with_a_fitted_head(tmp_path: Path) -> None:
    method = {"name": "feature_based", "head": "logistic"}
    run = finished(tmp_path, LABELS, "sequence_classification", "classification", method=method)
    rows = rows_of(run / "predictions_eval.jsonl")
    assert [row["text"][:99] for row in rows] == [row["text"][:99] for row in LABELS]


def test_the_first_of_equals_and_the_most_probable() -> None:
    names = [f"n{i}" for i in range(12)]
    scores = np.zeros((1, 12), dtype=np.float32)
    (answer,) = one_label(scores, np.array([3]), names)
    assert (answer.expected, answer.received) == ("n3", "n0")
    assert list(answer.probabilities or ()) == names[:MOST_PROBABLE]
    (answer,) = several_labels(np.array([[1.0, -1.0, 0.0]]), np.array([[1.0, 0.0, 1.0]]), ["a", "b", "c"])
    assert (answer.expected, answer.received) == (["a", "c"], ["a"])
    assert answer.probabilities == {"a": 0.731059, "c": 0.5, "b": 0.268941}
    assert numbers(np.array([1.5]), np.array([2.0]))[0][:2] == (2.0, 1.5)


def test_lines_of_labels() -> None:
    (row,) = map(json.loads, predictions_lines([LabelPrediction("f", 1, "é", "a", "b", {"b": 1.0})]).splitlines())
    assert row == {"file": "f", "number": 1, "text": "é", "expected": "a", "received": "b", "probabilities": {"b": 1.0},
                   "exact": False}  # fmt: skip
