"""`ftune compare` as a command: trials, baselines, a table that is the same again, failures that stay in it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import ftune, recipe

ROWS = [{"prompt": f"what is {n} like", "completion": "good" if n % 3 else "bad"} for n in range(24)]
ALIKE = ("--budget", "3 steps", "--output-dir", "out", "--shots", "none", "--json", "--offline", "--quiet")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with eval and test rows, in the current folder."""
    monkeypatch.chdir(tmp_path)
    data = {"eval": "25%", "test": "rows.jsonl", "leakage": "warn", "near_duplicates": None}
    return recipe(
        tmp_path, rows=ROWS, method={"name": "lora", "rank": 2}, data=data, eval={"metrics": ["loss", "exact_match"],
        "max_new_tokens": 2},
    ).path  # fmt: skip


def compared(path: Path, *more: str) -> dict[str, Any]:
    done = ftune("compare", path, *ALIKE, *more, seconds=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_comparison_and_the_same_again(asked: Path) -> None:
    found = compared(asked, "--methods", "lora,feature_based", "--seeds", "2")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["lora", "feature_based", "majority", "tfidf"]
    assert found["split"] == "test" and found["metric"] == "exact_match" and found["rows_scored"] == 24
    assert rows["feature_based"]["value"] is None and rows["feature_based"]["about"]
    assert list(rows["lora"]["seeds"]) == ["0", "1"] and rows["lora"]["steps"] == 3
    assert rows["majority"]["value"] == pytest.approx(2 / 3) and found["recommended"] is None
    out = Path("out")
    assert {"compare.html", "compare.md", "compare.json", "compare.png", "trials", "logs"} <= {
        p.name for p in out.iterdir()
    }
    report = json.loads((out / "trials" / "lora_seed=1" / "report.json").read_text())
    assert rows["lora"]["seeds"]["1"] == report["metrics"]["test"]["exact_match"]["value"]
    written = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*") if path.is_file()}
    assert compared(asked, "--methods", "lora,feature_based", "--seeds", "2") == found
    assert {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*") if path.is_file()} == written


def test_a_learning_rate_of_zero_is_the_model_as_it_was(asked: Path) -> None:
    """And a trial that fails stays in the table, with its reason, beside the others."""
    more = ("--grid", "train.learning_rate=0.0,1e30", "--methods", "full", "--seeds", "1", "--metric", "loss")
    found = compared(asked, *more)
    still, broken = found["rows"][:2]
    report = json.loads((Path("out") / "trials" / "full_train.learning_rate=0.0_seed=0" / "report.json").read_text())
    assert report["metrics"]["eval"]["loss"]["value"] == pytest.approx(report["baseline"]["loss"], abs=0)
    assert still["learning_rate"] == 0 and still["value"] == report["metrics"]["test"]["loss"]["value"]
    assert broken["value"] is None and "exit code 7" in broken["about"]


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of rows whose label a word tells."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{WORDS[n % 3]} number {n}", "label": str(n % 3)} for n in range(120)]
    data = {"train": "rows.jsonl", "eval": "25%", "template": None, "near_duplicates": None}
    train = {"duration": "40 steps", "batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3}
    return recipe(
        tmp_path, rows=rows, model="builtin:tiny-bert", objective="sequence_classification", method="full", data=data,
        train=train, eval={"metrics": ["accuracy"]},
    ).path  # fmt: skip


WORDS = ("green", "stone", "river")


def test_a_head_that_is_fitted_at_once_stands_beside_steps(labelled: Path) -> None:
    """It has no budget; everything else is alike."""
    more = ("--methods", "full,feature_based", "--seeds", "2", "--budget", "40 steps", "--shots", "0")
    found = compared(labelled, *more)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["full"]["steps"] == 40 and rows["feature_based"]["steps"] == 1
    assert min(rows[name]["value"] for name in ("full", "feature_based", "tfidf")) > 0.9
    assert rows["0-shot"]["value"] is None and "encoder" in rows["0-shot"]["about"]
    assert any("No effect on feature_based" in remark for remark in found["remarks"])


def test_permuted_labels_teach_nothing(labelled: Path) -> None:
    """What the table calls better than chance comes from the labels: without them, nothing in it is."""
    path = labelled.parent / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    permuted = np.random.default_rng(0).permutation([row["label"] for row in rows])
    lines = [json.dumps({**row, "label": str(label)}) for row, label in zip(rows, permuted, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    found = compared(labelled, "--methods", "full,feature_based", "--seeds", "2", "--budget", "40 steps")
    for row in found["rows"]:
        assert row["ci95"][0] <= 1 / 3 <= row["ci95"][1], row["name"]
    assert found["recommended"] is None


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_it_goes_on(asked: Path, number: int) -> None:
    command = [sys.executable, "-m", "ftune", "compare", str(asked), *ALIKE, "--methods", "lora,full", "--seeds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(Path("out").glob("trials/lora*/report.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    first = Path("out/trials/lora_seed=0/report.json").stat().st_mtime_ns
    found = compared(asked, "--methods", "lora,full", "--seeds", "1")
    assert [row["value"] is not None for row in found["rows"][:2]] == [True, True]
    assert Path("out/trials/lora_seed=0/report.json").stat().st_mtime_ns == first


def test_what_is_wrong_is_said_before_anything_runs(asked: Path) -> None:
    done = ftune("compare", asked, "--methods", "lora,loar", "--output-dir", "out")
    assert done.returncode == 2 and "'loar' is no method" in done.stderr and not Path("out").exists()
    done = ftune("compare", asked, "--shots", "four", "--output-dir", "out")
    assert done.returncode == 2 and "--shots" in done.stderr and "'four'" in done.stderr
