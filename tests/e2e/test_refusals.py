"""What must not happen, through the real command line: locks, refusals, bad input, full disks, odd locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, ftune, weights, write_recipe


def test_locked_folder(straight: Path, tmp_path: Path) -> None:
    """While one process holds the folder, another leaves at once with exit 6 and names it."""
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from pathlib import Path; from ftune.locking import lock\n"
            "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)",
            str(tmp_path / "runs" / "recipe"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    refused = ftune("train", write_recipe(tmp_path), cwd=tmp_path, code=6)
    assert str(holder.pid) in refused.stderr
    holder.kill()
    holder.wait()
    holder.stdout.close()
    ftune("train", tmp_path / "recipe.yaml", "--quiet", cwd=tmp_path)


def test_refusals_touch_nothing(straight: Path, tmp_path: Path) -> None:
    """Drift, foreign folders and damaged data: the right exit code, one clear message, nothing changed."""
    recipe = write_recipe(tmp_path)
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    run = tmp_path / "runs" / "recipe"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    changed = ftune("train", recipe, "--set", "method.rank=8", "--set", "seed=3", cwd=tmp_path, code=4)
    assert "method.rank (--set): the run has 4, the recipe now says 8." in changed.stderr
    assert "seed (--set): the run has 0, the recipe now says 3." in changed.stderr
    shorter = ftune("train", recipe, "--set", "train.duration=5 steps", cwd=tmp_path, code=2)
    assert "12 steps already" in shorter.stderr
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace(" + ", " plus "), encoding="utf-8")
    drifted = ftune("train", recipe, cwd=tmp_path, code=4)
    assert "data.train" in drifted.stderr
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("keep", encoding="utf-8")
    refused = ftune("train", recipe, "--output-dir", "mine", cwd=tmp_path, code=2)
    assert "holds files that are no run" in refused.stderr
    ftune("train", recipe, "--overwrite", "--quiet", cwd=tmp_path)
    assert "data.train" not in ftune("verify", run, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"method": "lroa"}, 2),
        ({"data": {"train": "gone.jsonl"}}, 3),
        ({"data": {"train": "rows.jsonl", "columns": {"prompt": "question"}}}, 3),
        ({"data": {"train": "rows.jsonl", "max_length": 4}}, 3),
        ({"model": "./no-such-folder"}, 10),
    ],
    ids=["recipe", "no file", "column", "overlong", "model"],
)
def test_bad_input_writes_nothing(tmp_path: Path, change: dict[str, Any], code: int) -> None:
    recipe = write_recipe(tmp_path, **{"eval": {}, **change} if "data" in change else change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ftune("train", recipe, "--quiet", cwd=tmp_path, code=code)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "runs").exists()


def test_moved_rows_are_the_same_rows(straight: Path, tmp_path: Path) -> None:
    """A finished run whose recipe moved with its data goes on being finished."""
    there = tmp_path / "there"
    there.mkdir()
    ftune("train", write_recipe(tmp_path), "--output-dir", "run", "--quiet", cwd=tmp_path)
    for name in ("recipe.yaml", "rows.jsonl"):
        (tmp_path / name).rename(there / name)
    ftune("train", there / "recipe.yaml", "--output-dir", "run", "--quiet", cwd=tmp_path)
    again = ftune("train", there / "recipe.yaml", "--output-dir", "run", cwd=tmp_path)
    assert "already complete" in again.stdout


@pytest.mark.parametrize(
    "kind", ["ENOSPC", pytest.param("EROFS", marks=pytest.mark.e2e), pytest.param("EACCES", marks=pytest.mark.e2e)]
)
def test_disk_errors_exit_5_and_lose_nothing(straight: Path, tmp_path: Path, kind: str) -> None:
    recipe = write_recipe(tmp_path)
    failed = ftune("train", recipe, "--quiet", cwd=tmp_path, code=5, FTUNE_TESTING="1", FTUNE_FAULT=f"70:{kind}")
    assert str(tmp_path) in failed.stderr
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    assert weights(tmp_path / "runs" / "recipe") == weights(straight / "runs" / "recipe")


def test_c_locale_and_cp1252(tmp_path: Path) -> None:
    """Text of the whole world in recipe and data, whatever the terminal can show."""
    rows = [{"prompt": "\u4f60\u597d \U0001f600", "completion": f"\u00e9t\u00e9 {i}"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "# \u4f60\u597d\nmodel: builtin:tiny-gpt2\nmethod: lora\ndata: {train: rows.jsonl}\n"
        "train: {duration: 1 steps, batch_size: 2}\n",
        encoding="utf-8",
    )
    ftune("train", recipe, cwd=tmp_path, PYTHONUTF8="0", PYTHONIOENCODING="cp1252", LC_ALL="C")
