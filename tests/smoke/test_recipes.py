"""Every shipped recipe validates, says how to run it and what it costs, and passes every stage on a tiny model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from stand_ins import SETTINGS, instead
from typer.testing import CliRunner

from ftune import methods
from ftune.cli import app
from ftune.load import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 10
    used = {load_recipe(path).recipe.method.name for path in RECIPES}
    used |= {load_recipe(path).recipe.learner.name for path in RECIPES}
    assert used == set(methods.names()), "a recipe for each method"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_valid_and_explains_itself(path: Path) -> None:
    load_recipe(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"ftune train recipes/{path.name}" in text, "the header holds the command that runs it"
    assert re.search(r"^# Cost: .*\d", text, re.MULTILINE), "the header says what it costs, measured"


BYTES = 4
"""Of English, in a token of the models that recipes name."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_rows_of_a_recipe_are_short_enough(path: Path) -> None:
    """A smoke run has a tokenizer and a length of its own, so it tells nothing of this."""
    data = load_recipe(path).recipe.data
    if data.overlong not in (None, "drop", "error") or data.max_length == "auto" or not isinstance(data.train, str):
        return
    source = path.parent / data.train
    if source.suffix not in (".jsonl", ".csv") or path.stem in SETTINGS:
        return
    with source.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines)) if source.suffix == ".csv" else [json.loads(line) for line in lines]
    long = [number for number, row in enumerate(rows, 1) if size(row) > BYTES * data.max_length]
    assert len(rows) > 50
    assert len(long) <= 0.01 * len(rows), f"{source}: rows {long} may not fit into max_length {data.max_length}"


def size(value: object) -> int:
    """Bytes of every text in a row."""
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, list) else len(str(value).encode())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_passes_the_smoke_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", str(path), "--smoke", "--offline", "--quiet", "--json", *instead(path)])
    assert done.exit_code == 0, done.output
    recipe = load_recipe(path).recipe
    expected = ["train", "resume", "eval"]
    expected += ["merge"] if recipe.learner.mergeable else []
    expected += ["generate"] if recipe.objective.generation_metrics else []
    stages = json.loads(done.stdout)["stages"]
    assert [stage["name"] for stage in stages] == expected
    assert list(tmp_path.iterdir()) == [], "a smoke run leaves nothing behind"


@pytest.mark.parametrize(
    "block",
    ["{name: feature_based, layer: 6}", "{name: feature_based, layer: [-1, -7]}", "{name: adapter, layers: [4]}"],
)
def test_a_smoke_run_has_the_layers_that_a_method_names(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "recipes" / "feature_based_intent.yaml"
    done = CliRunner().invoke(app, ["train", str(path), "--smoke", "--offline", "--quiet", "--set", f"method={block}"])
    assert done.exit_code == 0, done.output


def test_recipes_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    listed = json.loads(run.invoke(app, ["recipes", "ls", "--json"]).stdout)["recipes"]
    assert {entry["name"] for entry in listed} == {path.stem for path in RECIPES}
    assert run.invoke(app, ["recipes", "show", "quickstart"]).stdout == RECIPES_TEXT["quickstart"]
    assert run.invoke(app, ["recipes", "copy", "quickstart"]).exit_code == 0
    assert load_recipe(tmp_path / "quickstart.yaml").recipe.data.train == "data/intents.csv"
    assert (tmp_path / "data" / "intents_test.csv").is_file()
    again = run.invoke(app, ["recipes", "copy", "quickstart"])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    wrong = run.invoke(app, ["recipes", "show", "quickstrat"])
    assert wrong.exit_code == 2
    assert "Did you mean 'quickstart'?" in wrong.stderr


RECIPES_TEXT = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES}
