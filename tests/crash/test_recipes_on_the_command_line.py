"""`ftune check` on spoilt and on good recipes, in processes that torch must not be in at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from command import ROOT
from laws import python
from mutations import damaged, dumped, spoil
from restyled import restyled
from test_fuzzed_recipes import RECIPES, plain

from ftune.errors import RecipeError
from ftune.load import load_recipe

CRASH = pytest.mark.crash
SEED = 30
HERE = [path for path in RECIPES if "starter" not in path.stem]
"""Recipes whose data are beside them or on the hub."""
LOOP = """
import contextlib, io, json, sys, time, traceback
from ftune.__main__ import main
done = []
for arguments in json.load(sys.stdin):
    sys.argv, out, err, code = ["ftune", *arguments], io.StringIO(), io.StringIO(), 0
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = -1
    done.append([code, out.getvalue(), err.getvalue(), time.process_time() - started])
heavy = sorted({"torch", "transformers", "peft"} & set(sys.modules))
print(json.dumps({"done": done, "heavy": heavy}))
"""


@dataclass
class Case:
    """A recipe file, and the whole of what `ftune check` must say of it on stderr; None where it is good."""

    path: Path
    kind: str
    said: str | None


def cases(folder: Path, count: int, seed: str) -> list[Case]:
    """Recipes in a folder that has the data of the shipped ones."""
    (folder / "data").symlink_to(ROOT / "recipes/data")
    made = []
    for number in range(count):
        random = Random(f"{SEED} {seed} {number}")
        path, source = folder / f"{number}.yaml", random.choice(HERE)
        kind = random.choice(["spoilt", "spoilt", "bytes", "good"])
        content = {
            "spoilt": lambda s=source, r=random: dumped(spoil(plain(s), r)[0].tree, r).encode(),
            "bytes": lambda s=source, r=random: damaged(s.read_text(encoding="utf-8"), r),
            "good": lambda s=source, r=random: restyled(plain(s), r),
        }[kind]()
        path.write_bytes(content)
        said = None
        try:
            load_recipe(path)
        except RecipeError as error:
            said = str(error)
            assert kind != "good", said
        made.append(Case(path, kind, said))
    return made


def judge(case: Case, code: Any, out: str, err: str) -> None:
    """Every problem on stderr and nothing else, or the rows; damaged bytes may name a file that is not there."""
    about = f"{case.kind} {case.path}, seed {SEED}: exit {code}\n{out}\n{err}\n{case.path.read_bytes()!r}"
    assert "Traceback" not in out + err, about
    if case.said is not None:
        assert (code, out, err) == (2, "", f"{case.said}\n"), about
    elif case.kind == "good":
        assert (code, err) == (0, "") and out.startswith(f"{case.path}: ok"), about
    else:
        assert code in (0, 3) and bool(out) == (code == 0), about


@pytest.mark.parametrize("count", [8, pytest.param(280, marks=CRASH)])
def test_many_in_one_process(tmp_path: Path, count: int) -> None:
    made = cases(tmp_path, count, "many")
    done = subprocess.run(
        [sys.executable, "-c", LOOP], cwd=tmp_path, input=json.dumps([["check", str(case.path)] for case in made]),
        capture_output=True, text=True, timeout=60 + 3 * count,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    for case, (code, out, err, seconds) in zip(made, found["done"], strict=True):
        judge(case, code, out, err)
        assert case.said is None or seconds < 1, (case, seconds)
    kinds = [(case.kind, case.said is None) for case in made]
    assert kinds.count(("good", True)) >= count / 8 and kinds.count(("spoilt", False)) >= count / 4


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=CRASH)])
def test_each_in_a_process_of_its_own(tmp_path: Path, count: int) -> None:
    for case in cases(tmp_path, count, "alone"):
        done = python("-m", "ftune", "check", str(case.path))
        judge(case, done.returncode, done.stdout, done.stderr)
