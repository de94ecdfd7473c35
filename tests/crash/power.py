"""Power cuts: what a disk may hold after one, for everything the store announced before it.

The model is that of a journalling file system without mercy. What was fsynced is there. A rename is kept whole or not
at all. Of everything else that happened since the last fsync of its folder or file, any part may be there, in any
order: names made, removed or not; contents old, new, cut off, or zeros in some of their pages. (What real file systems
do of this: Pillai et al. 2014, "All File Systems Are Not Created Equal".)
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
Tree = dict[str, "Inode"]


@dataclass(eq=False)
class Inode:
    """A file or a folder, whatever it is called now.

    Args:
        number: of the inode.
        content: of a file; None for a folder.
        synced: content at the last fsync; None before the first.
        entries: names in a folder at its last fsync.
    """

    number: int
    content: bytes | None
    synced: bytes | None = None
    entries: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What happened to names of folders, as one: names that went, and names that came."""

    gone: tuple[tuple[Inode, str], ...]
    came: tuple[tuple[Inode, str, Inode], ...]


class Recorder:
    """Follows a folder from operation to operation; give `before` to a `Store` as its `on_operation`.

    Operations are announced before they happen, so each call sees what all earlier ones have done.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations = 0
        self._open: list[int] = []  # an inode that is open keeps its number to itself
        self._known: dict[int, Inode] = {}
        self._seen: dict[int, tuple[int, int]] = {}
        self._pending: list[Change] = []
        self._now: dict[int, Tree] = {}
        self._announced: tuple[str, Path] | None = None
        self.top = self._inode(root)
        self._now[self.top.number] = {}

    def before(self, kind: str, path: Path) -> None:
        """One more operation is about to happen."""
        self.follow()
        self._announced = (kind, path)
        self.operations += 1

    def follow(self) -> None:
        """Take in what the last operation did."""
        found = dict(self._walk(self.root, self.top))
        self._pending.extend(_changes(self._now, found, self._known))
        self._now = found
        kind, path = self._announced or ("", self.root)
        if kind == "fsync" and path.is_file():
            inode = self._inode(path)
            inode.synced = inode.content
        if kind == "fsync_dir" and path.is_dir() and path.is_relative_to(self.root):
            self._settle(self._inode(path))

    def close(self) -> None:
        """Let the inodes go."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def after_a_cut(self, draw: random.Random, folder: Path) -> None:
        """Write one state that a power cut at this moment may leave into the empty `folder`."""
        trees: dict[int, Tree] = {number: dict(inode.entries) for number, inode in self._known.items()}
        for change in self._pending:
            if draw.random() < 0.5:
                _apply(change, trees)
        kept_all = draw.random() < 0.2
        self._write(self.top, trees, draw, folder, kept_all=kept_all)

    def _walk(self, folder: Path, inode: Inode) -> Iterator[tuple[int, Tree]]:
        tree: Tree = {}
        for entry in sorted(folder.iterdir()):
            child = tree[entry.name] = self._inode(entry)
            if child.content is None:
                yield from self._walk(entry, child)
        yield inode.number, tree

    def _inode(self, path: Path) -> Inode:
        status = path.lstat()
        inode = self._known.get(status.st_ino)
        if inode is None:
            self._open.append(os.open(path, os.O_RDONLY))
            inode = Inode(status.st_ino, None if stat.S_ISDIR(status.st_mode) else b"")
            self._known[status.st_ino] = inode
        stamp = (status.st_size, status.st_mtime_ns)
        if inode.content is not None and self._seen.get(status.st_ino) != stamp:
            inode.content = path.read_bytes()
            self._seen[status.st_ino] = stamp
        return inode

    def _settle(self, folder: Inode) -> None:
        """The folder was fsynced: what happened to its names is on disk, and with it all of a rename."""
        trees = {number: inode.entries for number, inode in self._known.items()}
        left = []
        for change in self._pending:
            touched = {place.number for place, *_ in (*change.gone, *change.came)}
            if folder.number in touched:
                _apply(change, trees)
            else:
                left.append(change)
        self._pending = left

    def _write(self, inode: Inode, trees: dict[int, Tree], draw: random.Random, path: Path, *, kept_all: bool) -> None:
        if inode.content is None:
            path.mkdir(exist_ok=True)
            for name, child in trees[inode.number].items():
                self._write(child, trees, draw, path / name, kept_all=kept_all)
        else:
            path.write_bytes(inode.content if kept_all else _content(inode, draw))


def _content(inode: Inode, draw: random.Random) -> bytes:
    """Content that a file may have after a cut."""
    new, old = inode.content or b"", inode.synced
    if new == old:
        return new
    known = len(os.path.commonprefix([new, old or b""]))  # what an append did not touch is as it was synced
    outcome = draw.choice(["old", "new", "cut", "zeros"])
    if outcome == "old":
        return old or b""
    if outcome == "new":
        return new
    if outcome == "cut":
        return new[: draw.randint(known, len(new))]
    pages = bytearray(new)
    for start in range(known - known % PAGE, len(new), PAGE):
        if draw.random() < 0.5:
            first, last = max(start, known), min(start + PAGE, len(new))
            pages[first:last] = bytes(last - first)
    return bytes(pages)


def _changes(before: dict[int, Tree], after: dict[int, Tree], known: dict[int, Inode]) -> Iterator[Change]:
    """What happened between two looks: renames as one, everything else name by name."""
    old = {(number, name): inode for number, tree in before.items() for name, inode in tree.items()}
    new = {(number, name): inode for number, tree in after.items() for name, inode in tree.items()}
    gone = {place: inode for place, inode in old.items() if new.get(place) is not inode}
    came = {place: inode for place, inode in new.items() if old.get(place) is not inode}
    for place, inode in came.items():
        from_where = next((p for p, other in gone.items() if other is inode), None)
        if from_where is not None:
            del gone[from_where]
        left = () if from_where is None else ((known[from_where[0]], from_where[1]),)
        gone.pop(place, None)  # what was replaced
        yield Change(left, ((known[place[0]], place[1], inode),))
    for number, name in gone:
        yield Change(((known[number], name),), ())


def _apply(change: Change, trees: dict[int, Tree]) -> None:
    for folder, name in change.gone:
        trees[folder.number].pop(name, None)
    for folder, name, inode in change.came:
        trees[folder.number][name] = inode
