"""Which checkpoints a run has, which of them is the newest good one, and which are kept."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ftune.disk import as_disk_error
from ftune.errors import ArtifactError
from ftune.manifest import MANIFEST, verify
from ftune.store import Store

_STEP = re.compile(r"step_([0-9]{6,})")


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """The folders in `root/checkpoints` that have a checkpoint's name, with their steps, oldest step first.

    One without a manifest was damaged by others: a kill at any moment leaves none.
    """
    folder = root / "checkpoints"
    found = []
    with as_disk_error(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _STEP.fullmatch(path.name)
            if match and path.name == f"step_{int(match[1]):06d}" and path.is_dir():
                found.append((int(match[1]), path))
    return sorted(found)


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints in `root/checkpoints`, with their steps, oldest step first. Nothing is verified."""
    return [(step, path) for step, path in step_folders(root) if (path / MANIFEST).is_file()]


def newest_good(root: Path) -> tuple[tuple[int, Path] | None, list[str]]:
    """The newest checkpoint that verifies, and why each newer one was skipped."""
    skipped = []
    for step, path in reversed(step_folders(root)):
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
