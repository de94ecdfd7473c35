"""File formats: a file becomes numbered rows, or numbered complaints about what is no row.

txt is one document a file, lines one row a line, jsonl one object a line, json a list of objects (or an object of
objects). Tables are in `parse_tables`, parquet and arrow in `parse_columnar`. Numbers are physical lines, counted from
1; of json, parquet and arrow, rows. Of json and txt the whole file is in memory, of all others a few rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftune.data import parse_columnar, parse_tables
from ftune.data.streams import Damaged, Fault, Item, Lines, not_utf8, open_bytes
from ftune.file_formats import FileFormat

_BETWEEN = re.compile(r"[\s,:]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Args:
        file_format: what it holds.
        codec: how it is compressed; None if it is not.
        header: names of a table's columns, if its first line is a row already.
        quoting: whether quotes enclose fields of a table; None leaves it to the file format.
    """

    file_format: FileFormat
    codec: str | None = None
    header: tuple[str, ...] | None = None
    quoting: bool | None = None


def parse(path: Path, reading: Reading) -> Iterator[Item]:
    """All rows of one file, and everything in it that is no row.

    Raises:
        OSError: it cannot be read.
    """
    if reading.file_format in parse_columnar.FORMATS:
        yield from parse_columnar.rows(path, reading.file_format, reading.codec)
        return
    with open_bytes(path, reading.codec) as stream:
        lines = Lines(stream)
        try:
            yield from _rows(lines, reading)
        except Damaged as error:
            cut = "Truncated" in str(error)
            what = "is cut off here" if cut else f"is damaged here ({error})"
            message = f"{what}: nothing from this line on can be decompressed. Get the file anew."
            yield lines.number + 1, Fault(message, ends=True)


def _rows(lines: Lines, reading: Reading) -> Iterator[Item]:
    if reading.file_format in ("csv", "tsv"):
        quoting = reading.file_format == "csv" if reading.quoting is None else reading.quoting
        delimiter = "," if reading.file_format == "csv" else "\t"
        return parse_tables.table(lines, delimiter, quoting=quoting, header=reading.header)
    if reading.file_format == "conll":
        return parse_tables.sentences(lines)
    if reading.file_format == "lines":
        return _texts(lines)
    if reading.file_format == "jsonl":
        return _jsonl(lines)
    return _decoded(lines, _json if reading.file_format == "json" else _document)


def _decoded(lines: Lines, rows: Callable[[str], Iterator[Item]]) -> Iterator[Item]:
    raw = lines.stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield error.object[: error.start].count(b"\n") + 1, not_utf8(error.object[error.start], ends=True)
        return
    yield from rows(text)


def _document(text: str) -> Iterator[Item]:
    yield 1, {"text": text.replace("\r\n", "\n")}


def _texts(lines: Lines) -> Iterator[Item]:
    for line in lines.text():
        text = line.rstrip("\r\n")
        if text.strip():
            yield lines.number, lines.fault(lines.number) or {"text": text}


def _jsonl(lines: Lines) -> Iterator[Item]:
    for raw in lines.raw():
        number = lines.number
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
        except UnicodeDecodeError as error:
            yield number, not_utf8(error.object[error.start])
            continue
        if not text:
            continue
        try:
            values = loads(text)
        except json.JSONDecodeError as error:
            yield number, Fault(f"is not valid JSON: {_where(error)}. Expected one object a line.")
        except ValueError as error:
            yield number, Fault(f"is not valid JSON: {error}. Expected one object a line.")
        else:
            yield number, _object(values)


def _json(text: str) -> Iterator[Item]:
    try:
        values = loads(text)
    except json.JSONDecodeError as error:
        hint = " One object a line is .jsonl." if error.msg == "Extra data" else ""
        yield error.lineno, Fault(f"is not valid JSON: {_where(error)}.{hint}", ends=True)
        return
    except ValueError as error:
        yield _refused_row(text), Fault(f"is not valid JSON: {error}.", ends=True)
        return
    rows = _listed(values)
    if rows is None:
        expected = "a list of objects, an object of objects, or an object with one list of objects"
        yield 1, Fault(f"expected {expected}, received {_kind(values)}.", ends=True)
        return
    for number, value in enumerate(rows, start=1):
        yield number, _object(value)


def _listed(values: Any) -> list[Any] | None:
    """The rows that a JSON file holds: its list; the list inside an object; an object's objects, with their keys."""
    if isinstance(values, list):
        return values
    if not isinstance(values, dict):
        return None
    lists = [value for value in values.values() if isinstance(value, list) and any(isinstance(v, dict) for v in value)]
    if len(lists) == 1:
        return lists[0]
    objects = sum(isinstance(value, dict) for value in values.values())
    if lists or 2 * objects <= len(values):
        return None
    return [{"key": key, **value} if isinstance(value, dict) else value for key, value in values.items()]


def _where(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _refused_row(text: str) -> int:
    """Number of the first row that breaks one of our own rules, for which json itself has no place."""
    text = text.lstrip()
    if not text.startswith(("[", "{")):
        return 1
    decoder, keys, position, number = json.JSONDecoder(), set[str](), 1, 1
    while True:
        start = _between(text, position)
        try:
            if text[0] == "{":
                key, position = decoder.raw_decode(text, start)
                loads(text[start:position])
                if key in keys:
                    return number
                keys.add(key)
                start = _between(text, position)
            _, position = decoder.raw_decode(text, start)
            loads(text[start:position])
        except (ValueError, RecursionError):
            inside = text[0] == "{" and text[start : start + 1] == "["
            return _refused_row(text[start:]) if inside else number
        number += 1


def _between(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return position if found is None else found.end()


def loads(text: str) -> Any:
    """JSON without its traps: a repeated key, NaN and lone surrogates are errors.

    Raises:
        ValueError: it is no JSON, or has one of these.
    """
    try:
        values = _DECODER.decode(text)
        if "\\u" in text and _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {repeated!r} is repeated")
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
"""Made once: making it takes as long as reading a row."""


def _object(values: Any) -> dict[str, Any] | Fault:
    return values if isinstance(values, dict) else Fault(f"expected an object, received {_kind(values)}.")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return "null" if value is None else names[type(value)]
