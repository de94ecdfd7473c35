"""One process owns a run folder at a time; the lock of a dead one is free at once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ftune.disk import as_disk_error, disk_error
from ftune.errors import LockedError
from ftune.manifest import json_object
from ftune.store import Store

_LOCK = ".lock"
_LOCK_INFO = ".lock.json"
_LOCK_INFO_WAIT_SECONDS = 1.0


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Own the run folder, which is made if missing, until the block ends or the process dies.

    A folder that was made here and stayed empty is deleted again.

    Raises:
        LockedError: another process owns it; says which.
        DiskError: the folder cannot be made or written.
    """
    with as_disk_error(root):
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
    store = Store(root)
    store._make_folder(root)
    held = FileLock(root / ".lock")
    deadline = time.monotonic() + _LOCK_INFO_WAIT_SECONDS
    while not _acquired(held, root):
        # A new holder writes its name just after it has the lock, and a killed one's lock is freed just after it dies.
        holder = _living_holder(root)
        if holder is None and time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        raise LockedError(
            f"{root} is in use by {holder or 'another process, which has not written its name'}; "
            "wait for it to end or stop it, or give this run another folder"
        )
    owner = os.getpid()
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        store.write_json(_LOCK_INFO, {"pid": owner, "host": socket.gethostname(), "started": started})
        yield
    finally:
        if os.getpid() == owner:  # a forked child that unwinds through here owns nothing
            with suppress(OSError):
                (root / _LOCK_INFO).unlink()
            if [path.name for path in root.iterdir()] == [_LOCK]:
                _unmake(root, made)
            held.release()


def _unmake(root: Path, made: list[Path]) -> None:
    """Leave no trace of a run that wrote nothing. Called under the lock: filelock sees that its file is gone and
    makes a new one, so no two processes can hold it.
    """
    with suppress(OSError):
        (root / _LOCK).unlink()
        for folder in made:
            folder.rmdir()


def _acquired(held: FileLock, root: Path) -> bool:
    try:
        held.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        raise disk_error(error, root) from error
    return True


def _living_holder(root: Path) -> str | None:
    try:
        info = json_object((root / _LOCK_INFO).read_bytes()) or {}
    except OSError:
        return None
    pid, host = info.get("pid"), info.get("host")
    if isinstance(pid, int) and host and (host != socket.gethostname() or _alive(pid)):
        return f"process {pid} on {host}, started {info.get('started')}"
    return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
