"""A metric of the user's own: what it is given, what it may return, and where it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import events, recipe, train
from typer.testing import CliRunner

from ftune.cli import app
from ftune.errors import MetricError, RecipeError
from ftune.load import load_recipe
from ftune.metrics.custom import custom, load_metrics

SEEN = '''
import json
from pathlib import Path

def seen(received, expected):
    """Writes down what it was given."""
    Path(__file__).with_name("seen.json").write_text(json.dumps([received, expected]))
    return [a == b for a, b in zip(received, expected)]

def lengths(received, expected):
    return (len(a) for a in expected)
'''
LABELLED = {
    "single_label": [{"text": f"row {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(12)],
    "multi_label": [{"text": f"row {i}", "labels": ["a"] * (i % 2) + ["b"] * (i % 3 == 0)} for i in range(12)],
    "regression": [{"text": f"row {i}", "label": i / 2} for i in range(12)],
}
TAGGED = [{"tokens": ["in", "Ulm", str(i)], "tags": ["O", "B-LOC", "O"]} for i in range(12)]


def functions(folder: Path, text: str = SEEN) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(text, encoding="utf-8")


def refused(folder: Path, text: str, name: str = "mine:score") -> str:
    functions(folder, text)
    with pytest.raises(MetricError) as caught:
        custom(["a", "b"], ["a", "c"], load_metrics([name], folder), intervals=False)
    return str(caught.value).replace(str(folder), "F")


def test_a_metric_is_the_mean_of_its_rows_with_an_interval(tmp_path: Path) -> None:
    functions(tmp_path)
    ours = load_metrics(["loss", "mine:seen", "mine:lengths"], tmp_path)
    assert set(ours) == {"mine:seen", "mine:lengths"}
    assert list(ours["mine:seen"](["a", "b"], ["a", "c"])) == [1.0, 0.0]
    received, expected = [str(i % 3) for i in range(60)], [str(i % 2) for i in range(60)]
    scores = custom(received, expected, ours, intervals=True)
    right = float(np.mean([a == b for a, b in zip(received, expected, strict=True)]))
    assert scores["mine:seen"].value == right
    low, high = scores["mine:seen"].ci95 or (0, 0)
    assert 0 < low < right < high < 1
    assert scores["mine:lengths"].value == 1.0 and scores["mine:lengths"].ci95 == (1.0, 1.0)
    assert custom([], [], ours, intervals=True) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1]", "metric mine:score: expected 2 numbers, one a row, received 1."),
        ("return [1, 2, 3]", "metric mine:score: expected 2 numbers, one a row, received 3."),
        ("return [1, float('nan')]", "metric mine:score: expected a finite number for row 2, received nan."),
        ("return [None, 1]", "metric mine:score: expected a finite number for row 1, received None."),
        ("return ['1', 1]", "metric mine:score: expected a finite number for row 1, received '1'."),
        ("return 0.5", "metric mine:score failed at F/mine.py: TypeError: 'float' object is not iterable."),
        ("return [1 / 0]", "metric mine:score failed at F/mine.py:2: ZeroDivisionError: division by zero."),
        ("raise SystemExit(3)", "metric mine:score failed at F/mine.py:2: SystemExit: 3."),
    ],
)
def test_what_is_no_number_a_row_is_one_clear_error(tmp_path: Path, body: str, message: str) -> None:
    assert refused(tmp_path, f"def score(received, expected):\n    {body}\n") == message


def test_a_module_that_is_not_there_or_fails(tmp_path: Path) -> None:
    wrong = refused(tmp_path, "import no_such_package\n")
    assert wrong.startswith("metric mine:score: F/mine.py:1 cannot be imported: ModuleNotFoundError")
    gone = refused(tmp_path, "", "gone:score")
    assert gone == "metric gone:score: no module 'gone' beside the recipe (F) and none installed."
    assert MetricError.exit_code == 2


def problems(folder: Path, text: str, *metrics: str, **sections: Any) -> list[str]:
    """What reading a recipe says; the module must not be run for it."""
    functions(folder, "raise AssertionError('was run')\n" + text)
    lines = "".join(f"    - {name}\n" for name in metrics)
    objective = sections.get("objective", "causal_lm")
    (folder / "r.yaml").write_text(
        f"model: builtin:tiny-llama\nobjective: {objective}\ndata: {{train: t.jsonl, eval: 5%}}\n"
        f"eval:\n  metrics:\n{lines}",
        encoding="utf-8",
    )
    try:
        load_recipe(folder / "r.yaml")
    except RecipeError as error:
        return [str(problem).replace(f"{folder}", "F") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "gone:score", "no module 'gone' beside the recipe (F) and none installed."),
        ("", "mine:2nd", "expected 'module:function', such as 'my_code:my_function', received 'mine:2nd'."),
        ("def scores(a, b): pass\n", "mine:score", "F/mine.py has no function 'score'. Did you mean 'scores'?"),
        ("def score(a): pass\n", "mine:score", "F/mine.py:2 score is called with 2 arguments, and does not take them."),
        ("def score(a, b, *, c): pass\n", "mine:score",
         "F/mine.py:2 score is called with 2 arguments, and does not take them."),
        ("def score(a, b) pass\n", "mine:score", "F/mine.py:2 cannot be read: SyntaxError: expected ':'"),
    ],
)  # fmt: skip
def test_check_looks_at_the_source_and_names_the_place(tmp_path: Path, text: str, name: str, message: str) -> None:
    (first,) = problems(tmp_path, text, "loss", name)
    assert first.startswith(f"F/r.yaml:7:7 eval.metrics.1: {message}"), first


@pytest.mark.parametrize(
    "text",
    [
        "def score(a, b, c=1, *d, e=2): pass\n", "score = lambda a, b: []\n", "from elsewhere import score\n",
        "from elsewhere import *\n", "class score:\n    def __new__(cls, a, b): return []\n",
        "try:\n    import x as score\nexcept ImportError:\n    score = None\n",
    ],
)  # fmt: skip
def test_what_may_be_right_passes(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text, "mine:score") == []


def test_an_objective_without_answers_refuses_it(tmp_path: Path) -> None:
    found = problems(tmp_path, "def score(a, b): pass\n", "mine:score", objective="masked_lm")
    known = "'mine:score' compares answers, and masked_lm gives none. Known: loss, perplexity."
    assert found == [f"F/r.yaml:5:3 eval.metrics: {known}"]


def test_generated_answers_reach_it_in_training_report_and_eval(tmp_path: Path) -> None:
    functions(tmp_path)
    loaded = recipe(
        tmp_path, data={"eval": "rows.jsonl"},
        eval={"metrics": ["mine:seen", "mine:lengths"], "every": 5, "generate_every": 5, "max_new_tokens": 3},
    )  # fmt: skip
    report = train(loaded)
    received, expected = json.loads((tmp_path / "seen.json").read_text())
    assert len(received) == 11 and expected[1] == "<call>4<end of call>!"
    scores = report["metrics"]["eval"]
    mean = np.mean([len(answer) for answer in expected])
    assert scores["mine:lengths"]["value"] == pytest.approx(mean) and scores["mine:lengths"]["ci95"][0] < mean
    assert events(tmp_path / "run", "eval")[-1]["mine:lengths"] == pytest.approx(mean)
    assert "| eval mine:lengths | " in (tmp_path / "run" / "report.md").read_text()
    told = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--metrics", "mine:lengths", "--json", "--quiet"])
    assert told.exit_code == 0, told.stderr
    assert list(json.loads(told.stdout)["metrics"]) == ["mine:lengths"]
    wrong = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--metrics", "mine:gone", "--quiet"])
    assert wrong.exit_code == 2 and "metric mine:gone: mine has no function 'gone'." in wrong.stderr


@pytest.mark.parametrize("problem", LABELLED)
def test_a_classifier_gives_it_labels_or_numbers(tmp_path: Path, problem: str) -> None:
    functions(tmp_path)
    rows = LABELLED[problem]
    objective = {"name": "sequence_classification", "problem": problem}
    loaded = recipe(
        tmp_path, model="builtin:tiny-bert", rows=rows, objective=objective,
        data={"eval": "rows.jsonl", "template": None}, eval={"metrics": ["mine:seen"], "every": 5},
    )  # fmt: skip
    report = train(loaded)
    received, expected = json.loads((tmp_path / "seen.json").read_text())
    assert expected == [row["labels"] if "labels" in row else row["label"] for row in rows]
    assert {type(answer) for answer in received} == {type(answer) for answer in expected}
    assert 0 <= report["metrics"]["eval"]["mine:seen"]["value"] <= 1
    assert report["baseline"].keys() == {"loss", "mine:seen"}


def test_a_tagger_gives_it_the_tags_of_each_word(tmp_path: Path) -> None:
    functions(tmp_path)
    loaded = recipe(
        tmp_path, model="builtin:tiny-bert", rows=TAGGED, objective="token_classification",
        data={"eval": "rows.jsonl", "template": None}, eval={"metrics": ["mine:seen"], "every": 5},
    )  # fmt: skip
    train(loaded)
    received, expected = json.loads((tmp_path / "seen.json").read_text())
    assert expected == [row["tags"] for row in TAGGED] and {len(tags) for tags in received} == {3}


def test_a_changed_metric_is_scored_anew_by_the_same_command(tmp_path: Path) -> None:
    functions(tmp_path)
    sections = {"data": {"eval": "rows.jsonl"}, "eval": {"metrics": ["mine:lengths"], "max_new_tokens": 2}}
    recipe(tmp_path, **sections)
    train_it = ["train", str(tmp_path / "recipe.yaml"), "--json", "--quiet"]
    before = json.loads(CliRunner().invoke(app, train_it).stdout)["metrics"]["eval"]["mine:lengths"]["value"]
    assert json.loads(CliRunner().invoke(app, train_it).stdout)["metrics"]["eval"]["mine:lengths"]["value"] == before
    functions(tmp_path, SEEN.replace("len(a)", "len(a) + 100"))
    again = json.loads(CliRunner().invoke(app, train_it).stdout)
    assert again["metrics"]["eval"]["mine:lengths"]["value"] == before + 100 and again["steps"] == 5
