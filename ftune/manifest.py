"""`MANIFEST.json`: what a published folder holds, each file with its size and SHA-256, and a seal over itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ftune.errors import ArtifactError

FORMAT = 1
MANIFEST = "MANIFEST.json"
MAX_MANIFEST_BYTES = 64_000_000  # a damaged or hostile manifest must not take the machine's memory
SEAL = "manifest_sha256"
OWN_KEYS = {"format", "name", "files", SEAL}


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
        require_plain_file(path)
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes, so not a manifest of ftune")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing, so {folder} is not a whole artefact of ftune") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    manifest = json_object(data)
    if manifest is None:
        raise ArtifactError(f"{path}: damaged, not a JSON object")
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(f"{path}: has format {version}, this ftune reads up to {FORMAT}; update ftune")
    try:
        intact = data == sealed({key: value for key, value in manifest.items() if key != SEAL})
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
        entries = [path for path in entries_of(folder) if path.is_symlink() or not path.is_dir()]
        found = {path.relative_to(folder).as_posix(): path for path in entries if path != folder / MANIFEST}
        if lacking := sorted(files.keys() - found.keys()):
            raise ArtifactError(f"{folder / lacking[0]}: missing, though {MANIFEST} lists it")
        for name, path in found.items():
            require_plain_file(path)
            if name not in files:
                raise ArtifactError(f"{path}: not listed in {MANIFEST}, so it was added later")
            _compare(path, files[name])
    except OSError as error:
        raise ArtifactError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return manifest


def entries_of(folder: Path) -> Iterator[Path]:
    """Everything below the folder, parents before children; symlinks are not followed."""
    with os.scandir(folder) as scan:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    for name, is_folder in found:
        yield folder / name
        if is_folder:
            yield from entries_of(folder / name)


def require_plain_file(path: Path) -> None:
    """Refuse symlinks, sockets and the like with an ArtifactError."""
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


def sealed(manifest: dict[str, Any]) -> bytes:
    """The only bytes this manifest may have: with its own SHA-256 as the last key."""
    return json_bytes({**manifest, SEAL: hashlib.sha256(json_bytes(manifest)).hexdigest()})


def json_bytes(value: Any, indent: int | None = 2) -> bytes:
    """`value` as JSON with a line end; NaN and infinities are a ValueError."""
    return utf8(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, or None when it is anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def utf8(text: str) -> bytes:
    """`text` as UTF-8, whatever it holds."""
    # Names of files may hold bytes that are not UTF-8. Python's \udcXX for them, so escaped, is still right in JSON.
    return text.encode("utf-8", "backslashreplace")
