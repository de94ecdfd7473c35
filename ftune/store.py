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
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ftune.errors import ArtifactError, DiskError, FtuneError, LockedError

OnOperation = Callable[[str, Path], None]

FORMAT = 1
MANIFEST = "MANIFEST.json"
MAX_MANIFEST_BYTES = 64_000_000  # a damaged or hostile manifest must not take the machine's memory
_SEAL = "manifest_sha256"
_OWN_KEYS = {"format", "name", "files", _SEAL}
_TEMP = re.compile(r"\.tmp-.+-[0-9a-f]{32}", re.DOTALL)
_TRASH = re.compile(r"\.trash-[0-9a-f]{32}")
_STEP = re.compile(r"step_([0-9]{6,})")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRONG_PLACE = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_DISK_ERRORS = _FULL | _WRONG_PLACE | {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_LOCK_INFO = ".lock.json"
_LOCK_INFO_WAIT_SECONDS = 1.0


class Store:
    """A run folder, or the parent folder of an output, and all durable writes into it.

    Args:
        root: the folder; made by the first write into it.
        on_operation: called before each durable operation with its kind (create, write, fsync, fsync_dir, rename,
            delete, append, truncate) and path, so that tests can fail or die there.

    Every method that writes raises DiskError when the disk is full, read-only, forbidden or broken, and ValueError for
    a name that is not inside the root.
    """

    def __init__(self, root: Path, on_operation: OnOperation | None = None) -> None:
        self.root = root
        self._on_operation = on_operation

    def write_text(self, name: str, text: str) -> Path:
        """Replace the file `name` as a whole; returns its path."""
        return self._replace_file(self._target(name), _utf8(text))

    def write_json(self, name: str, value: Any) -> Path:
        """Replace the JSON file `name` as a whole; returns its path. NaN and infinities are a ValueError."""
        return self._replace_file(self._target(name), _json_bytes(value))

    def append_json(self, name: str, event: Mapping[str, Any]) -> None:
        """Add one line to a JSONL file, after removing a last line that a kill left torn. Not fsynced."""
        path = self._target(name)
        data = _json_bytes(dict(event), indent=None)
        self._make_folder(path.parent)
        self._cut_torn_line(path)
        with self._operation("append", path, len(data)), path.open("ab") as file:
            file.write(data)

    def keep_lines(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite a JSONL file with only the events to keep, byte for byte; a damaged last line is dropped.

        Raises:
            ArtifactError: a line before the last is not a JSON object.
        """
        path = self._target(name)
        with _as_disk_error(path):
            old = path.read_bytes() if path.exists() else b""
        *lines, _torn = old.split(b"\n")
        kept = []
        for number, line in enumerate(lines, start=1):
            event = _json_object(line)
            if event is None and number < len(lines):
                raise ArtifactError(f"{path}:{number}: not a JSON object; mend or delete this line, then run again")
            if event is not None and keep(event):
                kept.append(line + b"\n")
        new = b"".join(kept)
        if new != old:
            self._replace_file(path, new)

    def publish(self, name: str, write: Callable[[Path], None], facts: Mapping[str, Any]) -> Path:
        """Make the folder `name` appear whole, with what `write` puts into the temp folder it is given.

        Whatever was there before is replaced, also when it is not ours: refuse foreign folders before. On any exception
        up to the final rename the old target stays as it was; after that the new one stays.

        Raises:
            ArtifactError: `write` left something that is neither a file nor a folder, such as a symlink.
            DiskError: also when `write` fails with another library's words for a full disk.
        """
        if clash := _OWN_KEYS & facts.keys():
            raise ValueError(f"facts may not hold {sorted(clash)}, the store writes these itself")
        target = self._target(name)
        # Through JSON now: facts that JSON cannot hold fail before the work, and what is sealed is what is read back.
        head = json.loads(_json_bytes({"format": FORMAT, **facts, "name": target.name}))
        self._make_folder(target.parent)
        with self._temp_beside(target) as temp:
            with self._operation("create", temp):
                temp.mkdir()
            with self._operation("write", temp):
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

    def sweep(self) -> list[str]:
        """Undo what a crash left in the root and in `checkpoints/`: returns what was done, one line each.

        A trash folder whose target is missing is put back, for the crash fell between the two renames of `publish` or
        before `remove` was done. Everything else that has our temp and trash names is deleted.
        """
        done = []
        for folder in (self.root, self.root / "checkpoints"):
            with _as_disk_error(folder):
                entries = sorted(folder.iterdir()) if folder.is_dir() else []
            for entry in entries:
                target = _trashed_target(entry) if _TRASH.fullmatch(entry.name) else None
                if target is not None and not os.path.lexists(target):
                    self._rename(entry, target)
                    self._fsync_folder(folder)
                    done.append(f"put back {target}, which a crash had left in {entry.name}")
                elif _TRASH.fullmatch(entry.name) or _TEMP.fullmatch(entry.name):
                    self._delete(entry)
                    done.append(f"deleted {entry}, left by a crash")
        return done

    def require_space(self, needed_bytes: int, what: str) -> None:
        """Refuse before writing.

        Raises:
            DiskError: fewer than `needed_bytes` are free on the root's disk.
        """
        free = _free_bytes(self.root)
        if free is not None and free < needed_bytes:
            raise disk_error(OSError(errno.ENOSPC, f"too little space for {what}"), self.root, needed_bytes)

    def _target(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{name!r} is not a name inside {self.root}")
        return self.root / pure

    @contextmanager
    def _operation(self, kind: str, path: Path, needed: int | None = None) -> Iterator[None]:
        with _as_disk_error(path, needed):
            if self._on_operation is not None:
                self._on_operation(kind, path)
            yield

    @contextmanager
    def _temp_beside(self, target: Path) -> Iterator[Path]:
        temp = target.parent / f".tmp-{target.name[:40]}-{uuid.uuid4().hex}"  # cut, as a name may have 255 bytes
        try:
            yield temp
        except BaseException:
            if os.path.lexists(temp):
                with suppress(OSError):  # the error that brought us here matters more, and sweep deletes what stays
                    self._delete(temp)
            raise

    def _make_folder(self, folder: Path) -> None:
        with _as_disk_error(folder):
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
        with _as_disk_error(path):
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
        with _as_disk_error(temp):
            entries = list(_entries(temp))
        folders = [entry for entry in entries if not entry.is_symlink() and entry.is_dir()]
        files = {}
        for path in entries:
            if path in folders:
                continue
            _require_plain_file(path)
            self._fsync_file(path)
            with _as_disk_error(path):
                record = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            files[path.relative_to(temp).as_posix()] = record
        self._write_file(temp / MANIFEST, _sealed({**head, "files": files}))
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
        with self._operation("fsync", path):
            _fsync(path)

    def _fsync_folder(self, folder: Path) -> None:
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
        for entry in (*reversed(list(_entries(path))), path):
            self._delete_one(entry)

    def _delete_one(self, path: Path) -> None:
        with self._operation("delete", path):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, after checking its seal.

    Raises:
        ArtifactError: it is absent, unreadable, edited, or of a newer format.
    """
    path = folder / MANIFEST
    try:
        _require_plain_file(path)
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes, so not a manifest of ftune")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing, so {folder} is not a whole artefact of ftune") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    manifest = _json_object(data)
    if manifest is None:
        raise ArtifactError(f"{path}: damaged, not a JSON object")
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(f"{path}: has format {version}, this ftune reads up to {FORMAT}; update ftune")
    try:
        intact = data == _sealed({key: value for key, value in manifest.items() if key != _SEAL})
    except (ValueError, RecursionError):  # NaN, or nested too deep to be ours
        intact = False
    if not intact or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{path}: damaged or edited, it does not match its own SHA-256")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after comparing every file of the folder with it.

    Raises:
        ArtifactError: with the first file that is missing, not listed, changed, a symlink or outside the folder.
    """
    manifest = read_manifest(folder)
    files: dict[str, Any] = manifest["files"]
    for name in files:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ArtifactError(f"{folder / MANIFEST}: lists {name}, which leaves the folder")
    try:
        entries = [path for path in _entries(folder) if path.is_symlink() or not path.is_dir()]
        found = {path.relative_to(folder).as_posix(): path for path in entries if path != folder / MANIFEST}
        if lacking := sorted(files.keys() - found.keys()):
            raise ArtifactError(f"{folder / lacking[0]}: missing, though {MANIFEST} lists it")
        for name, path in found.items():
            _require_plain_file(path)
            if name not in files:
                raise ArtifactError(f"{path}: not listed in {MANIFEST}, so it was added later")
            _compare(path, files[name])
    except OSError as error:
        raise ArtifactError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return manifest


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints in `root/checkpoints`, with their steps, oldest step first. Nothing is verified."""
    folder = root / "checkpoints"
    found = []
    with _as_disk_error(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _STEP.fullmatch(path.name)
            if match and path.name == f"step_{int(match[1]):06d}" and (path / MANIFEST).is_file():
                found.append((int(match[1]), path))
    return sorted(found)


def newest_good(root: Path) -> tuple[tuple[int, Path] | None, list[str]]:
    """The newest checkpoint that verifies, and why each newer one was skipped."""
    skipped = []
    for step, path in reversed(checkpoints(root)):
        try:
            verify(path)
        except ArtifactError as error:
            skipped.append(f"skipped checkpoint {path.name}: {error}")
        else:
            return (step, path), skipped
    return None, skipped


def prune(store: Store, keep: int, protected: Collection[int]) -> list[int]:
    """Remove the checkpoints older than the newest `keep`, save the protected steps; returns the steps removed.

    Damaged checkpoints count, as nothing is verified here: protect a step that is known to be good.
    """
    if keep < 1:
        raise ValueError(f"at least the newest checkpoint must be kept, not {keep}")
    old = [(step, path) for step, path in checkpoints(store.root)[:-keep] if step not in protected]
    for _, path in old:
        store.remove(f"checkpoints/{path.name}")
    return [step for step, _ in old]


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Own the run folder, which is made if missing, until the block ends or the process dies.

    Raises:
        LockedError: another process owns it; says which.
        DiskError: the folder cannot be made or written.
    """
    store = Store(root)
    store._make_folder(root)
    held = FileLock(root / ".lock")
    try:
        held.acquire(blocking=False)
    except Timeout as error:
        raise LockedError(_who_holds(root)) from error
    except OSError as error:
        raise disk_error(error, root) from error
    owner = os.getpid()
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        store.write_json(_LOCK_INFO, {"pid": owner, "host": socket.gethostname(), "started": started})
        yield
    finally:
        if os.getpid() == owner:  # a forked child that unwinds through here owns nothing
            with suppress(OSError):
                (root / _LOCK_INFO).unlink()
            held.release()


def disk_error(error: OSError, path: Path, needed: int | None = None) -> DiskError:
    """The error to raise for `error` at `path`, with the needed and free bytes where known and what to do."""
    reason = error.strerror or str(error)
    free = _free_bytes(path)
    sizes = [f"{needed:,} bytes needed"] if needed is not None else []
    sizes += [f"{free:,} bytes free"] if free is not None else []
    if error.errno in _FULL:
        advice = "free some space on this disk (or raise the quota) and run the same command again"
    elif error.errno == errno.EIO:
        advice = "the disk reports a fault: check it or choose another folder, and run the same command again"
    else:
        advice = "choose another folder, or mend this one and run the same command again"
    return DiskError(f"cannot write {path}: {reason} ({', '.join(sizes) or 'sizes unknown'}); {advice}")


@contextmanager
def _as_disk_error(path: Path, needed: int | None = None) -> Iterator[None]:
    try:
        yield
    except FtuneError:
        raise
    except Exception as error:
        number = _disk_errno(error)
        if number is None:
            raise
        plain = error if isinstance(error, OSError) else OSError(number, os.strerror(number))
        raise disk_error(plain, path, needed) from error


def _disk_errno(error: BaseException | None) -> int | None:
    # Savers written in Rust or C++ raise their own types, with the number only in the text.
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (match := re.search(r"\b(?:os error|errno) (\d+)", str(error), re.IGNORECASE)):
            number = int(match[1])
        if number is None:
            number = next((full for full in _FULL if os.strerror(full) in str(error)), None)
        if number in _DISK_ERRORS:
            return number
        error = error.__cause__
    return None


def _free_bytes(path: Path) -> int | None:
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trash_beside(target: Path) -> Path:
    return target.parent / f".trash-{uuid.uuid4().hex}"


def _trashed_target(trash: Path) -> Path | None:
    try:
        name = read_manifest(trash).get("name")
    except ArtifactError:
        return None
    if isinstance(name, str) and name == Path(name).name and name not in ("", ".."):
        return trash.parent / name
    return None


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below the folder, parents before children; symlinks are not followed."""
    with os.scandir(folder) as scan:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    for name, is_folder in found:
        yield folder / name
        if is_folder:
            yield from _entries(folder / name)


def _require_plain_file(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a symlink" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise ArtifactError(f"{path}: {kind}, which ftune does not accept in an artefact; put a plain file there")


def _compare(path: Path, record: Any) -> None:
    expected = record if isinstance(record, dict) else {}
    size = path.stat().st_size
    if size != expected.get("bytes"):
        raise ArtifactError(f"{path}: damaged, has {size} bytes where {MANIFEST} says {expected.get('bytes')}")
    if sha256_of(path) != expected.get("sha256"):
        raise ArtifactError(f"{path}: damaged, its SHA-256 is not the one in {MANIFEST}")


def _utf8(text: str) -> bytes:
    # Names of files may hold bytes that are not UTF-8. Python's \udcXX for them, so escaped, is still right in JSON.
    return text.encode("utf-8", "backslashreplace")


def _json_bytes(value: Any, indent: int | None = 2) -> bytes:
    return _utf8(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The only bytes this manifest may have: with its own SHA-256 as the last key."""
    return _json_bytes({**manifest, _SEAL: hashlib.sha256(_json_bytes(manifest)).hexdigest()})


def _who_holds(root: Path) -> str:
    holder = "another process, which has not written its name"
    deadline = time.monotonic() + _LOCK_INFO_WAIT_SECONDS
    while time.monotonic() < deadline:
        # The holder writes its name after it has the lock; until then the file is missing or tells of a dead process.
        with suppress(OSError):
            info = _json_object((root / _LOCK_INFO).read_bytes()) or {}
            pid, host = info.get("pid"), info.get("host")
            if isinstance(pid, int) and host and (host != socket.gethostname() or _alive(pid)):
                holder = f"process {pid} on {host}, started {info.get('started')}"
                break
        time.sleep(0.02)
    return f"{root} is in use by {holder}; wait for it to end or stop it, or give this run another folder"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
