"""Rows and tokens on disk are what went in, a batch in memory at a time."""

from __future__ import annotations

import datetime
import gc
import itertools
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer
from written import outcome_of, table_of

from ftune.data.chat import Turn
from ftune.data.columns import Columns, ColumnsWriter
from ftune.data.encode_text import encode_rows
from ftune.data.line import from_json, to_json
from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.data.table import BATCH_BYTES, BATCH_ROWS, Rows

TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.builds(Turn, st.sampled_from(["user", "assistant", "tool"]), TEXT), max_size=3), TEXT,
    TEXT | st.none() | st.floats(allow_nan=False) | st.lists(TEXT, max_size=3).map(tuple),
    st.none() | st.dictionaries(TEXT, VALUES, max_size=3), st.lists(TEXT, max_size=2).map(tuple),
)  # fmt: skip
def test_a_sample_comes_back(turns: list[Turn], text: str, label: Any, fields: Any, words: tuple[str, ...]) -> None:
    row = Row("a.jsonl", 3, {})
    sample = Sample(row, tuple(turns), text, label=label, fields=fields, words=words, shown=("x",))
    again = from_json(to_json(sample), row)
    shown = None if fields is None else {name: fields[name] for name in ("x",) if name in fields}
    assert again == replace(sample, fields=shown)
    assert (type(again.label), again.content) == (type(sample.label), sample.content)


def test_a_turn_is_shown_as_every_dataclass_is() -> None:
    """Digests of rows, and so the cache, rest on every field of it."""
    turn = Turn(
        "assistant", "x", name="n", tool_calls=({"a": 1},), tool_call_id="i", reasoning="r", weight=0, spelled=True
    )
    shown = ", ".join(f"{field.name}={getattr(turn, field.name)!r}" for field in fields(turn))
    assert repr(turn) == f"Turn({shown})"


def test_what_json_has_no_word_for_is_text() -> None:
    fields = {"day": datetime.date(2026, 1, 2), "raw": b"ab", "half": "\ud800", "huge": float("inf")}
    again = from_json(to_json(Sample(Row("a", 1, {}), text="t", fields=fields, shown=tuple(fields))), Row("a", 1, {}))
    assert again.fields == {"day": "2026-01-02", "raw": "b'ab'", "half": "\ud800", "huge": float("inf")}


def document(number: int, text: str = "") -> Sample:
    return Sample(
        Row("a.txt" if number % 2 else "b.txt", number, {}), text=text or f"text {number}", label=f"l{number % 3}"
    )


def test_batches_end_by_rows_or_bytes_and_any_row_can_be_read() -> None:
    rows = [document(i) for i in range(BATCH_ROWS + 10)]
    rows += [document(i, "x" * (BATCH_BYTES // 2 + 1)) for i in range(5)]
    table = table_of(rows)
    assert table.facts["starts"] == [0, BATCH_ROWS, BATCH_ROWS + 12, BATCH_ROWS + 14, BATCH_ROWS + 15]
    for place in (0, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 13, -1, 5):
        assert table[place] == rows[place]
    assert list(table) == rows
    with pytest.raises(IndexError):
        table[len(rows)]


def test_views_of_several_tables() -> None:
    first, second = [document(i) for i in range(5)], [document(i) for i in range(10, 13)]
    rows = Rows.all([table_of(first), table_of(second)])
    assert list(rows) == [*first, *second]
    some = rows.where(np.array([1, 4, 5, 7]))
    assert [sample.row.number for sample in some] == [1, 4, 10, 12]
    assert [sample.row.number for sample in some[1:3]] == [4, 10]
    assert [part.tolist() for part in some.parts()] == [[1, 4], [0, 2]]
    assert some.place(0) == "a.txt:1"
    assert some.labels == ("l0", "l1")
    assert some.label_counts(("l0", "l1", "l2")) == {"l0": 1, "l1": 3, "l2": 0}
    assert some.label_pairs(("l1",)).tolist() == [[0, 0], [1, 0], [2, 0], [3, -1]]


def test_labels_of_rows_with_several_and_none() -> None:
    rows = [
        Sample(Row("a", i, {}), label=label) for i, label in enumerate([("b", "a", "b"), (), ("c",), 1.5, None, "a"])
    ]
    view = Rows.all([table_of(rows)])
    assert view.labels == ("a", "b", "c")
    assert view.label_counts(view.labels) == {"a": 2, "b": 1, "c": 1}
    assert view.label_pairs(view.labels).tolist() == [[0, 0], [0, 1], [2, 2], [5, 0]]


def test_examples_are_read_from_the_disk() -> None:
    rows = [document(i, "abcdefgh" * i) for i in range(1, 30)]
    renderer = Renderer(byte_tokenizer(), None)

    def encode(samples: Any) -> Any:
        return encode_rows(samples, renderer, train_on="all", max_length=16, overlong=None, tick=lambda done: None)

    outcome, plain = outcome_of(rows, encode), [list(one.examples) for one in encode(rows)]
    flat = list(itertools.chain.from_iterable(plain))
    assert len(outcome.examples) == len(flat)
    for read, made in zip(outcome.examples, flat, strict=True):
        assert (read.ids.tolist(), read.is_target.tolist()) == (made.ids.tolist(), made.is_target.tolist())
        assert (read.place, read.num_bytes, read.answer, read.labels) == (made.place, made.num_bytes, None, None)
        assert (read.ids.dtype, read.is_target.dtype) == (np.int32, np.bool_)
    some = outcome.examples[3:6]
    assert [example.num_tokens for example in some] == some.num_tokens.tolist()
    assert [example.num_targets for example in some] == some.num_targets.tolist()
    assert outcome.report().windows == len(flat)
    assert outcome_of(rows, encode).examples.fingerprint == outcome.examples.fingerprint
    assert outcome_of(rows[:-1], encode).examples.fingerprint != outcome.examples.fingerprint


def test_a_temporary_table_is_deleted_when_nobody_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = table_of([document(1)])
    assert len(list(tmp_path.iterdir())) == 1
    del table
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_columns(tmp_path: Path) -> None:
    with ColumnsWriter(tmp_path, {"a": "i4", "empty": "u8"}) as columns:
        columns.add("a", [1, 2])
        columns.add("a", np.array([3]))
        columns.add("later", np.array([0.5], dtype=np.float32))
    found = Columns(tmp_path)
    assert {name: (values.dtype.str, values.tolist()) for name, values in found.items()} == {
        "a": ("<i4", [1, 2, 3]), "empty": ("<u8", []), "later": ("<f4", [0.5]),
    }  # fmt: skip
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 9
