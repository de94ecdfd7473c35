"""File formats: a file becomes numbered rows, or numbered complaints about what is no row.

txt and md are one document a file, jsonl has one object a line, json is a list of objects, csv and tsv begin with a
header line, conll and bio have a word and its tag a line and an empty line after each sentence. Numbers are physical
lines, counted from 1; of parquet and json, rows.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Item = tuple[int, dict[str, Any] | str]
"""A number with the row's values, or with what is wrong there."""
_BETWEEN = re.compile(r"[\s,]*")


def parse(path: Path) -> Iterator[Item]:
    """All rows of one file, and everything in it that is no row.

    Raises:
        OSError: it cannot be read.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path)
    if ending == ".jsonl":
        return _jsonl(path)
    return _decoded(path, _WHOLE.get(ending, _document))


def _decoded(path: Path, rows: Callable[[str], Iterator[Item]]) -> Iterator[Item]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield raw[: error.start].count(b"\n") + 1, _not_utf8(raw[error.start])
        return
    yield from rows(text)


def _not_utf8(byte: int) -> str:
    return f"is not UTF-8 text (byte 0x{byte:02x}). Save the file as UTF-8."


def _document(text: str) -> Iterator[Item]:
    yield 1, {"text": text.replace("\r\n", "\n")}


def _jsonl(path: Path) -> Iterator[Item]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            except UnicodeDecodeError as error:
                yield number, _not_utf8(raw[error.start])
                continue
            if not text:
                continue
            try:
                values = _loads(text)
            except json.JSONDecodeError as error:
                yield number, f"is not valid JSON: {_where(error)}. Expected one object a line."
            except ValueError as error:
                yield number, f"is not valid JSON: {error}. Expected one object a line."
            else:
                yield number, _object(values)


def _json(text: str) -> Iterator[Item]:
    try:
        values = _loads(text)
    except json.JSONDecodeError as error:
        hint = " One object a line is .jsonl." if error.msg == "Extra data" else ""
        yield error.lineno, f"is not valid JSON: {_where(error)}.{hint}"
        return
    except ValueError as error:
        yield _refused_row(text), f"is not valid JSON: {error}."
        return
    if not isinstance(values, list):
        yield 1, f"expected a list of objects, received {_kind(values)}."
        return
    for number, value in enumerate(values, start=1):
        yield number, _object(value)


def _where(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _refused_row(text: str) -> int:
    """Number of the first element that breaks one of our own rules, for which json itself has no place."""
    if not text.lstrip().startswith("["):
        return 1
    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 1
    while True:
        start = _between(text, position)
        try:
            _, position = decoder.raw_decode(text, start)
            _loads(text[start:position])
        except (ValueError, RecursionError):
            return number
        number += 1


def _between(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return position if found is None else found.end()


def _loads(text: str) -> Any:
    """JSON without its traps: a repeated key, NaN and lone surrogates are errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"key {repeated!r} is repeated")
        return values

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON value")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    return values


def _object(values: Any) -> dict[str, Any] | str:
    return values if isinstance(values, dict) else f"expected an object, received {_kind(values)}."


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return "null" if value is None else names[type(value)]


def _table(text: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[Item]:
    """Rows of a csv (quoted fields) or tsv (quotes are letters); a row is named by its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # by default no document above 128 KiB fits a field
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    first_line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first_line, f"is not a valid row: {error}."
            return
        if fields and header is None:
            header = fields
            if len(set(header)) < len(header):
                yield first_line, f"the header names a column twice: {', '.join(header)}."
                return
        elif fields and header is not None:
            if len(fields) == len(header):
                yield first_line, dict(zip(header, fields, strict=True))
            else:
                yield first_line, f"expected {len(header)} fields ({', '.join(header)}), received {len(fields)}."
        first_line = reader.line_num + 1


def _sentences(text: str) -> Iterator[Item]:
    """First column the word, last column its tag, as in the CoNLL shared tasks."""
    first, tokens, tags = 0, list[str](), list[str]()
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        columns = line.split("\t") if "\t" in line.strip() else line.split()
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens:
                yield first, {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
        elif len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            yield number, f"expected a word and a tag, received {line[:80]!r}."
        else:
            first = number if not tokens else first
            tokens.append(columns[0].strip())
            tags.append(columns[-1].strip())


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            yield 1, f"the header names a column twice: {', '.join(names)}."
            return
        for batch in file.iter_batches(batch_size=1024):
            for index in range(batch.num_rows):
                number += 1
                yield number, _parquet_row(batch.slice(index, 1))
    except (pyarrow.ArrowException, OSError) as error:
        yield number + 1, f"is not readable parquet: {str(error).splitlines()[0].rstrip('.')}."


def _parquet_row(batch: Any) -> dict[str, Any] | str:
    try:
        values: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return _not_utf8(error.object[error.start])
    except (ValueError, OverflowError) as error:  # such as a date beyond what Python knows
        return f"holds a value that cannot be read: {error}."
    return values


_WHOLE: dict[str, Callable[[str], Iterator[Item]]] = {
    ".json": _json,
    ".csv": functools.partial(_table, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": functools.partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".conll": _sentences,
    ".bio": _sentences,
}
