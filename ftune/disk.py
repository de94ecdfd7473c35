"""Errors of the disk in the user's words: full, forbidden, read-only or broken, with path, needed and free bytes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftune.errors import DiskError, FtuneError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRONG_PLACE = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_DISK_ERRORS = _FULL | _WRONG_PLACE | {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def disk_error(error: OSError, path: Path, needed: int | None = None) -> DiskError:
    """The error to raise for `error` at `path`, with the needed and free bytes where known and what to do."""
    reason = error.strerror or str(error)
    free = free_bytes(path)
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
def as_disk_error(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an error of the disk, whoever raised it, into a DiskError about `path`; let every other one pass."""
    try:
        yield
    except FtuneError:
        raise
    except Exception as error:
        number = _disk_errno(error)
        if isinstance(error, FileNotFoundError) and error.filename == str(path):
            number = errno.ENOENT  # of what is written, not of something that the writer reads
        if number is None:
            raise
        plain = error if isinstance(error, OSError) and error.errno == number else OSError(number, os.strerror(number))
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


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of `path` or of its nearest existing parent; None when that cannot be asked."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None
