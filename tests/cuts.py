"""Cutting runs, and whether a run that was cut is the one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from laws import events, train

from ftune.errors import Interrupted
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.manifest import sha256_of
from ftune.signals import StopFlag


class Stops(Listener):
    """Presses Ctrl-C during step `step`."""

    def __init__(self, step: int) -> None:
        self.at, self.flag = step, StopFlag()

    def step(self, result: Any, plan: Any, memory_bytes: int) -> None:
        if result.step == self.at:
            self.flag.signal_number = 2


def interrupt(loaded: Loaded, step: int) -> None:
    """Train until `step` and be interrupted there."""
    listener = Stops(step)
    with pytest.raises(Interrupted) as caught:
        train(loaded, listener, listener.flag)
    assert caught.value.code == 130
    assert f"step {step} of " in str(caught.value) and "is saved" in str(caught.value)


def assert_same_checkpoint(ours: Path, theirs: Path, step: int) -> None:
    """Every file of the weights and of the optimizer."""
    hashes = [
        {path.name: sha256_of(path) for path in (run / "checkpoints" / f"step_{step:06d}").glob("*.safetensors")}
        for run in (ours, theirs)
    ]
    assert hashes[0].keys() >= {"weights.safetensors", "optimizer.safetensors"}
    assert hashes[0] == hashes[1], step


def assert_same_run(ours: Path, theirs: Path, steps: int) -> None:
    """Final weights, optimizer, every loss, the artefact and what the report says of quality."""
    assert_same_checkpoint(ours, theirs, steps)
    for kind, keys in (("step", ("step", "loss", "grad_norm", "learning_rate", "rows")), ("eval", ("step", "loss"))):
        a, b = ([[event[key] for key in keys] for event in events(run, kind)] for run in (ours, theirs))
        assert a == b, kind
    assert [event["step"] for event in events(ours, "step")] == list(range(1, steps + 1))
    weights = next(path.name for path in (ours / "model").glob("*.safetensors"))
    assert (ours / "model" / weights).read_bytes() == (theirs / "model" / weights).read_bytes()
    reports = [json.loads((run / "report.json").read_text()) for run in (ours, theirs)]
    for key in ("metrics", "baseline", "rows_seen", "tokens_seen", "targets_seen", "model_step", "finished"):
        assert reports[0][key] == reports[1][key], key
