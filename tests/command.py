"""The command line in processes of its own, and what a small run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


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
