"""Arrays on disk that grow while they are written and are mapped into memory when they are read.

One file for each: raw numbers, in a file that is called `name.type`, such as `ids.i4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np


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


def open_columns(folder: Path) -> dict[str, np.ndarray]:
    """Every array in `folder` by name, mapped and read-only."""
    found: dict[str, np.ndarray] = {}
    for path in folder.iterdir():
        name, _, kind = path.name.partition(".")
        if kind in ("i4", "i8", "u1", "u8", "f4"):
            dtype = np.dtype(f"<{kind}")
            empty = path.stat().st_size == 0  # which cannot be mapped
            found[name] = np.zeros(0, dtype) if empty else np.asarray(np.memmap(path, dtype, mode="r"))
    return found
