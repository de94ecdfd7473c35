"""Every malformed file in `tests/data/bad_data` gives exactly the messages that `expected.json` holds for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data.samples import read_samples
from ftune.errors import DataError
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import Data

FOLDER = Path(__file__).parents[1] / "data" / "bad_data"
EXPECTED: dict[str, list[str]] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
WITHOUT_A_ROW = {"18_only_a_header.csv", "19_no_format.csv", "26_blank.jsonl"}
"""Files whose fault is that of no single row."""


def same(lines: list[str], expected: list[str]) -> bool:
    """Equal, without the folder; an expected line that ends with `...` leaves the rest to a library."""
    lines = [line.replace(f"{FOLDER}/", "") for line in lines]
    pairs = zip(lines, expected, strict=False)
    alike = all(line.startswith(e.removesuffix("...")) if e.endswith("...") else line == e for line, e in pairs)
    return alike and len(lines) == len(expected)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_every_file_has_its_messages_and_names_a_row() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*EXPECTED, "expected.json", ".gitattributes"}
    assert len(EXPECTED) >= 30
    for name, lines in EXPECTED.items():
        if name not in WITHOUT_A_ROW:
            assert all(re.match(rf"{re.escape(name)}:\d+[ :]|\.\.\. and \d+ more", line) for line in lines), name


@pytest.mark.parametrize("name", EXPECTED)
def test_the_reader(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_samples(
            Data(train=str(FOLDER / name)),
            tmp_path,
            accepted=CausalLM().formats,
            seed=0,
            max_eval_rows=None,
            tick=lambda what, done, total: None,
        )
    assert same(str(caught.value).splitlines(), EXPECTED[name]), str(caught.value)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_command(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: builtin:tiny-llama\ndata:\n  train: {json.dumps(str(FOLDER / name))}\n", "utf-8")
    before = tree(tmp_path), tree(FOLDER)
    result = CliRunner().invoke(app, ["check", str(recipe)])
    assert result.exit_code == 3
    assert same(result.stderr.splitlines(), EXPECTED[name]), result.stderr
    assert result.stdout == ""
    assert (tree(tmp_path), tree(FOLDER)) == before
    assert Path.cwd() == tmp_path  # so the tree above is also what the command was started in


def test_the_train_verb_says_the_same_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftune.model.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    name = "24_bom_and_crlf.jsonl"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: builtin:tiny-llama\ndata:\n  train: {json.dumps(str(FOLDER / name))}\n", "utf-8")
    result = CliRunner().invoke(app, ["train", str(recipe), "--quiet", "--offline"])
    assert result.exit_code == 3
    assert same(result.stderr.splitlines(), EXPECTED[name]), result.stderr
    assert "Traceback" not in result.output


def test_problems_of_all_splits_come_together(tmp_path: Path) -> None:
    for name in ("train", "eval", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "completion": "c"}\nnonsense\n')
    data = Data(train="train.jsonl", eval="eval.jsonl", test="test.jsonl")
    with pytest.raises(DataError) as caught:
        read_samples(data, tmp_path, accepted=CausalLM().formats, seed=0, max_eval_rows=None, tick=lambda *_: None)
    assert sorted(Path(problem.file).name for problem in caught.value.problems) == [
        "eval.jsonl", "test.jsonl", "train.jsonl",
    ]  # fmt: skip
