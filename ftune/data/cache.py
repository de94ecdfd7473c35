"""Work on data that is done once and kept: rows that were read, tokens that were made of them, features of a body.

    <root>/<kind>/<key>/<entry>/{files, MANIFEST.json}

A key says everything that the entry depends on, so an entry never grows stale. Entries are published whole, verified
when they are taken, and made by one process while others wait. A cache that cannot be written is no reason to stop: the
work is then done in a temporary folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ftune.disk import as_disk_error
from ftune.errors import ArtifactError, DiskError
from ftune.manifest import MANIFEST, read_manifest, verify
from ftune.store import Store

KINDS = ("rows", "tokens", "leaks", "features", "compiled")
_ENTRY = "entry"
_NO_USE = "the cache cannot be used, so the work is done again next time"
_LOCK = ".lock"
Write = Callable[[Path], Mapping[str, Any]]
"""Fills a folder and returns facts for its manifest."""


def cache_root(environment: Mapping[str, str], home: Path) -> Path:
    """`FTUNE_CACHE`, else the platform's folder for caches of a user."""
    if named := environment.get("FTUNE_CACHE"):
        return Path(named).absolute()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "ftune"


def key_of(facts: Mapping[str, Any]) -> str:
    """A name for all of `facts`, which are plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def code_version(folder: Path) -> str:
    """SHA-256 of the Python files in `folder`: what other code made is not taken."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time makes what belongs into `folder`, which is made if missing.

    Args:
        folder: of one key.
        wait: called twice a second until it is our turn; may raise to stop.

    Raises:
        DiskError: the folder cannot be written.
    """
    lock = FileLock(folder / _LOCK)
    while True:
        try:
            with as_disk_error(folder), suppress(FileNotFoundError):  # it was deleted while we waited: once more
                if _is_made(folder):
                    lock.acquire(timeout=0.5)
                    break
        except Timeout:
            wait()
    try:
        yield
    finally:
        lock.release()


def _is_made(folder: Path) -> bool:
    """Make a folder, unless it is there; False where it was deleted between `mkdir`'s two questions."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if os.path.lexists(folder):
            raise
        return False
    return True


@dataclass(frozen=True)
class Entry:
    """A folder with what was asked for.

    Args:
        folder: its files.
        taken: whether it was there already.
        keeper: deletes a temporary folder when nothing refers to it any more; hold it as long as the files are needed.
    """

    folder: Path
    taken: bool
    keeper: object = None


@dataclass
class Cache:
    """Takes entries from `root`, or makes them there.

    Args:
        root: the cache's folder; None keeps nothing.
        notes: what a user should know: damaged entries, a folder that cannot be written.
        taken, made: how many entries of rows and of tokens were there, and how many were not.
    """

    root: Path | None = None
    notes: list[str] = field(default_factory=list)
    taken: int = 0
    made: int = 0

    @property
    def story(self) -> str:
        """What the data of a run cost, in a word."""
        if not self.made:
            return "cached"
        return "read and tokenised" + (
            f" in part: {self.taken} of {self.taken + self.made} steps cached" * bool(self.taken)
        )

    def entry(self, kind: str, key: str | None, write: Write, wait: Callable[[], None]) -> Entry:
        """The entry of `key`, made by `write` if it is not there. Without a key it is made for this process only.

        Raises:
            DiskError: neither the cache nor a temporary folder can be written.
        """
        found = None
        if self.root is not None and key is not None:
            try:
                found = self._kept(self.root / kind / key, write, wait)
            except DiskError as error:
                if not any(note.startswith(_NO_USE) for note in self.notes):
                    self._note(f"{_NO_USE}: {error}")
        found = found or _temporary(write)
        if kind in ("rows", "tokens"):
            self.taken += found.taken
            self.made += not found.taken
        return found

    def _kept(self, folder: Path, write: Write, wait: Callable[[], None]) -> Entry:
        entry = folder / _ENTRY
        if self._whole(entry):
            return Entry(entry, taken=True)
        with alone(folder, wait):
            if self._whole(entry):  # another process was faster
                return Entry(entry, taken=True)
            store = Store(folder, durable=False)
            store.sweep()
            facts: dict[str, Any] = {"made": datetime.now(UTC).isoformat(timespec="seconds")}
            try:
                # The manifest's head is sealed before the files are written, so what they hold is told in a file.
                store.publish(_ENTRY, lambda temp: _described(temp, write(temp)), facts)
            except BaseException:
                if not entry.exists():  # nothing but our lock: whoever waits for it makes the folder again
                    with suppress(DiskError):
                        Store(folder.parent, durable=False).remove(folder.name)
                raise
        return Entry(entry, taken=False)

    def _note(self, text: str) -> None:
        self.notes += [] if text in self.notes else [text]

    def _whole(self, entry: Path) -> bool:
        if not (entry / MANIFEST).is_file():
            return False
        try:
            verify(entry)
        except ArtifactError as error:
            self._note(f"an entry of the cache was damaged and is made again: {error}")
            return False
        with suppress(OSError):
            os.utime(entry / MANIFEST)  # when it was last used
        return True


_FACTS = "facts.json"


def _described(folder: Path, facts: Mapping[str, Any]) -> None:
    with (folder / _FACTS).open("w", encoding="utf-8") as file:
        json.dump(dict(facts), file)


def facts_of(entry: Path) -> dict[str, Any]:
    """What `write` told of an entry."""
    found: dict[str, Any] = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
    return found


def _temporary(write: Write) -> Entry:
    with as_disk_error(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="ftune-data-"))
        keeper = _Keeper()
        weakref.finalize(keeper, shutil.rmtree, folder, ignore_errors=True)
        _described(folder, write(folder))
    return Entry(folder, taken=False, keeper=keeper)


class _Keeper:
    """Exists as long as a temporary folder is needed."""


@dataclass(frozen=True)
class Listed:
    """One key of the cache, for people.

    Args:
        kind, key: where it is.
        size: in bytes, of all its entries.
        rows: of all its entries; None where that is not told.
        made, used: seconds since 1970.
        locked: whether a process is making an entry.
    """

    kind: str
    key: str
    size: int
    rows: int | None
    made: float
    used: float
    locked: bool


def listed(root: Path) -> list[Listed]:
    """What is in the cache, the longest unused first."""
    found = []
    for kind in KINDS:
        for folder in sorted((root / kind).iterdir()) if (root / kind).is_dir() else ():
            if folder.is_dir():
                found.append(_look(kind, folder))
    return sorted(found, key=lambda entry: (entry.used, entry.kind, entry.key))


def _look(kind: str, folder: Path) -> Listed:
    files = [path for path in folder.rglob("*") if path.is_file()]
    heads = [path for path in files if path.name == MANIFEST]
    rows, made = list[int](), list[float]()
    for head in heads:
        with suppress(ArtifactError, OSError, KeyError, ValueError):
            facts = read_manifest(head.parent)
            rows.append(facts["rows"] if "rows" in facts else facts_of(head.parent)["rows"])
            made.append(datetime.fromisoformat(facts["made"]).timestamp())
    used = max((head.stat().st_mtime for head in heads), default=folder.stat().st_mtime)
    size = sum(path.stat().st_size for path in files)
    return Listed(
        kind, folder.name, size, sum(rows) if rows else None, max(made, default=used), used, _is_locked(folder)
    )


def _is_locked(folder: Path) -> bool:
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def remove(root: Path, entry: Listed) -> bool:
    """Delete what is listed; false when a process is making it.

    Raises:
        DiskError: it cannot be deleted.
    """
    folder = root / entry.kind / entry.key
    lock = FileLock(folder / _LOCK)
    try:
        with as_disk_error(folder):
            lock.acquire(blocking=False)
    except Timeout:
        return False
    try:
        Store(root / entry.kind, durable=False).remove(entry.key)
    finally:
        lock.release()
    return True
