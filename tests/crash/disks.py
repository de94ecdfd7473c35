"""Disks of any size, made of memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A file system of its own at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def used_bytes(self) -> int:
        """In whole blocks, as they are counted when they run out."""
        state = os.statvfs(self.root)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def resize(self, size_bytes: int) -> None:
        """Grow or shrink it; never below what is on it."""
        _call("mount", "-o", f"remount,size={max(size_bytes, self.used_bytes)}", str(self.root))

    def fill(self) -> None:
        """Leave no byte free, by a file of somebody else."""
        with (self.root / "somebody-elses").open("wb") as file:
            file.write(b"x" * self.free_bytes)
        assert self.free_bytes == 0


@contextmanager
def disk(root: Path, size_bytes: int, *options: str) -> Iterator[Disk]:
    """Mount a disk of `size_bytes` at `root`, which is made; unmount it after. Skips the test where that is refused."""
    root.mkdir()
    try:
        _call("mount", "-t", "tmpfs", "-o", ",".join([f"size={size_bytes}", *options]), "tmpfs", str(root))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({error}); it can under `unshare -rm`")
    try:
        yield Disk(root)
    finally:
        _call("umount", "-l", str(root))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
