"""Starts that meet: on one folder at once, after a killed holder, beside readers, and on a run that is finished."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
from command import write_recipe
from forked import Started

from ftune.manifest import sha256_of

COMMAND = ["train", "recipe.yaml", "--output-dir", "run", "--quiet"]


def endless(folder: Path, keep: int = 1) -> Path:
    """A run that saves after each step, keeps so many checkpoints and is never done; returns its folder."""
    train = {"duration": "100000 steps", "batch_size": 2, "micro_batch_size": 2}
    write_recipe(folder, train=train, eval={"every": 50000}, checkpoint={"every": 1, "keep": keep, "best": None})
    return folder / "run"


def wait_for(what: str, found: object, seconds: float = 60) -> None:
    """Ask `found` until it is true."""
    deadline = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.005)


def holder_of(run: Path) -> int | None:
    try:
        return int(json.loads((run / ".lock.json").read_text())["pid"])
    except (OSError, ValueError):
        return None


@contextmanager
def holding(folder: Path, keep: int) -> Iterator[tuple[Path, Started]]:
    """A run that goes on while the block does, and has saved a step."""
    run = endless(folder, keep)
    child = forked.start(COMMAND, folder)
    try:
        wait_for("checkpoint", lambda: any((run / "checkpoints").glob("step_*")))
        yield run, child
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def of_many_one_wins(count: int, folder: Path) -> None:
    run = endless(folder)
    children = []
    for _ in range(count):
        children.append(forked.start(COMMAND, folder))
        os.kill(children[-1].pid, signal.SIGSTOP)  # it has not come far: from here on all run at once
    assert holder_of(run) is None, "the first was too fast, nothing is raced for"
    for child in children:
        os.kill(child.pid, signal.SIGCONT)
    wait_for("winner", lambda: holder_of(run))
    winner = next(child for child in children if child.pid == holder_of(run))
    began = time.monotonic()
    for child in children:
        if child is not winner:
            refused(child, winner, run)
    assert (time.monotonic() - began) / count < 2, "seconds for each"
    assert holder_of(run) == winner.pid
    began = time.monotonic()
    refused(forked.start(COMMAND, folder), winner, run)
    assert time.monotonic() - began < 2, "alone beside the holder"
    os.kill(winner.pid, signal.SIGKILL)
    assert winner.wait()[0] == -signal.SIGKILL
    began = time.monotonic()
    heir = forked.start(COMMAND, folder)
    wait_for("next holder", lambda: holder_of(run) == heir.pid, 2)
    os.kill(heir.pid, signal.SIGTERM)
    assert heir.wait()[0] == 143


def refused(child: Started, winner: Started, run: Path) -> None:
    code, out, err = child.wait()
    assert code == 6, err
    started = json.loads((run / ".lock.json").read_text())["started"]
    assert err.startswith(f"{run} is in use by process {winner.pid} on {socket.gethostname()}, started {started}; ")
    assert (out, len(err.splitlines())) == ("", 1)


def test_of_five_starts_at_once_one_wins(tmp_path: Path) -> None:
    of_many_one_wins(5, tmp_path)


@pytest.mark.crash
def test_of_fifty_starts_at_once_one_wins(tmp_path: Path) -> None:
    of_many_one_wins(50, tmp_path)


def read(verb: str, target: Path, folder: Path) -> None:
    code, out, err = forked.run([verb, target], folder)
    assert code == 0, f"{verb} beside a run that goes on: {out}\n{err}"


@pytest.mark.crash
def test_verify_beside_a_run_that_saves_and_deletes_all_the_time(tmp_path: Path) -> None:
    with holding(tmp_path, keep=1) as (run, child):
        first = max((run / "checkpoints").glob("step_*")).name
        for _ in range(30):
            read("verify", run, tmp_path)
        assert max((run / "checkpoints").glob("step_*")).name > first, "it went on meanwhile"
        assert holder_of(run) == child.pid


@pytest.mark.crash
def test_readers_are_not_blocked(tmp_path: Path) -> None:
    with holding(tmp_path, keep=100000) as (run, child):
        for _ in range(3):
            read("eval", run / "checkpoints" / "step_000001", tmp_path)
            read("report", run, tmp_path)
        assert holder_of(run) == child.pid


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    write_recipe(tmp_path, train={"duration": "1 steps", "batch_size": 2}, eval={}, data={"train": "rows.jsonl"})
    assert forked.run(COMMAND, tmp_path)[0] == 0
    before = {path: (path.stat().st_mtime_ns, sha256_of(path)) for path in files(tmp_path / "run")}
    cold = [sys.executable, "-X", "importtime", "-m", "ftune", *COMMAND]
    again = subprocess.run(cold, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0
    assert "already complete, 1 steps (complete). Nothing was done." in again.stdout
    imported = {line.split("|")[-1].strip() for line in again.stderr.splitlines()}
    assert "ftune.drift" in imported and imported.isdisjoint({"torch", "transformers"})
    after = {path: (path.stat().st_mtime_ns, sha256_of(path)) for path in files(tmp_path / "run")}
    assert after == before


def files(run: Path) -> list[Path]:
    """All but the lock, which is taken to look."""
    return sorted(path for path in run.rglob("*") if path.is_file() and path.name not in (".lock", ".lock.json"))
