"""Random lives of a run against an oracle: whatever happens, the last and the best checkpoint are there and whole.

The run is the program's own from the evaluation to the deletion of old checkpoints; only the losses are made up.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from facts import plan_of, recipe_of

from ftune import run as program
from ftune import stopping
from ftune.checkpoints import checkpoints, newest_good
from ftune.errors import ArtifactError
from ftune.listener import Listener
from ftune.manifest import MANIFEST, verify
from ftune.plan import Plan
from ftune.resuming import newest_checkpoint, state_of
from ftune.session import Run
from ftune.signals import StopFlag
from ftune.state import TrainState
from ftune.store import Store

SEED = 12
NEVER = 10**9
OPERATIONS = ("save", "save", "better", "better", "worse", "nan", "crash", "resume", "keep", "mtimes", "incomplete",
              "damage")  # fmt: skip


class Died(BaseException):
    """The process, at one durable operation."""


@dataclass
class Oracle:
    """What must be on disk, by arithmetic alone.

    Args:
        keep: newest checkpoints to keep.
        there: (best step, its loss) in the state of each checkpoint.
        damaged: steps whose checkpoint somebody damaged.
        step, best, loss: of the run.
    """

    keep: int = 2
    there: dict[int, tuple[int | None, float | None]] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    step: int = 0
    best: int | None = None
    loss: float | None = None

    @property
    def good(self) -> list[int]:
        return sorted(self.there.keys() - self.damaged)

    def judged(self, loss: float) -> bool:
        """Whether an evaluation makes this step the best."""
        better = math.isfinite(loss) and (self.loss is None or loss < self.loss)
        if better:
            self.best, self.loss = self.step, loss
        return better

    def saved(self) -> None:
        """This step is published, and old ones go."""
        self.there[self.step] = (self.best, self.loss)
        self.damaged.discard(self.step)
        kept = {*sorted(self.there)[-self.keep :], self.step, self.best}
        self.there = {step: known for step, known in self.there.items() if step in kept}
        self.damaged &= self.there.keys()

    def resumed(self) -> None:
        """The newest good checkpoint is taken up; a best that is gone is forgotten."""
        self.step = self.good[-1] if self.good else 0
        self.best, self.loss = self.there.get(self.step, (None, None))
        if self.best is not None and self.best not in self.there:
            self.best = self.loss = None


class Life:
    """One run and its oracle."""

    def __init__(self, root: Path, random: Random) -> None:
        self.root, self.random, self.oracle, self.deaths = root, random, Oracle(), 0
        self.plan: Plan = plan_of().model_copy(update={"steps": NEVER, "keep": 2, "eval_every": None, "patience": None})
        self.run = self._open(TrainState(), None)

    def _open(self, state: TrainState, on_operation: Callable[[str, Path], None] | None) -> Run:
        import torch

        model: Any = torch.nn.Linear(2, 1)
        lone: Any = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)
        prepared: Any = SimpleNamespace(
            dataset=SimpleNamespace(guard={}), facts=SimpleNamespace(model=SimpleNamespace(fingerprint="base"))
        )
        loaded: Any = SimpleNamespace(recipe=recipe_of(), source=lambda key: key)
        optimizer: Any = SimpleNamespace(state={}, param_groups=[])
        store = Store(self.root, on_operation)
        return Run(loaded, prepared, self.plan, self.root, store, Listener(), StopFlag(), lone, model, model, optimizer,
                   state)  # fmt: skip

    def step(self, *, loss: float | None, save: bool, dies: int | None = None) -> None:
        """One update, with an evaluation or a checkpoint when asked."""
        oracle, run, count = self.oracle, self.run, 0

        def on_operation(kind: str, path: Path) -> None:
            nonlocal count
            count += 1
            if dies is not None and count >= dies:
                raise Died

        every = {"eval_every": None if loss is None else 1, "checkpoint_every": 1 if save else NEVER}
        run.plan = self.plan.model_copy(update=every)
        run.store = Store(self.root, on_operation)
        run.state.step += 1
        oracle.step += 1
        publishes = save or (loss is not None and oracle.judged(loss))
        if loss is not None and save:
            oracle.judged(loss)
        with mock.patch.object(program, "_evaluate", lambda run, *, generate: {"loss": loss}):
            program._after_step(run)
        if publishes:
            oracle.saved()
        assert run.state.best_step == oracle.best

    def crash(self) -> None:
        """A death somewhere in a save; what is found then is as before it or as after it, and the run goes on."""
        before = dict(self.oracle.there)
        try:
            loss = self.random.choice([None, self.random.random()])
            self.step(loss=loss, save=True, dies=self.random.randint(1, 40))
        except Died:
            self.deaths += 1
            now = self.oracle.step
            Store(self.root).sweep()
            there = {step for step, _ in checkpoints(self.root)}
            assert there - {now} <= before.keys()
            if now in there and (now not in before or now in self.oracle.damaged and self._whole(now)):
                everything = {**before, now: (self.oracle.best, self.oracle.loss)}
                kept = {*sorted(everything)[-self.oracle.keep :], now, self.oracle.best} & everything.keys()
                assert kept <= there, "a checkpoint to be kept is gone"
                self.oracle.damaged.discard(now)
                self.oracle.there = {step: everything[step] for step in there}
            else:
                assert there == before.keys(), "an old checkpoint is gone before the new one was there"
            self.oracle.damaged &= self.oracle.there.keys()
        self.resume()

    def _whole(self, step: int) -> bool:
        try:
            verify(self.root / f"checkpoints/step_{step:06d}")
        except ArtifactError:
            return False
        return True

    def resume(self) -> None:
        """As the program does it: the newest good checkpoint, and the state in it."""
        Store(self.root).sweep()
        found = newest_checkpoint(self.run.loaded, self.plan, self.root, Listener())
        self.oracle.resumed()
        assert (0 if found is None else found[0]) == self.oracle.step
        state = TrainState() if found is None else state_of(found[1], self.plan, Listener())
        self.run = self._open(state, None)
        self.run.saved = state.model_copy() if found is not None else None

    def damage(self) -> bool:
        """Turn a bit of a checkpoint after whose loss the run can go on: another one is good, and so is its best."""
        able = [step for step in self.oracle.good if self._goes_on_without(step)]
        if not able:
            return False
        step = self.random.choice(able)
        path = self.root / f"checkpoints/step_{step:06d}/weights.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        self.oracle.damaged.add(step)
        return True

    def _goes_on_without(self, step: int) -> bool:
        good = [other for other in self.oracle.good if other != step]
        return bool(good) and self.oracle.there[good[-1]][0] not in {*self.oracle.damaged, step}

    def do(self, operation: str) -> None:
        """One thing that happens to a run."""
        random = self.random
        if operation == "save":
            self.step(loss=None, save=True)
        elif operation == "better":
            self.step(loss=random.random() * (self.oracle.loss or 1.0), save=random.random() < 0.5)
        elif operation == "worse":
            self.step(loss=(self.oracle.loss or 1.0) + random.random(), save=random.random() < 0.5)
        elif operation == "nan":
            self.step(loss=random.choice([math.nan, math.inf, -math.inf]), save=random.random() < 0.5)
        elif operation == "crash":
            self.crash()
        elif operation == "keep":
            self.oracle.keep = random.randint(1, 4)
            self.plan = self.plan.model_copy(update={"keep": self.oracle.keep})
            self.resume()
        elif operation == "mtimes":
            for path in self.root.rglob("*"):
                os.utime(path, (random.randrange(2**31),) * 2)
        elif operation == "incomplete" and self.oracle.good:
            (self.root / f"checkpoints/step_{self.oracle.good[-1] + 500:06d}.half").mkdir(exist_ok=True)
            (self.root / f"checkpoints/.tmp-step_000900-{'0' * 32}").mkdir(exist_ok=True)
        elif operation == "damage" and self.damage() or operation == "resume":
            self.resume()

    def look(self) -> None:
        """What must be so at any time."""
        oracle, there = self.oracle, checkpoints(self.root)
        assert [step for step, _ in there] == sorted(oracle.there)
        assert all((path / MANIFEST).is_file() for _, path in there)
        newest, skipped = newest_good(self.root)
        assert (newest is None) == (not oracle.there)
        if newest is not None:
            assert newest[0] == oracle.good[-1]
            assert len(skipped) == len([step for step in oracle.damaged if step > newest[0]])
        if oracle.best is not None:
            assert stopping.model_step(self.run.state, self.plan) == oracle.best
            verify(self.root / f"checkpoints/step_{oracle.best:06d}")


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that costs no disk, and no waiting for one."""
    monkeypatch.setattr("ftune.store._fsync", lambda path: None)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.crash)])
def test_lives_of_a_run(in_memory: Path, count: int) -> None:
    done = Counter[str]()
    for number in range(count):
        random = Random(f"{SEED} {number}")
        life, story = Life(in_memory / str(number), random), list[str]()
        try:
            for _ in range(random.randint(5, 20)):
                story.append(random.choice(OPERATIONS))
                life.do(story[-1])
                life.look()
                most = life.oracle.keep + 2
                if story[-1] in ("save", "better") and life.run.saved == life.run.state:
                    assert len(life.oracle.there) <= most
        except BaseException:
            print(f"life {number} of seed {SEED}: {story}\n{life.oracle}")
            raise
        done.update([*story, *["death"] * life.deaths])
    assert min(done[name] for name in (*OPERATIONS, "death")) >= count / 4
    print(f"{count} lives: {dict(done)}")
