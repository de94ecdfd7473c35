"""Runs that are struck at random instants until they are done, and what must hold after each strike."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
from cuts import assert_same_run
from laws import Shared
from matrix import Cell

from ftune.checkpoints import newest_good
from ftune.load import Loaded

STEPS = 24
METHODS = ("full", "lora", "qlora", "adapter", "prefix", "prompt", "feature_based")
OBJECTIVES = {"feature_based": "sequence_classification"}
"""causal_lm for the others."""
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}, signal.SIGUSR1: {0}}
"""How a command line ends that a signal reached. All may end with 0, where it was done by then."""
UNHEARD = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: -signal.SIGINT}
"""How it ends before it could listen; then nothing was begun."""


def recipe_of(folder: Path, method: str, **sections: Any) -> Loaded:
    """24 steps over nine epochs; saving, measuring and removing all the time."""
    checkpoint = {"every": 2, "keep": 2, "best": "eval_loss"}
    return Cell(method, OBJECTIVES.get(method, "causal_lm"), "llama").recipe(
        folder,
        train={"duration": f"{STEPS} steps", "warmup": 3, "schedule": "cosine"},
        eval={"every": 3},
        **{"checkpoint": checkpoint, **sections},
    )


def environment(folder: Path) -> dict[str, str]:
    return {"FTUNE_CACHE": str(folder / "cache"), "FORKED_PICTURES": "0"}


def straight(shared: Shared, method: str) -> tuple[Path, float]:
    """A run that nothing disturbed, and how many seconds it took."""

    def fill(folder: Path) -> None:
        recipe_of(folder, method)
        began = time.monotonic()
        code, _, err = forked.run(["train", "recipe.yaml", "--quiet"], folder, environment(folder))
        assert code == 0, err
        (folder / "seconds").write_text(str(time.monotonic() - began))

    folder = shared.make(f"straight-{method}", fill)
    return folder / "run", float((folder / "seconds").read_text())


@dataclass
class Struck:
    """One run and its strikes.

    Args:
        folder: of recipe, rows, run and cache.
        seconds: that an undisturbed run takes: strikes fall into them, and a little later.
        draw: of instants.
        operations: of an undisturbed run that are durable; every second SIGKILL falls on one of them, when given.
        codes: how often a command that was struck ended how.
    """

    folder: Path
    seconds: float
    draw: random.Random
    operations: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def environment(self) -> dict[str, str]:
        """A cache of its own, so that rows are read and tokenised while it is struck."""
        return environment(self.folder)

    def strike(self, number: signal.Signals, *, again: bool = False) -> bool:
        """Start the command, send `number` at some instant, and see that nothing is damaged.

        Args:
            number: of the signal.
            again: send it twice.

        Returns:
            Whether there is something left to do.
        """
        faults = {}
        if self.operations and number == signal.SIGKILL and self.draw.random() < 0.5:
            faults = {"FTUNE_TESTING": "1", "FTUNE_FAULT": f"{self.draw.randint(1, self.operations)}:KILL"}
        child = forked.start(["train", "recipe.yaml", "--quiet"], self.folder, self.environment | faults)
        met = False
        if not faults:
            met = send(child.pid, number, self.draw.uniform(0.05, 1.1 * self.seconds))  # earlier it is not yet ftune
            if again:
                send(child.pid, number, self.draw.uniform(0, 0.1))
        code, _, err = child.wait()
        if met or code != 0:
            self.codes[code] += 1
        if code == UNHEARD.get(number):
            assert err == ""
        else:
            assert code in CODES[number] | {0}, f"exit {code}\n{err}"
        assert "Traceback" not in err, err
        _, skipped = newest_good(self.run)
        assert skipped == [], "what is committed is damaged"
        return code != 0

    def finish(self, expected: Path) -> None:
        """The same command, undisturbed, gives what `expected` has, to the bit."""
        code, _, err = forked.run(["train", "recipe.yaml", "--quiet"], self.folder, self.environment)
        assert code == 0, err
        assert_same_run(self.run, expected, STEPS)
        left = [path for path in self.run.rglob(".*") if path.name.startswith((".tmp-", ".trash-"))]
        assert left == []


def send(pid: int, number: signal.Signals, after: float) -> bool:
    """Send a signal `after` seconds; returns whether the process was still there."""
    time.sleep(after)
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def chains(
    tmp_path: Path, shared: Shared, method: str, strikes: int, each: Callable[[Struck], bool], operations: int = 0
) -> Counter[int]:
    """Runs that are struck up to five times each and then finished, until `strikes` strikes met a living process."""
    expected, seconds = straight(shared, method)
    codes: Counter[int] = Counter()
    trial = 0
    while codes.total() < strikes:
        folder = tmp_path / f"{method}-{trial}"
        recipe_of(folder, method)
        struck = Struck(folder, seconds, random.Random(f"{method} {trial}"), operations)
        for _ in range(5):
            if not each(struck):
                break
        codes += struck.codes
        struck.finish(expected)
        shutil.rmtree(folder)
        trial += 1
    return codes
