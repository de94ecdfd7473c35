"""Every durable write of ftune, in one place.

Promises: a file or folder written here is whole or absent for a reader, whatever call the process is killed or the disk
fails at; replacing something never leaves nothing in its place once `Store.sweep` has run; nothing is pickled.

A folder is published in this order: temp folder beside the target, its files, fsync each file, `MANIFEST.json` with the
SHA-256 of every file and of itself, fsync it, fsync the folders, old target to `.trash-*`, rename, fsync the parent,
delete the trash. Deleting starts with the rename to trash (the un-commit), then the manifest, then the rest: a trash
folder that still has its manifest is whole, so `sweep` may put it back.

One process writes into a root at a time: call `sweep` and `publish` under `lock`, on rank 0. Readers need no lock.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ftune.disk import as_disk_error, disk_error, free_bytes
from ftune.errors import ArtifactError
from ftune.manifest import (
    FORMAT,
    MANIFEST,
    OWN_KEYS,
    entries_of,
    json_bytes,
    json_object,
    read_manifest,
    require_plain_file,
    sealed,
    sha256_of,
    utf8,
)

OnOperation = Callable[[str, Path], None]

_TEMP = re.compile(r"\.tmp-(.+)-[0-9a-f]{32}", re.DOTALL)
_TRASH = re.compile(r"\.trash-(?:(.+)-)?[0-9a-f]{32}", re.DOTALL)


class Store:
    """A run folder, or the parent folder of an output, and all durable writes into it.

    Args:
        root: the folder; made by the first write into it.
        on_operation: called before each durable operation with its kind (create, write, fsync, fsync_dir, rename,
            delete, append, truncate) and path, so that tests can fail or die there.
        durable: whether what is written outlasts a power cut. A cache does without: it is verified when it is read.

    Every method that writes raises DiskError when the disk is full, read-only, forbidden or broken, and ValueError for
    a name that is not inside the root.
    """

    def __init__(self, root: Path, on_operation: OnOperation | None = None, *, durable: bool = True) -> None:
        self.root = root
        self._durable = durable
        self._on_operation = on_operation

    def write_text(self, name: str, text: str) -> Path:
        """Replace the file `name` as a whole; returns its path."""
        return self._replace_file(self._target(name), utf8(text))

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Replace the file `name`, such as a picture, as a whole; returns its path."""
        return self._replace_file(self._target(name), data)

    def write_json(self, name: str, value: Any) -> Path:
        """Replace the JSON file `name` as a whole; returns its path. NaN and infinities are a ValueError."""
        return self._replace_file(self._target(name), json_bytes(value))

    def append_json(self, name: str, event: Mapping[str, Any]) -> None:
        """Add one line to a JSONL file, after removing a last line that a kill left torn. Not fsynced."""
        path = self._target(name)
        data = json_bytes(dict(event), indent=None)
        self._make_folder(path.parent)
        self._cut_torn_line(path)
        with self._operation("append", path, len(data)), path.open("ab") as file:
            file.write(data)

    def sync(self, name: str) -> None:
        """Make the lines that were appended to `name` outlast a power cut. Nothing happens if it is absent."""
        path = self._target(name)
        if path.exists():
            self._fsync_file(path)
            self._fsync_folder(path.parent)

    def keep_lines(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite a JSONL file with only the events to keep, byte for byte.

        Dropped is what a crash left: a damaged last line, and lines with NULs, which never came to the disk.

        Raises:
            ArtifactError: a line before the last is not a JSON object.
        """
        path = self._target(name)
        with as_disk_error(path):
            old = path.read_bytes() if path.exists() else b""
        *lines, _torn = old.split(b"\n")
        kept = []
        for number, line in enumerate(lines, start=1):
            event = json_object(line)
            if event is None and number < len(lines) and b"\0" not in line:
                raise ArtifactError(f"{path}:{number}: not a JSON object; mend or delete this line, then run again")
            if event is not None and keep(event):
                kept.append(line + b"\n")
        new = b"".join(kept)
        if new != old:
            self._replace_file(path, new)

    def publish(
        self, name: str, write: Callable[[Path], None], facts: Mapping[str, Any], needed_bytes: int | None = None
    ) -> Path:
        """Make the folder `name` appear whole, with what `write` puts into the temp folder it is given.

        Whatever was there before is replaced, also when it is not ours: refuse foreign folders before. On any exception
        up to the final rename the old target stays as it was; after that the new one stays. `needed_bytes` is for the
        message about a disk that is full.

        Raises:
            ArtifactError: `write` left something that is neither a file nor a folder, such as a symlink.
            DiskError: also when `write` fails with another library's words for a full disk.
        """
        if clash := OWN_KEYS & facts.keys():
            raise ValueError(f"facts may not hold {sorted(clash)}, the store writes these itself")
        target = self._target(name)
        # Through JSON now: facts that JSON cannot hold fail before the work, and what is sealed is what is read back.
        head = json.loads(json_bytes({"format": FORMAT, **facts, "name": target.name}))
        self._make_folder(target.parent)
        with self._temp_beside(target) as temp:
            with self._operation("create", temp, needed_bytes):
                temp.mkdir()
            with self._operation("write", temp, needed_bytes):
                write(temp)
            self._write_manifest(temp, head)
            self._commit(temp, target)
        return target

    def remove(self, name: str) -> None:
        """Un-commit the file or folder `name`, then delete it. Nothing happens if it is absent."""
        target = self._target(name)
        if not os.path.lexists(target):
            return
        trash = _trash_beside(target)
        self._rename(target, trash)
        self._fsync_folder(target.parent)
        self._delete(trash)

    def sweep(self, name: str | None = None) -> list[str]:
        """Undo what a crash left in the root and in `checkpoints/`: returns what was done, one line each.

        A trash folder whose target is missing is put back, for the crash fell between the two renames of `publish` or
        before `remove` was done. Everything else that has our temp and trash names is deleted.

        Args:
            name: of a file or folder in the root: what was left of others stays, as they may be at work this moment.
        """
        done = []
        for folder in (self.root, self.root / "checkpoints") if name is None else (self.root,):
            with as_disk_error(folder):
                entries = sorted(folder.iterdir()) if folder.is_dir() else []
            for entry in entries:
                trash = _TRASH.fullmatch(entry.name)
                left = trash or _TEMP.fullmatch(entry.name)
                if left is None or (name is not None and left[1] != _short(name)):
                    continue
                target = _trashed_target(entry) if trash else None
                if target is not None and not os.path.lexists(target):
                    self._rename(entry, target)
                    self._fsync_folder(folder)
                    done.append(f"put back {target}, which a crash had left in {entry.name}")
                else:
                    self._delete(entry)
                    done.append(f"deleted {entry}, left by a crash")
        return done

    def require_space(self, needed_bytes: int, what: str) -> None:
        """Refuse before writing.

        Raises:
            DiskError: fewer than `needed_bytes` are free on the root's disk.
        """
        free = free_bytes(self.root)
        if free is not None and free < needed_bytes:
            raise disk_error(OSError(errno.ENOSPC, f"too little space for {what}"), self.root, needed_bytes)

    def _target(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{name!r} is not a name inside {self.root}")
        return self.root / pure

    @contextmanager
    def _operation(self, kind: str, path: Path, needed: int | None = None) -> Iterator[None]:
        with as_disk_error(path, needed):
            if self._on_operation is not None:
                self._on_operation(kind, path)
            yield

    @contextmanager
    def _temp_beside(self, target: Path) -> Iterator[Path]:
        temp = target.parent / f".tmp-{_short(target.name)}-{uuid.uuid4().hex}"
        try:
            yield temp
        except BaseException:
            if os.path.lexists(temp):
                with suppress(OSError):  # the error that brought us here matters more, and sweep deletes what stays
                    self._delete(temp)
            raise

    def _make_folder(self, folder: Path) -> None:
        with as_disk_error(folder):
            missing = [part for part in (folder, *folder.parents) if not part.exists()]
        for part in reversed(missing):
            with self._operation("create", part):
                part.mkdir(exist_ok=True)
            self._fsync_folder(part.parent)

    def _replace_file(self, path: Path, data: bytes) -> Path:
        self._make_folder(path.parent)
        with self._temp_beside(path) as temp:
            self._write_file(temp, data)
            self._rename(temp, path)
        self._fsync_folder(path.parent)
        return path

    def _write_file(self, path: Path, data: bytes) -> None:
        with self._operation("create", path, len(data)), path.open("wb"):
            pass
        with self._operation("write", path, len(data)), path.open("wb") as file:
            file.write(data)
        self._fsync_file(path)

    def _cut_torn_line(self, path: Path) -> None:
        with as_disk_error(path):
            if not path.exists() or path.stat().st_size == 0:
                return
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() == b"\n":
                    return
            whole = path.read_bytes().rfind(b"\n") + 1
        with self._operation("truncate", path), path.open("r+b") as file:
            file.truncate(whole)

    def _write_manifest(self, temp: Path, head: dict[str, Any]) -> None:
        if os.path.lexists(temp / MANIFEST):  # came with a copied folder, perhaps as a hard link to the original
            self._delete_one(temp / MANIFEST)
        with as_disk_error(temp):
            entries = list(entries_of(temp))
        folders = [entry for entry in entries if not entry.is_symlink() and entry.is_dir()]
        files = {}
        for path in entries:
            if path in folders:
                continue
            require_plain_file(path)
            self._fsync_file(path)
            with as_disk_error(path):
                record = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            files[path.relative_to(temp).as_posix()] = record
        self._write_file(temp / MANIFEST, sealed({**head, "files": files}))
        for folder in (*reversed(folders), temp):
            self._fsync_folder(folder)

    def _commit(self, temp: Path, target: Path) -> None:
        trash = _trash_beside(target) if os.path.lexists(target) else None
        try:
            if trash is not None:
                self._rename(target, trash)
            self._rename(temp, target)
        except BaseException:
            if trash is not None and os.path.lexists(trash) and not os.path.lexists(target):
                with suppress(OSError):
                    self._rename(trash, target)
            raise
        self._fsync_folder(target.parent)
        if trash is not None:
            self._delete(trash)

    def _rename(self, source: Path, target: Path) -> None:
        with self._operation("rename", target):
            source.rename(target)

    def _fsync_file(self, path: Path) -> None:
        if self._durable:
            with self._operation("fsync", path):
                _fsync(path)

    def _fsync_folder(self, folder: Path) -> None:
        if self._durable:
            with self._operation("fsync_dir", folder):
                _fsync(folder)

    def _delete(self, path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            self._delete_one(path)
            return
        if os.path.lexists(path / MANIFEST):
            # First and durably: sweep puts back a trash folder with a manifest, which must never be half a folder.
            self._delete_one(path / MANIFEST)
            self._fsync_folder(path)
        for entry in (*reversed(list(entries_of(path))), path):
            self._delete_one(entry)

    def _delete_one(self, path: Path) -> None:
        with self._operation("delete", path):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(name: str) -> str:
    """Cut, as a name may have 255 bytes."""
    return name[:40]


def _trash_beside(target: Path) -> Path:
    return target.parent / f".trash-{_short(target.name)}-{uuid.uuid4().hex}"


def _trashed_target(trash: Path) -> Path | None:
    try:
        name = read_manifest(trash).get("name")
    except ArtifactError:
        return None
    if isinstance(name, str) and name == Path(name).name and name not in ("", ".."):
        return trash.parent / name
    return None
