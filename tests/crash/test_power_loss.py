"""Power cuts at every durable operation of a run: what was committed is there, whole, and the run goes on from it."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from laws import events, recipe, train
from power import Recorder

from ftune.checkpoints import checkpoints, newest_good
from ftune.load import Loaded
from ftune.manifest import MANIFEST, verify
from ftune.store import Store

STEPS = 10
SEED = 20261201
HEAD = ("recipe.yaml", "resolved.json", "plan.json", "run.json")
"""What a run writes before its first checkpoint."""


def ten_steps(folder: Path) -> Loaded:
    """A checkpoint of every step, of which two are kept and the best: something is replaced or removed all the time."""
    return recipe(
        folder,
        method={"name": "lora", "rank": 4, "dropout": 0.1},
        data={"eval": "rows.jsonl"},
        train={"duration": f"{STEPS} steps", "learning_rate": 0.3},
        eval={"every": 2},
        checkpoint={"every": 1, "keep": 2},
    )


@dataclass
class Cuts:
    """Cuts the power at each operation of a run, `each` times, and looks at what is left."""

    run: Path
    each: int
    look: Callable[[Path, int | None], None]
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))
    states: int = 0
    committed: int | None = None
    recorder: Recorder | None = None

    def before(self, kind: str, path: Path) -> None:
        """One more durable operation is about to happen."""
        if self.recorder is None:
            self.run.mkdir(exist_ok=True)
            self.recorder = Recorder(self.run)
        self.recorder.before(kind, path)
        if kind == "append":  # the run says so in its log: nothing it saved before may go
            self.committed = max((step for step, _ in checkpoints(self.run)), default=None)
        for _ in range(self.each):
            self.states += 1
            with tempfile.TemporaryDirectory(dir=self.run.parent) as folder:
                self.recorder.after_a_cut(self.draw, Path(folder))
                self.look(Path(folder), self.committed)


def look(root: Path, committed: int | None) -> None:
    """What is promised: the newest committed checkpoint and the best one are there, and every file is whole."""
    Store(root).sweep()
    newest, skipped = newest_good(root)
    assert skipped == [], "a checkpoint is neither whole nor absent"
    assert (newest[0] if newest else 0) >= (committed or 0), f"checkpoint {committed} was committed and is gone"
    there = {step for step, path in checkpoints(root) if verify(path)}
    if newest is not None:
        state = json.loads((newest[1] / "state.json").read_text())
        assert state["step"] == newest[0]
        assert state["best_step"] is None or state["best_step"] in there, "the best checkpoint is gone"
        for name in HEAD:
            assert (root / name).stat().st_size > 0
    for path in root.glob("*.json"):
        json.loads(path.read_text())
    if (root / "model" / MANIFEST).exists():
        verify(root / "model")
    assert [path.name for path in root.rglob(".t*")] == []


def cut(tmp_path: Path, each: int, resume_every: int) -> tuple[int, int]:
    """Run with cuts; every `resume_every`-th state is gone on with to the end. Returns how many states and resumes."""
    straight = tmp_path / "straight"
    train(ten_steps(straight))
    seen = resumed = 0

    def look_and_resume(root: Path, committed: int | None) -> None:
        nonlocal seen, resumed
        look(root, committed)
        seen += 1
        if seen % resume_every:
            return
        resumed += 1
        with tempfile.TemporaryDirectory(dir=tmp_path) as again:
            loaded = ten_steps(Path(again))
            root.rename(Path(again) / "run")
            root.mkdir()
            train(loaded)
            assert_same(Path(again) / "run", straight / "run")

    cuts = Cuts(tmp_path / "cut" / "run", each, look_and_resume)
    try:
        train(ten_steps(tmp_path / "cut"), on_operation=cuts.before)
    finally:
        if cuts.recorder is not None:
            cuts.recorder.close()
    assert_same(tmp_path / "cut" / "run", straight / "run")
    return cuts.states, resumed


def assert_same(ours: Path, theirs: Path) -> None:
    """Weights, optimizer and every loss."""
    last = f"checkpoints/step_{STEPS:06d}"
    for name in ("model/adapter_model.safetensors", f"{last}/weights.safetensors", f"{last}/optimizer.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for kind in ("step", "eval"):
        a, b = ([(event["step"], event["loss"]) for event in events(run, kind)] for run in (ours, theirs))
        assert a == b, kind


def test_power_cut_at_every_operation(tmp_path: Path) -> None:
    states, resumed = cut(tmp_path, 1, 100)
    assert states > 200 and resumed >= 2


@pytest.mark.crash
def test_two_thousand_power_cuts(tmp_path: Path) -> None:
    states, resumed = cut(tmp_path, 8, 20)
    print(f"{states} states, {resumed} resumed")
    assert states >= 2000 and resumed >= 100
