"""The data report: counts that reconcile, histograms that cover, labels that add up; in a run's folder as well."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data_report import BARS, account, data_profile, data_summary, data_svg, draw_data, histogram, source_rows
from ftune.load import Loaded, load_recipe
from ftune.prepare import PreparedData, prepare_data


def read(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> tuple[Loaded, PreparedData]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": "rows.jsonl", **sections.pop("data", {})}
    values = {"model": "builtin:tiny-llama", "method": "full", "data": data, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    loaded = load_recipe(folder / "recipe.yaml")
    return loaded, prepare_data(loaded, lambda *progress: None)


def accounted(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> tuple[bool, list[str]]:
    loaded, found = read(folder, rows, **sections)
    return account(loaded.recipe, found.dataset, source_rows(loaded.recipe, loaded.folder))


def pairs(*numbers: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} = ", "completion": str(2 * i)} for i in numbers]


# every row has its place


def test_rows_of_every_split_are_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(*range(30, 37))))
    data = {"eval": "held.jsonl", "test": "held.jsonl"}
    assert accounted(tmp_path, pairs(*range(9)), data=data) == (
        True,
        [
            "9 rows in data.train = 9 train; every row is accounted for.",
            "7 rows in data.eval = 7 eval; every row is accounted for.",
            "7 rows in data.test = 7 test; every row is accounted for.",
        ],
    )
    assert accounted(tmp_path, pairs(*range(9)), data=data, eval={"max_rows": 5})[1][1] == (
        "7 rows in data.eval = 5 eval + 2 not scored (eval.max_rows); every row is accounted for."
    )


def test_rows_of_a_share_are_accounted_for_together(tmp_path: Path) -> None:
    rows = [*pairs(*range(40)), *pairs(*range(4))]
    good, (line,) = accounted(tmp_path, rows, data={"eval": "25%"})
    assert (good, line) == (True, "44 rows in data.train = 34 train + 10 eval; every row is accounted for.")
    good, (line,) = accounted(tmp_path, rows, data={"eval": "25%"}, eval={"max_rows": 3})
    assert good
    assert line.startswith("44 rows in data.train = 34 train + 3 eval + 7 not scored (eval.max_rows); every row")


def test_a_document_that_is_cut_in_two_is_one_row(tmp_path: Path) -> None:
    text = [{"text": "one line of words\n" * 30}]
    good, lines = accounted(tmp_path, text, data={"eval": "20%", "max_length": 64})
    assert (good, lines) == (True, ["1 document in data.train, cut in two: train and eval."])


@pytest.mark.parametrize("lost", ["rows", "kept"])
def test_what_does_not_add_up_is_said(tmp_path: Path, lost: str) -> None:
    loaded, found = read(tmp_path, pairs(*range(9)))
    report = found.dataset.train.report
    wrong = replace(found.dataset.train, report=replace(report, **{lost: getattr(report, lost) - 1}))
    good, (line,) = account(loaded.recipe, replace(found.dataset, train=wrong), {"train": 9})
    assert not good
    assert line.endswith("THIS DOES NOT ADD UP: please report it.")
    good, (line,) = account(loaded.recipe, found.dataset, {"train": 10})
    assert not good
    assert line.startswith("10 rows in data.train = 9 train; THIS DOES NOT ADD UP")


# histograms


@given(st.lists(st.integers(0, 100_000), min_size=1))
def test_bars_of_whole_numbers_cover_every_value_once(values: list[int]) -> None:
    found = histogram(np.array(values, dtype=np.int64))
    edges, counts = found["edges"], found["counts"]
    assert len(edges) == len(counts) + 1 <= BARS + 2
    assert len(set(np.diff(edges))) == 1, "equal widths"
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert count == sum(low <= value < high for value in values)
    assert sum(counts) == len(values)
    assert counts[0] and counts[-1]
    width = edges[1] - edges[0]
    assert str(width).rstrip("0") in ("1", "2", "5")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
@example([0.0, 5e-324])
def test_bars_of_numbers_cover_every_value_once(values: list[float]) -> None:
    found = histogram(np.array(values))
    assert sum(found["counts"]) == len(values)
    assert found["edges"][0] <= min(values)
    assert found["edges"][-1] >= max(values)


# profiles


def test_a_profile_of_prompts(tmp_path: Path) -> None:
    rows = [*pairs(*range(30)), {"prompt": "a long one " * 9, "completion": "yes"}]
    loaded, found = read(tmp_path, rows)
    split = found.dataset.train
    profile = data_profile(split, (), loaded.recipe.objective.encoding)
    assert profile["unit"] == "supervised tokens"
    assert profile["longest_row"] == f"{tmp_path}/rows.jsonl:31"
    assert sum(profile["token_histogram"]["counts"]) == sum(profile["target_histogram"]["counts"]) == 31
    assert profile["target_histogram"] == {"edges": [2, 3, 4, 5], "counts": [5, 25, 1]}
    assert (profile["labels"], profile["majority"], profile["value_histogram"]) == (None, None, None)


@pytest.mark.parametrize(
    ("objective", "rows", "labels", "majority"),
    [
        (
            "sequence_classification",
            [{"text": "x", "label": label} for label in "abbbc"],
            {"a": 1, "b": 3, "c": 1},
            {"label": "b", "share": 0.6},
        ),
        (
            {"name": "sequence_classification", "problem": "multi_label"},
            [{"text": "x", "labels": labels} for labels in (["a", "b"], [], ["b"], ["b", "c"])],
            {"a": 1, "b": 3, "c": 1},
            {"label": "b", "share": 0.75},
        ),
        (
            "token_classification",
            [{"tokens": ["one", "two", "three"], "tags": ["O", "B-x", "O"]}, {"tokens": ["four"], "tags": ["O"]}],
            {"B-x": 1, "O": 3},
            {"label": "O", "share": 0.75},
        ),
    ],
)
def test_a_profile_of_labels(
    tmp_path: Path, objective: Any, rows: list[dict[str, Any]], labels: dict[str, int], majority: dict[str, Any]
) -> None:
    data = {"format": "multi_label"} if isinstance(objective, dict) else {}
    data |= {"format": "classification"} if objective == "sequence_classification" else {}
    loaded, found = read(tmp_path, rows, objective=objective, data=data)
    profile = data_profile(found.dataset.train, found.dataset.labels, loaded.recipe.objective.encoding)
    assert (profile["labels"], profile["majority"]) == (labels, majority)


def test_a_profile_of_values(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": i / 2} for i in range(21)]
    objective = {"name": "sequence_classification", "problem": "regression"}
    loaded, found = read(tmp_path, rows, objective=objective, data={"format": "regression"})
    profile = data_profile(found.dataset.train, (), loaded.recipe.objective.encoding)
    assert profile["value_histogram"]["edges"] == [float(i) for i in range(11)]
    assert profile["value_histogram"]["counts"] == [2] * 9 + [3]
    assert profile["labels"] is None


# pictures


def test_names_of_labels_are_no_mathematics(tmp_path: Path) -> None:
    names = [r"$\frac{", "a$b$c", "日本", "</text><script>", "x" * 99, "line\nbreak"]
    rows = [{"text": "x", "label": name} for name in names]
    data = {"format": "classification"}
    loaded, found = read(tmp_path, rows, objective="sequence_classification", data=data)
    split = found.dataset.train
    summary = data_summary(split) | data_profile(split, found.dataset.labels, loaded.recipe.objective.encoding)
    svg = data_svg({"train": summary})
    assert svg.startswith("<svg")
    assert "<script" not in svg
    assert r"$\frac{" in svg
    draw_data({"train": summary, "eval": {**summary, "labels": None}}, tmp_path / "data.png")
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_has_the_report_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{'red ' * (i % 4)}sea", "label": "ab"[i % 3 == 0]} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": "builtin:tiny-bert",
        "objective": "sequence_classification",
        "method": "lora",
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl", "format": "classification"},
        "train": {"duration": "1 steps", "batch_size": 4},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["train", "r.yaml", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "runs" / "r" / "report.json").read_text())
    for name in ("train", "eval"):
        assert report["data"][name]["labels"] == {"a": 8, "b": 4}
        assert report["data"][name]["majority"] == {"label": "a", "share": pytest.approx(2 / 3)}
        assert sum(report["data"][name]["token_histogram"]["counts"]) == 12
    assert (tmp_path / "runs" / "r" / "data.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "runs" / "r" / "report.md").read_text()
    assert "- train: 2 labels; the most frequent, a, in 66.7% of rows" in text
    assert "](data.png)" in text
    again = CliRunner().invoke(app, ["train", "r.yaml", "--quiet"])
    assert "already complete" in again.output
