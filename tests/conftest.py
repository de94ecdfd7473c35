"""Every test runs offline, on one thread, from its own folder, and writes under the system's temp folder only."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = Path(tempfile.gettempdir()) / "ftune-tests"
os.environ.update(
    FTUNE_CACHE=str(CACHE / "ftune"),
    HF_HOME=str(CACHE / "hf"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HYPOTHESIS_STORAGE_DIRECTORY=str(CACHE / "hypothesis"),
    MPLCONFIGDIR=str(CACHE / "matplotlib"),
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    PYTHONPATH=os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
)

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # one core for each worker and all it starts: processes that share cores spin on each other's threads
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import pytest  # noqa: E402 - the environment comes first
from laws import Shared  # noqa: E402

LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost|::ffff:127\.\d+\.\d+\.\d+")
CHECKOUT = str(Path(__file__).resolve().parents[1]) + os.sep
WRITABLE = tuple(str(Path(root).resolve()) for root in (tempfile.gettempdir(), "/dev", "/proc"))
_armed = False


def _refuse_writes_elsewhere(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: a test that writes into the checkout or the home folder fails at once."""
    if not _armed or event not in ("open", "os.mkdir", "os.rename"):
        return
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
        if not writes:
            return
    else:
        path = arguments[0 if event == "os.mkdir" else 1]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return  # a descriptor that is open already
    place = os.path.realpath(os.fsdecode(path))
    inside = place.startswith(CHECKOUT)  # which may itself be under the system's temp folder
    if (inside or not place.startswith(WRITABLE)) and "__pycache__" not in place:
        raise PermissionError(f"a test may not write {place}")


sys.addaudithook(_refuse_writes_elsewhere)


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global _armed
    monkeypatch.chdir(tmp_path)
    _armed = True
    yield
    _armed = False


@pytest.fixture(autouse=True, scope="session")
def _alone_in_the_world() -> Iterator[None]:
    """No connection leaves this machine, and plans are made for one thread."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not LOOPBACK.fullmatch(str(address[0])):
            raise OSError(f"a test may not connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)  # what a plan takes its threads from
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Runs that are made once and read by many tests, also over the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return Shared(base.parent / "shared" if "PYTEST_XDIST_WORKER" in os.environ else base / "shared")
