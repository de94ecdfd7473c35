"""What trials of a disturbed run share: a short run that does everything, how to make it, and what must come out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import forked
from command import write_recipe

from ftune.checkpoints import checkpoints
from ftune.manifest import sha256_of, verify

METHODS: dict[str, dict[str, Any]] = {"lora": {"name": "lora", "rank": 4, "dropout": 0.1}, "full": {"name": "full"}}
LEFT = re.compile(r"\.(tmp-.+|trash)-[0-9a-f]{32}", re.DOTALL)


def write(folder: Path, method: str) -> Path:
    """Four steps, each second of which is evaluated and saved; the second save deletes the first."""
    train = {"duration": "4 steps", "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
    return write_recipe(
        folder, method=METHODS[method], train=train, eval={"every": 2}, checkpoint={"every": 2, "keep": 1}
    )


def train(folder: Path, *more: str, **environment: str) -> tuple[int, str, str]:
    """`ftune train` on the recipe of the folder, into `folder/run`; a bug report or a traceback fails the test."""
    code, out, err = forked.run(["train", "recipe.yaml", "--output-dir", "run", "--quiet", *more], folder, environment)
    assert "Traceback" not in out + err and "internal error" not in err, err
    return code, out, err


def result(run: Path) -> dict[str, Any]:
    """What does not depend on how often a run was disturbed: all weights, the optimizer, and each loss to the bit."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] in ("step", "eval")]
    tensors = sorted(run.rglob("*.safetensors"))
    assert any(path.name == "optimizer.safetensors" for path in tensors)
    return {
        "tensors": {str(path.relative_to(run)): sha256_of(path) for path in tensors},
        "losses": [(event["event"], event["step"], event["loss"].hex()) for event in events],
    }


def leftovers(run: Path) -> list[Path]:
    """Temp and trash folders and files of the store, outermost only."""
    return [path for path in run.rglob(".*") if LEFT.fullmatch(path.name)]


def verified(run: Path) -> int:
    """How many checkpoints are there; each must be whole."""
    found = checkpoints(run)
    for _, path in found:
        verify(path)
    return len(found)
