"""300 generated malformed files: each problem has its exact file and row, and no traceback is ever seen."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from malformed import COLUMNAR, SHAPES, TEXT, Case, make
from typer.testing import CliRunner

from ftune.cli import app

FILES = 300
CASES = [make(seed) for seed in range(FILES)]


def exact_file_and_row(case: Case, folder: Path) -> None:
    """`ftune check` names every row that is spoilt and no other, says why, and leaves with 3."""
    result = CliRunner().invoke(app, ["check", str(case.recipe(folder))])
    assert (result.exit_code, result.stdout) == (3, ""), (case, result.output, result.exception)
    lines = result.stderr.splitlines()
    found = [re.fullmatch(rf"{re.escape(str(folder / case.name))}:(\d+)(?: |: )(.*)", line) for line in lines]
    assert None not in found, lines
    assert [int(match[1]) for match in found if match] == [row for row, _ in case.expected], (case.fault, lines)
    for match, (_, said) in zip(found, case.expected, strict=True):
        assert match is not None and said in match[2], (case.fault, match)


@pytest.mark.parametrize("seed", range(FILES))
def test_exact_file_and_row(seed: int, tmp_path: Path) -> None:
    exact_file_and_row(CASES[seed], tmp_path)


@pytest.mark.crash
def test_exact_file_and_row_of_2000(tmp_path: Path) -> None:
    seen = Counter[str]()
    for seed in range(2000):
        case, folder = make(seed), tmp_path / str(seed)
        folder.mkdir()
        exact_file_and_row(case, folder)
        shutil.rmtree(folder)
        seen[case.name.removeprefix("rows.")] += 1
    assert min(seen.values()) >= 10
    print(f"{seen.total()} files: {dict(seen)}")


def test_everything_is_tried_often() -> None:
    names = [case.name.split(".", 1)[1] for case in CASES]
    for kind in ("jsonl", "json", "csv", "tsv", "conll", "txt", "log", "parquet", "arrow"):
        for ending in ("", ".gz", ".zst"):
            assert names.count(kind + ending) >= 2, kind + ending
    faults = " ".join(case.fault for case in CASES)
    for fault in ("cut off", "bytes", "shape", "repeated key", "half a surrogate", "NaN", "NUL", "huge", "too deep",
                  "not closed", "no object", "short", "long", "empty", "after a quote", "unclosed", "null", "twice",
                  "keyed", "wrapped", "one column"):  # fmt: skip
        assert faults.count(fault) >= 3, fault
    assert {case.shape for case in CASES} == set(SHAPES)
    assert len(TEXT) + len(COLUMNAR) == 10
