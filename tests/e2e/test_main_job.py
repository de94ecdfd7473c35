"""The main job through the real command line: train, kill, go on, evaluate, merge, generate, verify."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command import ROOT, ftune, losses, weights, write_recipe

from ftune.manifest import verify


def test_whole_job(straight: Path) -> None:
    run = straight / "runs" / "recipe"
    again = ftune("train", "recipe.yaml", cwd=straight)
    assert "already complete" in again.stdout
    scored = json.loads(ftune("eval", run, "--json", "--batch-size", 2, cwd=straight).stdout)  # as large as the run's
    report = json.loads((run / "report.json").read_text())
    assert scored["metrics"]["loss"]["value"] == report["metrics"]["eval"]["loss"]["value"]
    assert scored["metrics"]["loss"]["value"] < scored["baseline"]["loss"]
    assert set(scored) >= {"target", "rows", "metrics", "shots", "baseline", "seconds"}
    merged = json.loads(ftune("merge", run, "--json", cwd=straight).stdout)
    assert merged["max_difference"] < 1e-4
    assert merged["token_agreement"] == 1.0
    of_merged = json.loads(ftune("eval", run / "merged", "--json", cwd=straight).stdout)
    rounding = 1e-3 if json.loads((run / "plan.json").read_text())["precision"]["value"] == "bf16" else 1e-5
    assert of_merged["metrics"]["loss"]["value"] == pytest.approx(scored["metrics"]["loss"]["value"], rel=rounding)
    answer = json.loads(
        ftune("generate", run, "--prompt", "1 + 1 =", "--max-new-tokens", "5", "--json", cwd=straight).stdout
    )
    assert len(answer["answers"]) == 1
    assert "DAMAGED" not in ftune("verify", run, cwd=straight).stdout
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml", "resolved.json", "plan.json", "run.json", "metrics.jsonl", "checkpoints", "model", "report.md",
        "report.json", "report.html", "loss.png", "training.png", "data.png",
    }  # fmt: skip


@pytest.mark.parametrize("operation", [pytest.param(20, marks=pytest.mark.e2e), 60, 100])
def test_sigkill_then_the_same_command_gives_the_same_bits(straight: Path, tmp_path: Path, operation: int) -> None:
    recipe = write_recipe(tmp_path)
    kill = {"FTUNE_TESTING": "1", "FTUNE_FAULT": f"{operation}:KILL"}
    ftune("train", recipe, "--quiet", cwd=tmp_path, code=-signal.SIGKILL, **kill)
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    assert weights(tmp_path / "runs" / "recipe") == weights(straight / "runs" / "recipe")
    assert losses(tmp_path / "runs" / "recipe") == losses(straight / "runs" / "recipe")


def interrupted(recipe: Path, number: signal.Signals, *options: str) -> tuple[int, str]:
    """Start training, send `number` after step 2, and return the exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ftune", "train", str(recipe), *options],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = recipe.parent / "runs" / "recipe" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and '"event": "step", "step": 2,' in metrics.read_text():
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.e2e), (signal.SIGTERM, 143)]
)
def test_signals_save_and_leave(straight: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    recipe = write_recipe(tmp_path, checkpoint={"every": 1000})
    returned, stderr = interrupted(recipe, number)
    assert returned == code, stderr
    assert "The same command goes on" in stderr
    assert "Traceback" not in stderr
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    assert losses(tmp_path / "runs" / "recipe") == losses(straight / "runs" / "recipe")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.e2e)]
)
def test_signals_reach_every_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The launcher passes them on; all processes agree on the step that is saved, and none is left."""
    train = {"duration": "5000 steps", "batch_size": 4, "micro_batch_size": 2}
    recipe = write_recipe(tmp_path, train=train, checkpoint={"every": 100_000}, data={"train": "rows.jsonl"}, eval={})
    returned, stderr = interrupted(recipe, number, "--devices", "2", "--quiet")
    assert returned == code, stderr
    assert re.search(r"step [0-9]+ of 5000 is saved", stderr)
    assert "Traceback" not in stderr
    (checkpoint,) = (tmp_path / "runs" / "recipe" / "checkpoints").iterdir()
    verify(checkpoint)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(recipe) in (p.info["cmdline"] or [])]
    assert left == []


@pytest.mark.e2e
def test_sigusr1_to_the_launcher_saves_and_goes_on(tmp_path: Path) -> None:
    train = {"duration": "60 steps", "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
    recipe = write_recipe(tmp_path, train=train, checkpoint={"every": 1000}, data={"train": "rows.jsonl"}, eval={})
    returned, stderr = interrupted(recipe, signal.SIGUSR1, "--devices", "2", "--quiet")
    assert returned == 0, stderr
    run = tmp_path / "runs" / "recipe"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    saved = [event["step"] for event in map(json.loads, lines) if event["event"] == "checkpoint"]
    assert len(saved) == 2 and 2 <= saved[0] < 60 and saved[1] == 60


def test_longer_duration_goes_on(straight: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    ftune("train", recipe, "--set", "train.duration=16 steps", "--quiet", cwd=tmp_path)
    assert len(losses(tmp_path / "runs" / "recipe")) == 16


def test_damage_is_found_and_stepped_over(straight: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    stop = {"FTUNE_TESTING": "1", "FTUNE_FAULT": "100:KILL"}
    ftune("train", recipe, "--quiet", cwd=tmp_path, code=-signal.SIGKILL, **stop)
    run = tmp_path / "runs" / "recipe"
    newest = max((run / "checkpoints").glob("step_*"))
    target = newest / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    assert "DAMAGED" in ftune("verify", run, cwd=tmp_path, code=4).stdout
    resumed = ftune("train", recipe, "--quiet", cwd=tmp_path)
    assert "skipped checkpoint step_" in resumed.stderr
    assert "optimizer.safetensors" in resumed.stderr
    assert weights(run) == weights(straight / "runs" / "recipe")


def test_two_processes_equal_one(straight: Path, tmp_path: Path) -> None:
    """Same losses step by step up to the order of sums, through our own launcher."""
    recipe = write_recipe(tmp_path, method={"name": "lora", "rank": 4})
    ftune("train", recipe, "--quiet", "--output-dir", "one", cwd=tmp_path)
    ftune("train", recipe, "--quiet", "--output-dir", "two", "--devices", "2", cwd=tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-6)
