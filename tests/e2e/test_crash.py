"""SIGKILL all over a run's durable operations: the same command goes on, to the same bits. `make crash`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ftune.manifest import sha256_of

ROOT = Path(__file__).parents[2]
METHODS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
TRIALS = 12


def recipe(folder: Path, method: str) -> Path:
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i} " + "ok " * (i % 4)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: builtin:tiny-llama\nmethod: {method}\ndata: {{train: rows.jsonl, eval: 25%}}\n"
        "train: {duration: 3 epochs, batch_size: 4, micro_batch_size: 2, learning_rate: 1e-3}\n"
        "eval: {every: 4}\ncheckpoint: {every: 3}\n",
        encoding="utf-8",
    )
    return path


def train(folder: Path, **environment: str) -> int:
    command = [sys.executable, "-m", "ftune", "train", "recipe.yaml", "--quiet"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode


def result(folder: Path, method: str) -> tuple[str, list[float]]:
    run = folder / "runs" / "recipe"
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] in ("step", "eval")]
    return sha256_of(run / "model" / METHODS[method]), losses


@pytest.mark.crash
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_operations_all_over_a_run(method: str, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    straight.mkdir()
    recipe(straight, method)
    assert train(straight) == 0
    expected = result(straight, method)
    last = _number_of_operations(tmp_path / "counted", method)
    for trial in range(TRIALS):
        folder = tmp_path / f"trial{trial}"
        folder.mkdir()
        recipe(folder, method)
        operation = 1 + trial * (last - 1) // (TRIALS - 1)
        code = train(folder, FTUNE_TESTING="1", FTUNE_FAULT=f"{operation}:KILL")
        assert code == -signal.SIGKILL, f"operation {operation} of {last} was never reached"
        assert train(folder) == 0, f"does not go on after a kill at operation {operation}"
        assert result(folder, method) == expected, f"other bits after a kill at operation {operation}"


def _number_of_operations(folder: Path, method: str) -> int:
    """Durable operations of one whole run, counted in process. The command line's lock has made the folder before."""
    from ftune.listener import Listener
    from ftune.load import load_recipe
    from ftune.run import train as train_in_process
    from ftune.signals import StopFlag

    (folder / "run").mkdir(parents=True)
    count = 0

    def counted(kind: str, path: Path) -> None:
        nonlocal count
        count += 1

    overrides = [f"output_dir={folder / 'run'}"]
    loaded = load_recipe(recipe(folder, method), overrides)
    train_in_process(loaded, listener=Listener(), stop=StopFlag(), on_operation=counted)
    return count
