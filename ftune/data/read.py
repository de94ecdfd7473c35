"""Read rows from files, loaders and hubs, each with the place it came from.

The file formats are in `parse.py`. Anything that is no file, glob or folder is a hub id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftune.data.hub import hub_rows, split_of
from ftune.data.loader import load_rows
from ftune.data.parse import Reading, parse
from ftune.data.streams import Fault, Item
from ftune.errors import DataError, RowProblem, suggestion
from ftune.file_formats import COMPRESSED, ENDINGS, codec_of, ending_of
from ftune.hook import module_file
from ftune.quantities import Slice
from ftune.recipe import Source


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
    """The files that `source` names, or None when it is a hub id; with a loader, also a folder.

    Args:
        source: what the recipe says.
        folder: the recipe's folder, from which relative paths start.

    Raises:
        DataError: it looks like a file, and there is none.
    """
    path = folder / source.path
    try:
        if path.is_file():
            return [_readable(path, source)]
        if any(mark in source.path for mark in "*?["):
            return [_readable(matched, source) for matched in _matches(path, source.path, folder)]
        if path.is_dir():
            if source.loader is not None:
                return [path]
            raise DataError(f"{path}: is a folder. Name its files with a glob such as '{source.path}/*.jsonl'.")
        looks_like_one = source.path.startswith((".", "/")) or source.path.count("/") > 1
        if ending_of(source.path) in ENDINGS or codec_of(source.path) or looks_like_one or _told(source):
            raise DataError(f"{path}: no such file.{_hint(path)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror}.") from error
    return None


def _told(source: Source) -> bool:
    """Whether the recipe itself says how the file is read, whatever its name."""
    return source.loader is not None or source.file_format is not None


def _readable(path: Path, source: Source) -> Path:
    if not _told(source) and ending_of(path.name) not in ENDINGS:
        known = f"{', '.join(ENDINGS)}, each also with {' or '.join(COMPRESSED)}"
        hint = f"Or say what it holds: {{path: {path.name}, file_format: csv}}."
        raise DataError(f"{path}: unknown ending '{ending_of(path.name)}'. Expected one of: {known}. {hint}")
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


def uses_hub(sources: Iterable[Source], folder: Path) -> bool:
    """Whether any of them is a set of the hub.

    Raises:
        DataError: one looks like a file, and there is none.
    """
    return any(locate(source, folder) is None for source in sources)


def files_of(source: Source, folder: Path) -> list[Path]:
    """Every file that shapes the rows of `source`: the data, all of a loader's folder, and the loader's module.

    Raises:
        DataError: it looks like a file, and there is none.
    """
    found = [
        file
        for path in locate(source, folder) or []
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    ]
    module = None if source.loader is None else module_file(source.loader, folder)
    return found if module is None else [*found, module]


def read_source(source: Source, folder: Path) -> Iterator[Row | RowProblem]:
    """All rows of `source`, within the range its split names, and every problem of the files that are read.

    Only a few rows are in memory at a time. A range in percent reads the files twice, first to count.

    Raises:
        DataError: there is nothing to read.
    """
    files = locate(source, folder)
    items: Iterator[Row | RowProblem]
    if files is None:
        items = (Row(f"{source.path}[{split_of(source)}]", number, values) for number, values in hub_rows(source))
    else:
        items = _in_range(source, lambda: (item for file in files for item in read_file(file, source, folder)))
    return (_with_constants(item, source.values) for item in items) if source.values else items


def _with_constants(item: Row | RowProblem, constants: Mapping[str, Any]) -> Row | RowProblem:
    if isinstance(item, RowProblem):
        return item
    taken = next((name for name in constants if name in item.values), None)
    if taken is not None:
        return item.problem("is a column of the row and a constant in values. Leave one out.", taken)
    return Row(item.file, item.number, {**item.values, **constants})


def _in_range(source: Source, read: Callable[[], Iterator[Row | RowProblem]]) -> Iterator[Row | RowProblem]:
    """Rows of the range, and all problems: whether a range is right may depend on them."""
    part = Slice.parse(source.split)
    if not (part.start or part.stop):
        yield from read()
        return
    in_percent = "%" in source.split
    rows = sum(isinstance(item, Row) for item in read()) if in_percent else 10**15
    start, stop = part.bounds(rows)
    seen = 0
    for item in read():
        if isinstance(item, RowProblem) or start <= seen < stop:
            yield item
        seen += isinstance(item, Row)
    if seen and (start >= seen or start == stop):
        raise DataError(f"{source.path}: the range {source.split!r} holds none of its {seen} rows.")


def read_file(path: Path, source: Source | None = None, folder: Path | None = None) -> Iterator[Row | RowProblem]:
    """All rows of one file, and a problem for everything in it that is no row.

    Args:
        path: of the file, or of the folder that a loader reads.
        source: how it is read, where its name alone does not say.
        folder: the recipe's, where a loader's module may be.

    Raises:
        DataError: it cannot be read, or holds nothing.
    """
    source = Source(path=str(path)) if source is None else source
    file, count = str(path), 0
    try:
        for number, found in _items(path, source, folder or path.parent):
            count += 1
            if isinstance(found, Fault):
                yield RowProblem(file, number, found.message, ends=found.ends)
            else:
                yield Row(file, number, found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if count == 0:
        raise DataError(f"{path}: holds no rows.")


def _items(path: Path, source: Source, folder: Path) -> Iterator[Item]:
    if source.loader is not None:
        return load_rows(source.loader, path, folder)
    file_format = source.file_format or ENDINGS[ending_of(path.name)]
    header = None if source.header is None else tuple(source.header)
    return parse(path, Reading(file_format, codec_of(path.name), header, source.quoting))


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
