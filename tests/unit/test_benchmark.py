"""Benchmarks by lm-evaluation-harness: the real thing on local tasks made from real rows, and errors without it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from laws import recipe, train
from typer.testing import CliRunner

from ftune.benchmark import benchmark
from ftune.cli import app
from ftune.errors import MachineError, RecipeError

DATA = Path(__file__).parents[2] / "recipes" / "data"
ROWS = [{"prompt": f"Message {i}:", "completion": f" answer {i % 3}"} for i in range(8)]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 4, "alpha": 8},
    "prefix": {"name": "prefix", "length": 4},
    "prompt": {"name": "prompt", "length": 4},
    "adapter": {"name": "adapter"},
    "full": {"name": "full"},
}


def tasks(folder: Path) -> Path:
    """Two tasks: which of 12 things a customer wants, and how likely lines of a play are."""
    folder.mkdir(parents=True, exist_ok=True)
    with (DATA / "intents_test.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if len(row["text"]) < 60][:24]
    labels = sorted({row["label"] for row in rows})
    documents = [{"text": row["text"], "answer": labels.index(row["label"])} for row in rows]
    (folder / "intents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    lines = [
        line for line in (DATA / "shakespeare_later.txt").read_text(encoding="utf-8").splitlines() if len(line) > 30
    ]
    (folder / "play.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines[:6]))
    common = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 3}}
    choice = {
        "task": "intents", "dataset_kwargs": {"data_files": {"test": str(folder / "intents.jsonl")}},
        "output_type": "multiple_choice", "doc_to_text": "{{text}}\nIntent:", "doc_to_choice": labels,
        "doc_to_target": "answer", "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    }  # fmt: skip
    rolling = {
        "task": "play", "dataset_kwargs": {"data_files": {"test": str(folder / "play.jsonl")}},
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    for task in (choice, rolling):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(common | task))
    return folder


def run_of(folder: Path, method: str, model: str = "builtin:tiny-llama") -> Path:
    section = {"learning_rate": 1e-2, "duration": "8 steps"}
    train(recipe(folder, rows=ROWS, model=model, method=METHODS[method], data={"template": None}, train=section))
    return folder / "run"


def scores(target: Path, *names: str, **options: Any) -> dict[str, Any]:
    settings = {"shots": None, "limit": None, "batch_size": 4, "overrides": (), "tick": lambda *_: None}
    return benchmark(target, names, **{**settings, **options}).tasks


# Without the package


def test_the_package_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MachineError, match=r"pip install 'ftune\[benchmarks\]'") as caught:
        scores(tmp_path, "hellaswag")
    assert caught.value.exit_code == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "x", "--split", "eval", "--metrics", "loss"], "--split has no effect with --benchmark"),
        (["--benchmark", " , "], "--benchmark expected names of tasks, received ' , '."),
        (["--limit", "3"], "--limit has no effect without --benchmark."),
    ],
)
def test_options_that_would_not_be_obeyed(tmp_path: Path, options: list[str], message: str) -> None:
    told = CliRunner().invoke(app, ["eval", str(tmp_path), *options])
    assert told.exit_code == 2 and message in told.stderr, told.stderr


# With it

needs_harness = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('lm_eval')", reason="no lm_eval")


@needs_harness
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_target_is_scored_as_it_is(tmp_path: Path, method: str) -> None:
    folder = tasks(tmp_path / "tasks")
    run = run_of(tmp_path, method)
    found = scores(run, str(folder))
    assert found.keys() == {"intents", "play"}
    assert (found["intents"].rows, found["play"].rows, found["intents"].shots) == (24, 6, 0)
    base = scores(tmp_path / "recipe.yaml", str(folder / "play.yaml"))["play"].metrics["bits_per_byte"]["value"]
    assert found["play"].metrics["bits_per_byte"]["value"] != pytest.approx(base, rel=1e-5), "what learned counts"


@needs_harness
def test_an_adapter_scores_as_its_merged_folder(tmp_path: Path) -> None:
    folder = tasks(tmp_path / "tasks")
    run = run_of(tmp_path, "lora")
    merged = CliRunner().invoke(app, ["merge", str(run), "--quiet"])
    assert merged.exit_code == 0, merged.stderr
    ours, plain = (scores(target, str(folder)) for target in (run, run / "merged"))
    for name, task in ours.items():
        for metric, score in task.metrics.items():
            assert score["value"] == pytest.approx(plain[name].metrics[metric]["value"], abs=1e-5), (name, metric)


@needs_harness
def test_an_encoder_decoder_too(tmp_path: Path) -> None:
    folder = tasks(tmp_path / "tasks")
    rows = [{"source": row["prompt"], "target": row["completion"]} for row in ROWS]
    train(recipe(tmp_path, rows=rows, model="builtin:tiny-t5", objective="seq2seq_lm", data={"template": None}))
    assert 0 <= scores(tmp_path / "run", str(folder / "intents.yaml"))["intents"].metrics["acc"]["value"] <= 1


@needs_harness
def test_shots_limit_and_json(tmp_path: Path) -> None:
    folder = tasks(tmp_path / "tasks")
    run = run_of(tmp_path, "lora")
    command = ["eval", str(run), "--benchmark", str(folder / "intents.yaml"), "--quiet"]
    told = CliRunner().invoke(app, [*command, "--shots", "2", "--limit", "5", "--json"])
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout[told.stdout.index("{") :])
    task = found["tasks"]["intents"]
    assert (task["rows"], task["shots"], task["version"]) == (5, 2, 3) and found["harness"].startswith("lm_eval ")
    assert task["metrics"]["acc"]["stderr"] > 0 or task["metrics"]["acc"]["value"] in (0, 1)
    assert json.loads(told.stdout) == found, "stdout is one JSON object"
    table = CliRunner().invoke(app, [*command, "--limit", "5"])
    assert "intents" in table.stdout and "acc" in table.stdout
    other = scores(run, str(folder / "intents.yaml"), shots=0, limit=5)["intents"].metrics["brier_score"]["value"]
    assert other != task["metrics"]["brier_score"]["value"], "demonstrations change the answer"


@needs_harness
def test_what_is_no_task_is_one_clear_error(tmp_path: Path) -> None:
    folder = tasks(tmp_path / "tasks")
    run = run_of(tmp_path, "lora")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError) as caught:
        scores(run, str(tmp_path / "empty"), "./gone.yaml", "helaswag")
    text = str(caught.value).replace(str(tmp_path), "F")
    assert "--benchmark F/empty: no file in this folder is a task of the harness." in text
    assert "--benchmark ./gone.yaml: no such task file or folder." in text
    assert "--benchmark no task 'helaswag'. Did you mean" in text and "'hellaswag'" in text
    (folder / "intents.jsonl").unlink()
    with pytest.raises(MachineError, match="its data cannot be had"):
        scores(run, str(folder / "intents.yaml"))


@needs_harness
def test_a_classifier_continues_no_text(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(8)]
    train(
        recipe(tmp_path, rows=rows, model="builtin:tiny-bert", objective="sequence_classification",
               data={"template": None})
    )  # fmt: skip
    with pytest.raises(RecipeError, match="sequence_classification continues no text"):
        scores(tmp_path / "run", str(tasks(tmp_path / "tasks")))
