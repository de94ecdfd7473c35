"""Read rows from files and hubs, each with the place it came from.

The file formats are in `parse.py`. Anything that is no file, glob or folder is a hub id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftune.data.parse import parse
from ftune.errors import DataError, MachineError, RowProblem, suggestion
from ftune.quantities import Slice
from ftune.recipe import Source

ENDINGS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".bio")


@dataclass(frozen=True)
class Row:
    """One record and where it was: `file` as the user knows it, `number` its line (or row), counted from 1."""

    file: str
    number: int
    values: dict[str, Any]

    def problem(self, message: str, field: str = "") -> RowProblem:
        """A problem of this row."""
        return RowProblem(self.file, self.number, message, field)


def short(value: Any) -> str:
    """How a value of a wrong type is shown in a message, in one short line."""
    if value is None:
        return "null"
    return f"{type(value).__name__}: {str(value)[:80]!r}"


def named(blocks: Sequence[Source]) -> dict[str, Source]:
    """Sources by the name of their file, with a number where two have the same."""
    found: dict[str, Source] = {}
    for block in blocks:
        stem = Path(block.path).stem
        same = sum(name == stem or name.startswith(f"{stem}_") for name in found)
        found[f"{stem}_{same + 1}" if same else stem] = block
    return found


def locate(source: Source, folder: Path) -> list[Path] | None:
    """The files that `source` names, or None when it is a hub id.

    Args:
        source: what the recipe says.
        folder: the recipe's folder, from which relative paths start.

    Raises:
        DataError: it looks like a file, and there is none.
    """
    path = folder / source.path
    try:
        if path.is_file():
            return [_readable(path)]
        if any(mark in source.path for mark in "*?["):
            return [_readable(matched) for matched in _matches(path, source.path, folder)]
        if path.is_dir():
            raise DataError(f"{path}: is a folder. Name its files with a glob such as '{source.path}/*.jsonl'.")
        if path.suffix.lower() in ENDINGS or source.path.startswith((".", "/")) or source.path.count("/") > 1:
            raise DataError(f"{path}: no such file.{_hint(path)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror}.") from error
    return None


def _readable(path: Path) -> Path:
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: unknown ending '{path.suffix}'. Expected one of: {', '.join(ENDINGS)}.")
    return path


def _matches(path: Path, pattern: str, folder: Path) -> list[Path]:
    root = Path(path.anchor) if Path(pattern).is_absolute() else folder  # marks in the folder's own name are letters
    try:
        matched = sorted(p for p in root.glob(pattern.removeprefix(root.anchor)) if p.is_file())
    except ValueError as error:
        raise DataError(f"{path}: is no valid pattern: {error}.") from error
    if not matched:
        raise DataError(f"{path}: no file matches this pattern. Relative paths start from the recipe's folder.")
    return matched


def _hint(path: Path) -> str:
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggestion(path.name, near)
    return hint if "Did you mean" in hint else " Relative paths start from the recipe's folder."


def read_source(source: Source, folder: Path) -> Iterator[Row | RowProblem]:
    """All rows of `source`, within the range its split names, and every problem of the files that are read.

    Raises:
        DataError: there is nothing to read.
    """
    files = locate(source, folder)
    part = Slice.parse(source.split)
    if files is None:
        yield from _hub_rows(source)
    elif not (part.start or part.stop):
        for file in files:
            yield from read_file(file)
    else:
        items = [item for file in files for item in read_file(file)]
        rows = [item for item in items if isinstance(item, Row)]
        yield from (item for item in items if isinstance(item, RowProblem))
        yield from rows[slice(*_bounds(source, len(rows)))] if rows else ()


def _bounds(source: Source, rows: int) -> tuple[int, int]:
    start, stop = Slice.parse(source.split).bounds(rows)
    if start == stop:
        raise DataError(f"{source.path}: the range {source.split!r} holds none of its {rows} rows.")
    return start, stop


def read_file(path: Path) -> Iterator[Row | RowProblem]:
    """All rows of one file, and a problem for everything in it that is no row.

    Raises:
        DataError: it cannot be read, or holds nothing.
    """
    count = 0
    try:
        for number, found in parse(path):
            count += 1
            file = str(path)
            yield RowProblem(file, number, found) if isinstance(found, str) else Row(file, number, found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if count == 0:
        raise DataError(f"{path}: holds no rows.")


def _hub_rows(source: Source) -> Iterator[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    part = Slice.parse(source.split)
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(source.path, split=part.name or "train", revision=source.revision)
    except (ConnectionError, HfHubHTTPError, datasets.exceptions.DatasetNotFoundError, OSError) as error:
        raise MachineError(
            f"data set '{source.path}' is no file here and cannot be had from the hub: {_first_line(error)}. "
            "Check the name, or download it first and name the file."
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # no such split, a script, bad files
        raise DataError(f"data set '{source.path}': {_first_line(error)}.") from error
    start, stop = _bounds(source, len(table))
    for number in range(start, stop):
        yield Row(f"{source.path}[{part.name or 'train'}]", number + 1, table[number])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def fingerprint(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file's bytes, by name."""
    found = {}
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        found[str(file)] = digest.hexdigest()
    return found
