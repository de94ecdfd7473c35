"""Arrays on disk that grow while they are written, and are mapped into memory for as long as one is looked at.

One file for each: raw numbers, in a file that is called `name.type`, such as `ids.i4`.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

CHUNK = 1 << 16
"""Numbers that are looked at together where all of an array is gone through."""

LARGE = 1 << 31
"""Places up to here are held as int32."""


class ColumnsWriter:
    """Appends to arrays in `folder`. Use as a context manager.

    Args:
        folder: where the files are made.
        types: numpy's short name of each array's type, such as `i4`, by name.
    """

    def __init__(self, folder: Path, types: Mapping[str, str]) -> None:
        self._files: dict[str, BinaryIO] = {}
        self._types = dict(types)
        self._folder = folder

    def __enter__(self) -> ColumnsWriter:
        for name in self._types:
            self._open(name)
        return self

    def _open(self, name: str) -> None:
        self._files[name] = (self._folder / f"{name}.{self._types[name]}").open("wb")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, values: np.ndarray | list[int]) -> None:
        """Append numbers to one array; one that is not in `types` has the type of its first numbers."""
        if name not in self._types:
            self._types[name] = np.asarray(values).dtype.str[1:]
            self._open(name)
        self._files[name].write(np.asarray(values, dtype=f"<{self._types[name]}").tobytes())


class Columns(Mapping[str, np.ndarray]):
    """Every array in a folder by name, read-only.

    Each look-up maps the file anew, and the pages go when that array does: so what was gone through once does not stay
    in memory. The files stay open, so that they may be deleted meanwhile.

    Args:
        folder: what a `ColumnsWriter` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, tuple[int, np.dtype, int]] = {}
        for path in folder.iterdir():
            name, _, kind = path.name.partition(".")
            if kind in ("i4", "i8", "u1", "u8", "f4"):
                dtype = np.dtype(f"<{kind}")
                file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                weakref.finalize(self, os.close, file)
                self._files[name] = file, dtype, os.fstat(file).st_size // dtype.itemsize

    def __getitem__(self, name: str) -> np.ndarray:
        file, dtype, size = self._files[name]
        if not size:  # which cannot be mapped
            return np.zeros(0, dtype)
        return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def size(self, name: str) -> int:
        """How many numbers an array has."""
        return self._files[name][2]

    def part(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of some of an array, which may be written to; nothing is mapped where the system can do without."""
        if not hasattr(os, "pread"):
            return np.array(self[name][start:stop])
        file, dtype, _ = self._files[name]
        found = os.pread(file, (stop - start) * dtype.itemsize, start * dtype.itemsize)
        return np.frombuffer(bytearray(found), dtype)

    def take(self, name: str, places: np.ndarray) -> np.ndarray:
        """Numbers of an array at `places`; of few that are near each other, nothing is mapped."""
        low, high = (int(places.min()), int(places.max()) + 1) if len(places) else (0, 0)
        near = high - low <= 8 * CHUNK
        return np.asarray(self.part(name, low, high)[places - low] if near else self[name][places])

    def before(self, name: str, places: np.ndarray) -> np.ndarray:
        """What stands one place before each of `places`; 0 before the first."""
        return np.where(places > 0, self.take(name, np.maximum(places - 1, 0)), 0)

    def among(self, name: str, known: np.ndarray) -> np.ndarray:
        """Which numbers of an array are among `known`, which are ascending: bool, of the array's size."""
        return np.concatenate([np.zeros(0, bool), *(among(piece, known) for piece in chunks(self[name]))])

    def one(self, name: str, place: int) -> int:
        """One number of an array."""
        return int(self.part(name, place, place + 1)[0])


def chunks(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces, so that what is made of one is small."""
    return (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))


def joined(pieces: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Pieces as one array of `size` numbers, in the type of the first; with room for no more than that and a piece."""
    found, first = np.zeros(0, np.uint64), 0
    for piece in pieces:
        found = found if first else np.empty(size, piece.dtype)
        found[first : first + len(piece)] = piece
        first += len(piece)
    return found


def numbered(size: int) -> np.ndarray:
    """0 to `size - 1`, in the smaller type that holds them."""
    return np.arange(size, dtype=np.int32 if size < LARGE else np.int64)


def among(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of some numbers are among `known`, which are ascending: bool."""
    if not len(known):
        return np.zeros(len(numbers), bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, numbers), len(known) - 1)] == numbers)


def where(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Places at which bool arrays, laid end to end, are true: ascending, in the smaller type that holds them."""
    found, first = [numbered(0)], 0
    for piece in pieces:
        found.append((np.flatnonzero(piece) + first).astype(np.int32 if first < LARGE - len(piece) else np.int64))
        first += len(piece)
    return np.concatenate(found)
