"""A seeded generator of malformed files, each with what must be said of it: the rows, in order, and a word of why."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

TEXT = ("jsonl", "json", "csv", "tsv", "conll", "lines", "txt")
COLUMNAR = ("parquet", "arrow", "stream")
ENDINGS = {"stream": "arrow", "lines": "log"}
SHAPES = ("prompt_completion", "instruction", "pairs", "chat", "classification", "multi_label", "regression",
          "multiple_choice", "tokens", "token_labels", "text")  # fmt: skip
FLAT = ("prompt_completion", "instruction", "pairs", "classification", "regression", "text")
"""Formats that a table of text can hold."""
OBJECTIVES = {
    "classification": "sequence_classification",
    "multi_label": {"name": "sequence_classification", "problem": "multi_label"},
    "regression": {"name": "sequence_classification", "problem": "regression"},
    "token_labels": "token_classification",
}


@dataclass
class Case:
    """A malformed file, how a recipe reads it, and (row, words of the message) of every problem, in order."""

    name: str
    raw: bytes
    shape: str
    fault: str
    source: dict[str, Any] = field(default_factory=dict)
    expected: list[tuple[int, str]] = field(default_factory=list)

    def recipe(self, folder: Path) -> Path:
        """Write the file and its recipe."""
        (folder / self.name).write_bytes(self.raw)
        values = {
            "model": "builtin:tiny-llama",
            "objective": OBJECTIVES.get(self.shape, "causal_lm"),
            "data": {"train": {"path": self.name, **self.source}, "format": self.shape},
        }
        (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
        return folder / "recipe.yaml"


def word(random: Random) -> str:
    letters = "abcdefghij éß漢🙂"
    return "w" + "".join(random.choices(letters, k=random.randint(3, 30))).strip()


def good_row(shape: str, random: Random) -> dict[str, Any]:
    def text() -> str:
        return word(random)

    if shape == "chat":
        turns = [("user", text()), ("assistant", text())] * random.randint(1, 3)
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
    if shape == "tokens":
        ids = [random.randrange(256) for _ in range(random.randint(2, 9))]
        return {"input_ids": ids, "loss_mask": [random.randrange(2) for _ in ids]}
    if shape == "token_labels":
        words = [text().replace(" ", "") for _ in range(random.randint(1, 5))]
        return {"tokens": words, "tags": [random.choice(["O", "B-x"]) for _ in words]}
    return {
        "prompt_completion": lambda: {"prompt": text(), "completion": text()},
        "instruction": lambda: {"instruction": text(), "input": "", "output": text()},
        "pairs": lambda: {"source": text(), "target": text()},
        "classification": lambda: {"text": text(), "label": random.choice("ab")},
        "multi_label": lambda: {"text": text(), "labels": random.sample(["a", "b", "c"], 2)},
        "regression": lambda: {"text": text(), "label": "1.5"},
        "multiple_choice": lambda: {
            "question": text(),
            "choices": ["p q", "r s", "t u"],
            "answer": random.choice("ABC"),
        },
        "text": lambda: {"text": text()},
    }[shape]()


def spoilt(shape: str, row: dict[str, Any], random: Random) -> tuple[dict[str, Any], str]:
    """A row that JSON can hold and the format cannot use, and a part of what is said of it."""
    key = random.choice([name for name in row if name not in ("input", "loss_mask", "labels")])
    kind = random.choice(["missing", "null", "type"])
    if kind == "missing":
        return {name: value for name, value in row.items() if name != key} | {"other": "x"}, f"{key}: is missing"
    if kind == "null":
        return {**row, key: None}, f"{key}: expected"
    if shape == "chat":
        return {"messages": [{"role": "nobody", "content": "x"}, *row["messages"]]}, "messages[0].role: unknown role"
    if shape == "tokens":
        return {**row, "loss_mask": [*row["loss_mask"], 1]}, "loss_mask: has"
    if shape == "token_labels":
        return {**row, "tags": [*row["tags"], "O"]}, "tokens: has"
    if shape == "multiple_choice":
        return {**row, "answer": "Z"}, "answer: expected"
    wrong = {"a": 1} if key == "label" else ["x"]
    return {**row, key: wrong}, f"{key}: expected"


BROKEN_JSON = {
    "not closed": (lambda line: line[:-1], "is not valid JSON"),
    "no object": (lambda line: "[1, 2]", "expected an object"),
    "a word": (lambda line: "nonsense", "is not valid JSON"),
    "repeated key": (lambda line: line[:-1] + ', "zz": 1, "zz": 2}', "key 'zz' is repeated"),
    "NUL": (lambda line: line[:-1] + ', "zz": "a\0b"}', "is not valid JSON"),
    "huge": (lambda line: line[:-1] + f', "zz": "{"x" * 2_000_000}", "zz": 2}}', "key 'zz' is repeated"),
    "NaN": (lambda line: line[:-1] + ', "zz": NaN}', "NaN is no JSON value"),
    "half a surrogate": (lambda line: line[:-1] + ', "zz": "\\ud83d"}', "half of a surrogate pair"),
    "too deep": (lambda line: line[:-1] + f', "zz": {"[" * 100_000}', "nested too deeply"),
}
"""What is done to an object, and what is said of it."""


def chosen(random: Random, rows: int, most: int = 3) -> list[int]:
    """Places of rows that are spoilt, from 0."""
    return sorted(random.sample(range(rows), random.randint(1, min(most, rows))))


def jsonl(shape: str, random: Random) -> Case:
    rows = [good_row(shape, random) for _ in range(random.randint(4, 30))]
    places, lines, expected, faults = chosen(random, len(rows)), list[bytes](), [], set()
    for place, row in enumerate(rows):
        lines += [b""] * random.choice([0, 0, 0, 1, 2])
        line = json.dumps(row, ensure_ascii=random.random() < 0.5)
        raw = line.encode()
        if place in places:
            fault = random.choice(["shape", "bytes", *BROKEN_JSON])
            faults.add(fault)
            if fault == "shape":
                row, said = spoilt(shape, row, random)
                raw = json.dumps(row).encode()
            elif fault == "bytes":
                raw, said = raw[:-1] + b', "zz": "\xe9t"}', "is not UTF-8 text (byte 0xe9)"
            else:
                change, said = BROKEN_JSON[fault]
                raw = change(line).encode()
            expected.append((len(lines) + 1, said))
        lines.append(raw)
    end = random.choice([b"\n", b"\r\n"])
    raw = random.choice([b"", b"\xef\xbb\xbf"]) + end.join(lines) + random.choice([b"", end])
    return Case("rows.jsonl", raw, shape, "+".join(sorted(faults)), expected=expected)


def json_file(shape: str, random: Random) -> Case:
    """A list, keyed rows, or a list within an object."""
    rows = [good_row(shape, random) for _ in range(random.randint(3, 12))]
    fault = random.choice(["shape", "shape", *BROKEN_JSON])
    expected, lines = [], [json.dumps(row) for row in rows]
    if fault == "shape":
        for place in chosen(random, len(rows)):
            row, said = spoilt(shape, rows[place], random)
            lines[place] = json.dumps(row)
            expected.append((place + 1, said))
    else:
        (place,) = chosen(random, len(rows), 1)
        change, said = BROKEN_JSON[fault]
        lines[place] = change(lines[place])
        expected = [(place + 1, said)]
    layout = random.choice(["list", "keyed", "wrapped"])
    if layout == "keyed":
        lines = [f'"id{place}": {line}' for place, line in enumerate(lines)]
    opening, closing = {"list": "[]", "keyed": "{}", "wrapped": ('{"version": "1", "data": [', "]}")}[layout]
    raw = f"{opening}{', '.join(lines)}{closing}".encode()
    if fault in ("not closed", "a word", "NUL"):  # a file on one line
        expected = [(1, "is not valid JSON")]
    return Case("rows.json", raw, shape, f"{layout}: {fault}", expected=expected)


def table(shape: str, kind: str, random: Random) -> Case:
    rows = [good_row(shape, random) for _ in range(random.randint(4, 25))]
    names = list(rows[0])
    places, faults, expected, text = chosen(random, len(rows)), set(), [], io.BytesIO()
    style = {"delimiter": ",", "quoting": csv.QUOTE_ALL} if kind == "csv" else {"delimiter": "\t", "quoting": 3}
    end = random.choice(["\n", "\r\n"])

    def write(fields: list[str]) -> bytes:
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator=end, quotechar=None if kind == "tsv" else '"', **style).writerow(fields)  # type: ignore[arg-type]
        return buffer.getvalue().encode()

    named = random.random() < 0.7
    text.write(write(names) if named else b"")
    for place, row in enumerate(rows):
        text.write(end.encode() * random.choice([0, 0, 0, 1]))
        number = text.getvalue().count(b"\n") + 1
        fields = [str(value) for value in row.values()]
        if kind == "csv" and random.random() < 0.3:
            fields[0] += "\nand on"
        raw = write(fields)
        if place in places:
            several = ["short", "empty"] if len(fields) > 1 else []
            fault = random.choice(["long", "bytes", *several, *(["after a quote"] if kind == "csv" else [])])
            said = f"expected {len(names)} fields"
            if fault in ("short", "long"):
                raw = write(fields[:-1] if fault == "short" else [*fields, "x"])
            elif fault == "bytes":
                raw, said = raw.replace(b"w", b"\xff", 1), "is not UTF-8 text (byte 0xff)"
            elif fault == "empty":
                raw, said = write(["", *fields[1:]]), f"{names[0]}: is empty"
            else:
                raw, said = b'"w" x' + end.encode(), "is not a valid row: ',' expected after"
            faults.add(fault)
            expected.append((number, said))
        text.write(raw)
    source = {} if named else {"header": names}
    return Case(f"rows.{kind}", text.getvalue(), shape, "+".join(sorted(faults)), source, expected)


def unclosed(shape: str, random: Random) -> Case:
    """A quote that is never closed takes the rest of the file with it."""
    rows = [list(good_row(shape, random).values()) for _ in range(random.randint(3, 9))]
    place = random.randrange(len(rows))
    header = ",".join(good_row(shape, random))
    lines = [",".join(f"{field}" if field != "" else '""' for field in row) for row in rows]
    lines[place] = '"' + lines[place]
    raw = "\n".join([header, *lines]).encode()
    return Case("rows.csv", raw, shape, "unclosed", expected=[(place + 2, "unexpected end of data")])


def conll(random: Random) -> Case:
    lines, expected, faults = list[bytes](), [], set()
    bad = chosen(random, 12)
    for place in range(12):
        for name in good_row("token_labels", random)["tokens"]:
            lines.append(f"{name}\tO".encode())
        if place in bad:
            fault = random.choice(["one column", "bytes"])
            faults.add(fault)
            lines.append(b"alone" if fault == "one column" else b"w\xfe\tO")
            expected.append((len(lines), "expected a word and a tag" if fault == "one column" else "byte 0xfe"))
            lines.append(b"more O")
        lines += [b""] * random.choice([1, 1, 2])
    return Case("rows.conll", b"\n".join(lines), "token_labels", "+".join(sorted(faults)), expected=expected)


def plain(kind: str, random: Random) -> Case:
    lines = [word(random).encode() for _ in range(random.randint(3, 20))]
    places = chosen(random, len(lines), 3 if kind == "lines" else 1)
    for place in places:
        lines[place] += b"\xf8"
    expected = [(place + 1, "is not UTF-8 text (byte 0xf8)") for place in places]
    source = {"file_format": "lines"} if kind == "lines" else {}
    return Case(f"rows.{ENDINGS.get(kind, kind)}", b"\n".join(lines), "text", "bytes", source, expected)


def columnar(shape: str, kind: str, random: Random) -> Case:
    import pyarrow as pa

    rows = [good_row(shape, random) for _ in range(random.choice([4, 9, 30, 1500]))]
    fault = random.choice(["null", "bytes", "cut off", "twice"])
    expected: list[tuple[int, str]] = []
    key = next(iter(rows[0]))
    places = chosen(random, len(rows))
    if fault == "null":
        rows = [{**row, key: None} if place in places else row for place, row in enumerate(rows)]
        expected = [(place + 1, f"{key}: expected") for place in places]
    batch = pa.Table.from_pylist(rows)
    if fault == "bytes":
        values = [b"w\xe9" if place in places else b"w" for place in range(len(rows))]
        sizes = pa.array(values, pa.binary())
        broken = pa.StringArray.from_buffers(len(values), *sizes.buffers()[1:])
        batch = batch.append_column("note", broken)
        expected = [(place + 1, "is not UTF-8 text (byte 0xe9)") for place in places]
    if fault == "twice":
        batch = batch.append_column(key, batch.column(0))
        expected = [(1, "names a column twice")]
    raw = _columnar_bytes(batch, kind)
    if fault == "cut off":
        first_batch = kind == "stream"
        raw = raw[: random.randrange(30, 200) if first_batch else random.randrange(len(raw) // 2, len(raw) - 1)]
        expected = [(1, f"is not readable {'arrow' if first_batch else kind}")]
    return Case(f"rows.{ENDINGS.get(kind, kind)}", raw, shape, fault, expected=expected)


def _columnar_bytes(table: Any, kind: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def compressed(case: Case, codec: str, random: Random) -> Case:
    """The same file under gz or zst."""
    import pyarrow as pa

    raw = gzip.compress(case.raw) if codec == "gz" else pa.compress(case.raw, codec="zstd", asbytes=True)
    return Case(f"{case.name}.{codec}", raw, case.shape, f"{codec} {case.fault}", case.source, case.expected)


def cut_off(kind: str, codec: str, random: Random) -> Case:
    """A good file, compressed and then cut: the row is the first that cannot be had whole."""
    shape = {"conll": "token_labels", "lines": "text"}.get(kind, "prompt_completion")
    rows = [good_row(shape, random) for _ in range(random.choice([5, 40, 400, 2500]))]
    text = {
        "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
        "csv": lambda: "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows),
        "tsv": lambda: "prompt\tcompletion\n" + "".join(f"{r['prompt']}\t{r['completion']}\n" for r in rows),
        "conll": lambda: "".join("".join(f"{name} O\n" for name in r["tokens"]) + "\n" for r in rows),
        "lines": lambda: "".join(f"{r['text']}\n" for r in rows),
    }[kind]()
    source = {"file_format": "lines"} if kind == "lines" else {}
    whole = compressed(Case(f"rows.{ENDINGS.get(kind, kind)}", text.encode(), shape, "", source), codec, random)
    raw = whole.raw[: random.randrange(1, len(whole.raw))]
    row = _given_before(raw, codec).count(b"\n") + 1
    return Case(whole.name, raw, shape, f"{codec} cut off", source, [(row, "is cut off here")])


def _given_before(raw: bytes, codec: str) -> bytes:
    """What can be decompressed of a file that is cut off, found in another way than ftune's."""
    if codec == "gz":
        return zlib.decompressobj(31).decompress(raw)
    import pyarrow as pa

    stream, found = pa.CompressedInputStream(pa.BufferReader(raw), "zstd"), bytearray()
    try:
        while byte := stream.read(1):
            found += byte
    except OSError:
        pass
    return bytes(found)


def make(seed: int) -> Case:
    """The malformed file number `seed`."""
    random = Random(seed)
    kind = (*TEXT, "unclosed", "cut off", *COLUMNAR)[seed % 12]
    if kind == "cut off":
        return cut_off(random.choice(["jsonl", "csv", "tsv", "conll", "lines"]), random.choice(["gz", "zst"]), random)
    if kind == "jsonl":
        case = jsonl(random.choice(SHAPES), random)
    elif kind == "json":
        case = json_file(random.choice(SHAPES), random)
    elif kind in ("csv", "tsv"):
        case = table(random.choice(FLAT), kind, random)
    elif kind == "unclosed":
        case = unclosed(random.choice(FLAT[:4]), random)
    elif kind == "conll":
        case = conll(random)
    elif kind in COLUMNAR:
        case = columnar(random.choice(("prompt_completion", "chat", "classification", "tokens")), kind, random)
    else:
        case = plain(kind, random)
    codec = random.choice(["", "", "gz", "zst"])
    return compressed(case, codec, random) if codec else case
