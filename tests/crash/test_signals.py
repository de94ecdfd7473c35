"""SIGTERM, SIGINT and SIGUSR1 at random instants: saved, or nothing to save, and the same bits in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from laws import ONE_THREAD, Shared, events, python
from strikes import CODES, METHODS, STEPS, UNHEARD, Struck, chains, recipe_of, send, straight

ENDING = (signal.SIGTERM, signal.SIGINT)


def by(number: signal.Signals, again: bool = False) -> Callable[[Struck], bool]:
    return lambda struck: struck.strike(number, again=again)


WHILE_IMPORTING = """
import os, sys
class Striking:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), int(sys.argv.pop()))
sys.meta_path.insert(0, Striking())
from ftune.__main__ import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, -15), (signal.SIGUSR1, 0)])
def test_struck_before_a_verb_listens(number: signal.Signals, code: int) -> None:
    """Nothing has begun: an end is silent, and there is nothing to save."""
    done = python("-c", WHILE_IMPORTING, "methods", str(int(number)))
    assert (done.returncode, done.stderr) == (code, "")
    assert ("feature_based" in done.stdout) == (code == 0)


@pytest.mark.parametrize("number", ENDING)
def test_asked_to_end_at_random(tmp_path: Path, shared: Shared, number: signal.Signals) -> None:
    codes = chains(tmp_path, shared, "lora", 2, by(number))
    assert codes.keys() <= {*CODES[number], UNHEARD[number], 0}


@pytest.mark.crash
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", ENDING)
def test_asked_to_end_at_two_hundred_instants(
    tmp_path: Path, shared: Shared, number: signal.Signals, method: str
) -> None:
    """29 for each of seven methods."""
    codes = chains(tmp_path, shared, method, 29, by(number))
    print(f"{number.name} {method}: {dict(codes)}")
    assert sum(codes[code] for code in CODES[number]) > 15


@pytest.mark.crash
def test_asked_twice_leaves_at_once(tmp_path: Path, shared: Shared) -> None:
    codes = chains(tmp_path, shared, "lora", 50, by(signal.SIGINT, again=True))
    print(f"SIGINT twice: {dict(codes)}")
    assert codes[130] > 25


def saved_when_asked(tmp_path: Path, shared: Shared, method: str, strikes: int) -> int:
    """SIGUSR1 saves, and the run goes on to the same end. Returns how often there was something to save."""
    expected, seconds = straight(shared, method)
    asked = 0
    for trial in range(strikes):
        folder = tmp_path / str(trial)
        recipe_of(folder, method, checkpoint={"every": 1000, "best": None})
        struck = Struck(folder, seconds, random.Random(f"{method} {trial}"))
        assert not struck.strike(signal.SIGUSR1)
        struck.finish(expected)
        saved = [event["step"] for event in events(struck.run, "checkpoint")]
        assert saved[-1] == STEPS and len(saved) <= 2
        asked += len(saved) == 2
    return asked


def test_asked_to_save(tmp_path: Path, shared: Shared) -> None:
    saved_when_asked(tmp_path, shared, "full", 1)


@pytest.mark.crash
@pytest.mark.parametrize("method", METHODS)
def test_asked_to_save_at_two_hundred_instants(tmp_path: Path, shared: Shared, method: str) -> None:
    asked = saved_when_asked(tmp_path, shared, method, 29)
    print(f"SIGUSR1 {method}: {asked} of 29 had something to save")
    assert asked > 5


@pytest.mark.crash
@pytest.mark.parametrize("number", [*ENDING, signal.SIGUSR1, signal.SIGKILL])
def test_a_cold_process_at_random_instants(tmp_path: Path, shared: Shared, number: signal.Signals) -> None:
    """With all of its imports, in which the strikes of the other tests cannot fall."""
    expected, _ = straight(shared, "lora")
    recipe_of(tmp_path, "lora")
    draw, codes = random.Random(number), Counter[int]()
    struck = Struck(tmp_path, 0, draw)
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", ONE_THREAD, "train", "recipe.yaml", "--quiet"], cwd=tmp_path,
            env=os.environ | struck.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            send(process.pid, number, draw.uniform(0.3, 8))
            _, err = process.communicate(timeout=120)
        codes[process.returncode] += 1
        assert process.returncode in CODES[number] | {0, UNHEARD.get(number, 0)}, err
        assert "Traceback" not in err, err
    print(f"{number.name}, cold: {dict(codes)}")
    struck.finish(expected)
