"""Loader hooks: rows of any shape from the user's own function, and what is said when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data.cache import Cache
from ftune.data.read import Row, files_of, read_source
from ftune.data.samples import read_samples
from ftune.drift import data_files
from ftune.errors import DataError, RowProblem
from ftune.hook import module_file
from ftune.load import load_recipe
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import Data, Source

GOOD = """
from dataclasses import dataclass

@dataclass
class Pair:
    a: "str"

def rows(path):
    for line in path.read_text().splitlines():
        yield {"text": line}

def listed(path):
    return [{"text": str(sorted(p.name for p in path.iterdir()))}]
"""


def hook(folder: Path, text: str, name: str = "hooks") -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "a.txt").write_text("one\ntwo\n")


def read(folder: Path, loader: str, path: str = "a.txt", **keys: Any) -> list[Row | RowProblem]:
    return list(read_source(Source(path=path, loader=loader, **keys), folder))


def failure(folder: Path, text: str, loader: str = "hooks:rows") -> str:
    hook(folder, text)
    with pytest.raises(DataError) as caught:
        read(folder, loader)
    return str(caught.value).replace(str(folder), "F")


def test_rows_have_their_own_count(tmp_path: Path) -> None:
    hook(tmp_path, GOOD)
    place = str(tmp_path / "a.txt")
    assert read(tmp_path, "hooks:rows") == [Row(place, 1, {"text": "one"}), Row(place, 2, {"text": "two"})]
    assert [row.number for row in read(tmp_path, "hooks:rows", split="[1:]") if isinstance(row, Row)] == [2]
    assert [row.number for row in read(tmp_path, "hooks:rows", split="[50%:]") if isinstance(row, Row)] == [2]
    (row, _) = read(tmp_path, "hooks:rows", values={"label": "x"})
    assert isinstance(row, Row) and row.values == {"text": "one", "label": "x"}


def test_a_loader_is_called_for_each_file_or_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    hook(tmp_path, GOOD)
    for name in ("x.txt", "y.dat"):
        (tmp_path / "data" / name).write_text(name)
    rows = read(tmp_path, "hooks:rows", "data/*")
    assert [(Path(row.file).name, row.number) for row in rows if isinstance(row, Row)] == [("x.txt", 1), ("y.dat", 1)]
    (row,) = read(tmp_path, "hooks:listed", "data")
    assert row == Row(str(tmp_path / "data"), 1, {"text": "['x.txt', 'y.dat']"})


def test_a_module_may_be_in_a_package_or_installed_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "neighbour_of_hooks.py").write_text("WORD = 'near'\n")
    hook(tmp_path, "")
    (tmp_path / "pack" / "deep.py").write_text(
        "from neighbour_of_hooks import WORD\ndef rows(path):\n    yield {'text': WORD}\n"
    )
    before = list(sys.path)
    (row,) = read(tmp_path, "pack.deep:rows")
    assert isinstance(row, Row) and row.values == {"text": "near"}
    assert sys.path == before
    assert module_file("json.decoder:JSONDecoder", tmp_path) == Path(json.decoder.__file__)
    assert module_file("no.such:x", tmp_path) is None and module_file("sys:exit", tmp_path) is None


def test_a_changed_module_is_read_anew_and_is_among_the_files(tmp_path: Path) -> None:
    hook(tmp_path, GOOD)
    read(tmp_path, "hooks:rows")
    hook(tmp_path, "def rows(path):\n    yield {'text': 'new'}\n")
    (row,) = read(tmp_path, "hooks:rows")
    assert isinstance(row, Row) and row.values == {"text": "new"}
    source = Source(path="a.txt", loader="hooks:rows")
    assert files_of(source, tmp_path) == [tmp_path / "a.txt", tmp_path / "hooks.py"]
    data = {"train": {"path": "a.txt", "loader": "hooks:rows"}}
    (tmp_path / "r.yaml").write_text(json.dumps({"model": "builtin:tiny-llama", "data": data}))
    before = data_files(load_recipe(tmp_path / "r.yaml").recipe, tmp_path)
    hook(tmp_path, GOOD)
    after = data_files(load_recipe(tmp_path / "r.yaml").recipe, tmp_path)
    assert [Path(name).name for name in before] == ["a.txt", "hooks.py"] and before != after
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.lst").write_text("1")
    found = files_of(Source(path="data", loader="hooks:rows"), tmp_path)
    assert [path.name for path in found] == ["x.lst", "hooks.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def rows(path):\n    yield {'text': 'a'}\n    yield {}['x']\n",
         "loader hooks:rows failed at F/hooks.py:3 after 1 rows of F/a.txt: KeyError: 'x'."),
        ("def rows(path):\n    raise SystemExit(3)\n    yield\n",
         "loader hooks:rows failed at F/hooks.py:2 after 0 rows of F/a.txt: SystemExit: 3."),
        ("import json\ndef rows(path):\n    yield json.loads('{')\n",
         "loader hooks:rows failed at F/hooks.py:3 after 0 rows of F/a.txt: JSONDecodeError: Expecting property name"),
        ("def rows(path):\n    open(path / 'x')\n    yield\n",
         "loader hooks:rows failed at F/hooks.py:2 after 0 rows of F/a.txt: NotADirectoryError"),
        ("def rows():\n    yield {}\n",
         "loader hooks:rows failed at F/hooks.py after 0 rows of F/a.txt: TypeError: rows() takes 0 positional"),
        ("def rows(path):\n    return 5\n", "loader hooks:rows: expected rows, received int. Yield one dict a row."),
        ("def rows(path):\n    return {'a': 1}\n", "loader hooks:rows: expected rows, received dict."),
        ("def row(path):\n    yield {}\n", "loader hooks:rows: hooks has no function 'rows'. Did you mean 'row'?"),
        ("rows = 5\n", "loader hooks:rows: hooks has no function 'rows'."),
        ("def rows(path)\n", "loader hooks:rows: F/hooks.py:1 cannot be imported: SyntaxError: expected ':'"),
        ("x = 1\nimport no_such_package\n",
         "loader hooks:rows: F/hooks.py:2 cannot be imported: ModuleNotFoundError: No module named 'no_such_package'."),
        ("def rows(path):\n    return iter(())\n", "F/a.txt: holds no rows."),
    ],
)  # fmt: skip
def test_a_loader_that_fails_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert failure(tmp_path, text).startswith(message)


def test_a_loader_that_is_not_there(tmp_path: Path) -> None:
    message = "loader nowhere:rows: no module 'nowhere' beside the recipe (F) and none installed."
    assert failure(tmp_path, "", "nowhere:rows") == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "expected a dict of columns from the loader, received int."),
        ("{1: 'a'}", "expected text as the name of a column, received int: 1."),
        ("{'a': '\\ud83d'}", "holds half of a surrogate pair."),
        ("{'a': {(1, 2): 3}}", "holds a value that is no text, number, list or dict: keys must be str"),
    ],
)
def test_what_is_no_row_is_a_problem_of_its_row(tmp_path: Path, value: str, message: str) -> None:
    hook(tmp_path, f"def rows(path):\n    yield {{'text': 'a'}}\n    yield {value}\n    yield {{'text': 'b'}}\n")
    _, problem, last = read(tmp_path, "hooks:rows")
    assert isinstance(problem, RowProblem) and problem.row == 2 and problem.message.startswith(message)
    assert isinstance(last, Row) and last.number == 3


def test_the_command_line_shows_no_traceback(tmp_path: Path) -> None:
    hook(tmp_path, "def rows(path):\n    yield 1 / 0\n")
    data = {"train": {"path": "a.txt", "loader": "hooks:rows"}}
    (tmp_path / "r.yaml").write_text(json.dumps({"model": "builtin:tiny-llama", "data": data}))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.yaml")])
    assert result.exit_code == 3
    assert "hooks.py:2 after 0 rows" in result.stderr and "ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.output


def test_kept_rows_are_read_anew_when_the_module_or_a_file_of_its_folder_changes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.lst").write_text("a")
    text = (
        "def rows(path):\n    with (path.parent / 'ran').open('a') as ran:\n        ran.write('x')\n"
        "    yield {'text': 'FIRST'}\n"
    )
    hook(tmp_path, text)
    data = Data(train=Source(path="data", loader="hooks:rows"))

    def read() -> tuple[str, int]:
        found = read_samples(
            data, tmp_path, accepted=CausalLM().formats, seed=0, max_eval_rows=None, tick=lambda *_: None,
            cache=Cache(tmp_path / "cache"),
        )  # fmt: skip
        assert tuple(found.readings) == ("data: format text, as its columns say (text).",)
        return found.train[0].text, len((tmp_path / "ran").read_text())

    assert [read(), read()] == [("FIRST", 1), ("FIRST", 1)]
    hook(tmp_path, text.replace("FIRST", "second"))
    assert [read(), read()] == [("second", 2), ("second", 2)]
    (tmp_path / "data" / "labels.lst").write_text("b")
    assert [read(), read()] == [("second", 3), ("second", 3)]
