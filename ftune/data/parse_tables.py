"""Tables of text: csv and tsv, a row a line, and conll, a word a line. Read line by line, in flat memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Literal

from ftune.data.streams import Fault, Item, Lines

LONGEST_FIELD = 2**31 - 1
"""Characters of a field, the most that the csv module can be told; by default it stops at 128 KiB."""


def table(lines: Lines, delimiter: str, *, quoting: bool, header: Sequence[str] | None) -> Iterator[Item]:
    """Rows of a table; a row is named by its first line.

    Args:
        lines: of the file.
        delimiter: between fields.
        quoting: whether quotes enclose fields; else they are letters.
        header: names of the columns; None takes the first line that is not empty.
    """
    csv.field_size_limit(LONGEST_FIELD)
    style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    reader = csv.reader(lines.text(), delimiter=delimiter, quoting=style, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
            fault = lines.fault(first)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num
            swallowed = f" The quote that opens there takes in all lines up to {last}." if last > first else ""
            fault = Fault(f"is not a valid row: {error}.{swallowed}", ends=last > first)
        if header is None and (fault or fields):
            fault = fault or _fault_of(fields)
            header = fields
            if fault:
                yield first, Fault(fault.message, ends=True)
                return
        elif fault:
            yield first, fault
            if fault.ends:
                return
        elif fields and header is not None:
            if len(fields) == len(header):
                yield first, dict(zip(header, fields, strict=True))
            else:
                expected = f"{len(header)} fields ({', '.join(header)})"
                yield first, Fault(f"expected {expected}, received {len(fields)}.")


def _fault_of(header: list[str]) -> Fault | None:
    twice = len(set(header)) < len(header)
    return Fault(f"the header names a column twice: {', '.join(header)}.") if twice else None


def sentences(lines: Lines) -> Iterator[Item]:
    """First column the word, last column its tag, as in the CoNLL shared tasks; a sentence with a fault is no row."""
    first, whole, tokens, tags = 0, True, list[str](), list[str]()
    for line in lines.text():
        text = line.rstrip("\r\n")
        if not text.strip() or text.startswith("-DOCSTART-"):
            if tokens and whole:
                yield first, {"tokens": tokens, "tags": tags}
            whole, tokens, tags = True, [], []
            continue
        columns = text.split("\t") if "\t" in text.strip() else text.split()
        fault = lines.fault(lines.number)
        if fault is None and (len(columns) < 2 or not columns[0].strip() or not columns[-1].strip()):
            fault = Fault(f"expected a word and a tag, received {text[:80]!r}.")
        if fault:
            yield lines.number, fault
            whole = False
            continue
        first = first if tokens else lines.number
        tokens.append(columns[0].strip())
        tags.append(columns[-1].strip())
    if tokens and whole:
        yield first, {"tokens": tokens, "tags": tags}
