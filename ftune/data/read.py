"""Read rows from files and hubs, each with the place it came from.

Formats by ending: txt, md (one document a file), jsonl, json (a list of objects), csv, tsv (with a header line), parquet.
Anything that is no file, glob or folder is a hub id. Errors carry the physical line (parquet and json: the row).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftune.errors import DataError, MachineError, RowProblem, suggestion
from ftune.quantities import Slice
from ftune.recipe import Source

ENDINGS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One record and where it was: `file` as the user knows it, `number` its line (or row), counted from 1."""

    file: str
    number: int
    values: dict[str, Any]

    def problem(self, message: str, field: str = "") -> RowProblem:
        """A problem of this row."""
        return RowProblem(self.file, self.number, message, field)


def locate(source: Source, folder: Path) -> list[Path] | None:
    """The files that `source` names, or None when it is a hub id.

    Args:
        source: what the recipe says.
        folder: the recipe's folder, from which relative paths start.

    Raises:
        DataError: it looks like a file, and there is none.
    """
    path = folder / source.path
    if any(mark in source.path for mark in "*?["):
        matched = sorted(p for p in _glob(path) if p.is_file())
        if not matched:
            raise DataError(f"{path}: no file matches this pattern. Relative paths start from the recipe's folder.")
        return matched
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise DataError(f"{path}: unknown ending '{path.suffix}'. Expected one of: {', '.join(ENDINGS)}.")
        return [path]
    if path.is_dir():
        raise DataError(f"{path}: is a folder. Name its files with a glob such as '{source.path}/*.jsonl'.")
    if path.suffix.lower() in ENDINGS or source.path.startswith((".", "/")) or source.path.count("/") > 1:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, near) if near else ""
        hint = hint if "Did you mean" in hint else " Relative paths start from the recipe's folder."
        raise DataError(f"{path}: no such file.{hint}")
    return None


def _glob(pattern: Path) -> Iterator[Path]:
    anchor = Path(pattern.anchor) if pattern.is_absolute() else Path()
    return anchor.glob(str(pattern.relative_to(anchor) if pattern.is_absolute() else pattern))


def read_source(source: Source, folder: Path) -> Iterator[Row]:
    """All rows of `source`, within the range its split names.

    Raises:
        DataError: with every malformed row of the file that is read, by file and line.
    """
    files = locate(source, folder)
    part = Slice.parse(source.split)
    if files is None:
        yield from _hub_rows(source)
        return
    rows = [row for file in files for row in read_file(file)] if part.start or part.stop else None
    if rows is None:
        for file in files:
            yield from read_file(file)
        return
    start, stop = part.bounds(len(rows))
    yield from rows[start:stop]


def read_file(path: Path) -> Iterator[Row]:
    """All rows of one file.

    Raises:
        DataError: with every malformed row.
    """
    ending = path.suffix.lower()
    problems: list[RowProblem] = []
    if ending == ".parquet":
        items: Iterator[Row | RowProblem] = _parquet_rows(path)
    elif ending == ".jsonl":
        items = _jsonl_rows(path)
    elif ending == ".json":
        items = _json_rows(path)
    elif ending in (".csv", ".tsv"):
        items = _table_rows(path, "," if ending == ".csv" else "\t")
    else:
        items = iter([Row(str(path), 1, {"text": _text(path)})])
    count = 0
    for item in items:
        count += 1
        if isinstance(item, RowProblem):
            problems.append(item)
        elif not problems:
            yield item
    if problems:
        raise DataError(problems=problems)
    if count == 0:
        raise DataError(f"{path}: holds no rows.")


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(problems=[RowProblem(str(path), line, _not_utf8(raw[error.start]))]) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _not_utf8(byte: int) -> str:
    return f"is not UTF-8 text (byte 0x{byte:02x}). Save the file as UTF-8."


def _jsonl_rows(path: Path) -> Iterator[Row | RowProblem]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield RowProblem(str(path), number, _not_utf8(raw[error.start]))
                continue
            if not text:
                continue
            try:
                values = _loads(text)
            except ValueError as error:
                yield RowProblem(str(path), number, f"is not valid JSON: {error}. Expected one object a line.")
                continue
            yield _row_or_problem(path, number, values)


def _json_rows(path: Path) -> Iterator[Row | RowProblem]:
    text = _text(path)
    try:
        values = _loads(text)
    except json.JSONDecodeError as error:
        hint = " One object a line is .jsonl." if error.msg == "Extra data" else ""
        yield RowProblem(str(path), error.lineno, f"is not valid JSON: {error.msg} at column {error.colno}.{hint}")
        return
    except ValueError as error:
        yield RowProblem(str(path), 1, f"is not valid JSON: {error}.")
        return
    if not isinstance(values, list):
        yield RowProblem(str(path), 1, f"expected a list of objects, received {_kind(values)}.")
        return
    for number, value in enumerate(values, start=1):
        yield _row_or_problem(path, number, value)


def _loads(text: str) -> Any:
    """JSON without its traps: a repeated key, NaN and lone surrogates are errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise ValueError(f"key {repeated!r} is repeated")
        return values

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON value")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair") from error
    return values


def _row_or_problem(path: Path, number: int, values: Any) -> Row | RowProblem:
    if isinstance(values, dict):
        return Row(str(path), number, values)
    return RowProblem(str(path), number, f"expected an object, received {_kind(values)}.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _table_rows(path: Path, delimiter: str) -> Iterator[Row | RowProblem]:
    """Rows of a csv (quoted fields) or tsv (quotes are letters) with a header; a row is named by its first line."""
    text = _text(path)
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    first_line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RowProblem(str(path), first_line, f"is not a valid row: {error}.")
            return
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                yield RowProblem(str(path), 1, f"the header names a column twice: {', '.join(header)}.")
                return
        elif fields and len(fields) != len(header):
            message = f"expected {len(header)} fields ({', '.join(header)}), received {len(fields)}."
            yield RowProblem(str(path), first_line, message)
        elif fields:
            yield Row(str(path), first_line, dict(zip(header, fields, strict=True)))
        first_line = reader.line_num + 1


def _parquet_rows(path: Path) -> Iterator[Row | RowProblem]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(str(path), number, values)
    except (pyarrow.ArrowException, OSError) as error:
        yield RowProblem(str(path), 1, f"is not a readable parquet file: {str(error).splitlines()[0]}.")


def _hub_rows(source: Source) -> Iterator[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    part = Slice.parse(source.split)
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(source.path, split=part.name or "train", revision=source.revision)
    except (ConnectionError, HfHubHTTPError, datasets.exceptions.DatasetNotFoundError, OSError) as error:
        raise MachineError(
            f"data set '{source.path}' is no file here and cannot be had from the hub: {str(error).splitlines()[0]}. "
            "Check the name, or download it first and name the file."
        ) from error
    except ValueError as error:
        raise DataError(f"data set '{source.path}': {str(error).splitlines()[0]}") from error
    start, stop = part.bounds(len(table))
    for number in range(start, stop):
        yield Row(f"{source.path}[{part.name}]", number + 1, table[number])


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
