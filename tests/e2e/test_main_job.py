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
from typing import Any

import psutil
import pytest

from ftune.manifest import verify

ROOT = Path(__file__).parents[2]


def ftune(*arguments: str | Path, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "ftune", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done


def write_recipe(folder: Path, **sections: Any) -> Path:
    """A 12-step LoRA recipe on a tiny model and 40 uneven rows, with whole sections replaced."""
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i} " + "ok " * (i % 5)} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": "builtin:tiny-llama",
        "method": {"name": "lora", "rank": 4, "dropout": 0.1},
        "data": {"train": "rows.jsonl", "eval": "20%"},
        "train": {"duration": "12 steps", "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2},
        "eval": {"every": 4},
        "checkpoint": {"every": 3},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def weights(run: Path) -> bytes:
    return (run / "model" / "adapter_model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    ftune("train", write_recipe(folder), "--quiet", cwd=folder)
    return folder


def test_whole_job(straight: Path) -> None:
    run = straight / "runs" / "recipe"
    again = ftune("train", "recipe.yaml", cwd=straight)
    assert "already complete" in again.stdout
    scored = json.loads(ftune("eval", run, "--json", cwd=straight).stdout)
    report = json.loads((run / "report.json").read_text())
    assert scored["metrics"]["loss"]["value"] == report["metrics"]["eval"]["loss"]["value"]
    assert scored["metrics"]["loss"]["value"] < scored["baseline"]["loss"]
    assert set(scored) >= {"target", "rows", "metrics", "shots", "baseline", "seconds"}
    merged = json.loads(ftune("merge", run, "--json", cwd=straight).stdout)
    assert merged["max_difference"] < 1e-4
    assert merged["token_agreement"] == 1.0
    of_merged = json.loads(ftune("eval", run / "merged", "--json", cwd=straight).stdout)
    assert of_merged["metrics"]["loss"]["value"] == pytest.approx(scored["metrics"]["loss"]["value"], rel=1e-5)
    answer = json.loads(
        ftune("generate", run, "--prompt", "1 + 1 =", "--max-new-tokens", "5", "--json", cwd=straight).stdout
    )
    assert len(answer["answers"]) == 1
    assert "DAMAGED" not in ftune("verify", run, cwd=straight).stdout
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml", "resolved.json", "plan.json", "run.json", "metrics.jsonl", "checkpoints", "model", "report.md",
        "report.json", "loss.png",
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
    resumed = ftune("train", recipe, cwd=tmp_path)
    assert "skipped checkpoint step_" in resumed.stderr
    assert "optimizer.safetensors" in resumed.stderr
    assert weights(run) == weights(straight / "runs" / "recipe")


@pytest.mark.parametrize(
    "kind", ["ENOSPC", pytest.param("EROFS", marks=pytest.mark.e2e), pytest.param("EACCES", marks=pytest.mark.e2e)]
)
def test_disk_errors_exit_5_and_lose_nothing(straight: Path, tmp_path: Path, kind: str) -> None:
    recipe = write_recipe(tmp_path)
    failed = ftune("train", recipe, "--quiet", cwd=tmp_path, code=5, FTUNE_TESTING="1", FTUNE_FAULT=f"70:{kind}")
    assert str(tmp_path) in failed.stderr
    ftune("train", recipe, "--quiet", cwd=tmp_path)
    assert weights(tmp_path / "runs" / "recipe") == weights(straight / "runs" / "recipe")


def test_two_processes_equal_one(straight: Path, tmp_path: Path) -> None:
    """Same losses step by step up to the order of sums, through our own launcher."""
    recipe = write_recipe(tmp_path, method={"name": "lora", "rank": 4})
    ftune("train", recipe, "--quiet", "--output-dir", "one", cwd=tmp_path)
    ftune("train", recipe, "--quiet", "--output-dir", "two", "--devices", "2", cwd=tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-6)


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
