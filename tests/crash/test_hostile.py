"""Every artefact of the tables: no code of it runs, nothing outside is written, one message, the right exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from artefact import SECRET, Artefact, Place
from hostile_inputs import INPUTS
from hostile_models import MODELS
from hostile_runs import RUNS
from laws import Shared, python
from typer.testing import CliRunner
from watch import Seen, watched

from ftune.cli import app

ARTEFACTS: dict[str, Artefact] = {**MODELS, **RUNS, **INPUTS}
MOST_SECONDS, MOST_BYTES = 10.0, 2**30
IMPORTS = 10.0
"""Seconds that a cold process may take for its imports on a slow machine."""
DRIVING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
"""Characters that drive a terminal; lines and tabs do not."""


def case(name: str) -> object:
    return pytest.param(ARTEFACTS[name], id=name, marks=[] if ARTEFACTS[name].fast else [pytest.mark.crash])


@pytest.fixture
def place(tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path / "work", tmp_path / "canary", tmp_path / "outside", shared)
    place.folder.mkdir()
    place.outside.mkdir()
    place.secret.write_text(SECRET)
    monkeypatch.chdir(place.folder)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(run: Path) -> list[Path]:
    """Files that a command may have put the secret into; those that are it under another name do not count."""
    return [path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1]


def check(
    place: Place, artefact: Artefact, code: int | None, shown: str, seconds: float, outside: dict[str, bytes]
) -> None:
    assert code == artefact.code, shown
    assert "Traceback" not in shown and "internal error" not in shown and SECRET not in shown, shown
    assert not DRIVING.search(shown), repr(shown)
    assert code == 0 or len(shown.splitlines()) <= 100, shown
    assert not place.canary.exists()
    assert contents(place.outside) == outside
    assert SECRET not in "".join(path.read_text(errors="replace") for path in written(place.run))
    assert seconds < MOST_SECONDS


def check_seen(place: Place, seen: Seen, *roots: Path) -> None:
    assert seen.ran_inside(place.folder) == [] and seen.unpickled == [] and seen.connected == []
    assert [program for program in seen.started if not re.search("'(git|uname)'", program)] == []
    assert seen.written_outside(place.run, place.folder / "evil run", *roots) == []


@pytest.mark.parametrize("artefact", [case(name) for name in ARTEFACTS])
def test_it_does_no_harm(artefact: Artefact, place: Place) -> None:
    command = list(artefact.make(place))
    outside = contents(place.outside)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted from here
    before, started = peak(), time.process_time()
    with watched() as seen, ends(), mock.patch("ftune.report_files.pictures", return_value={}):
        result = CliRunner().invoke(app, command)
    seconds = time.process_time() - started  # of this process: the machine may be busy
    assert peak() - before < MOST_BYTES // 2  # of a process that holds torch already
    check(place, artefact, result.exit_code, result.output, seconds, outside)
    caches = [Path(os.environ[name]) for name in ("FTUNE_CACHE", "HF_HOME", "MPLCONFIGDIR")]
    check_seen(place, seen, *caches)


@contextmanager
def ends() -> Iterator[None]:
    """A command that waits for ever fails instead."""

    def stop(*_: object) -> None:
        raise TimeoutError("the command did not end")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def peak() -> int:
    """The most bytes of memory since the count began."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


ALONE = """
import atexit, json, os, resource, sys
def measure():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open(os.environ["MEASURED"], "w") as file:
        json.dump([used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss], file)
atexit.register(measure)
from ftune.__main__ import main
main()
"""


@pytest.mark.crash
@pytest.mark.parametrize("name", [name for name, artefact in ARTEFACTS.items() if artefact.alone])
def test_it_does_no_harm_in_a_process_of_its_own(name: str, place: Place, tmp_path: Path) -> None:
    artefact, measured = ARTEFACTS[name], tmp_path / "measured.json"
    command = list(artefact.make(place))
    outside, home = contents(place.outside), tmp_path / "home"
    home.mkdir()
    kept = {key: str(tmp_path / "caches" / key) for key in ("FTUNE_CACHE", "HF_HOME", "MPLCONFIGDIR")}
    environment = {**kept, "MEASURED": str(measured), "HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = python("-c", ALONE, *command, seconds=300, environment=environment)
    seconds, memory = json.loads(measured.read_text())
    assert memory < MOST_BYTES
    check(place, artefact, done.returncode, done.stdout + done.stderr, seconds - IMPORTS, outside)
    assert list(home.iterdir()) == []


def test_there_are_sixty_of_them() -> None:
    assert len(ARTEFACTS) >= 60 and sum(artefact.alone for artefact in ARTEFACTS.values()) >= 10
