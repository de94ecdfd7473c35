"""Tokens, masks and byte counts are those of the encoder that looked at the place of every token."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import golden_tokens as golden
import pytest
from written import examples_of

from ftune.data.encode_labels import Labelling, encode_row_labels, encode_token_labels
from ftune.data.encode_pairs import encode_pairs, encode_windows
from ftune.data.encode_text import encode_rows
from ftune.data.render import Renderer
from ftune.errors import DataError

EXPECTED: dict[str, str] = json.loads(
    (Path(__file__).parents[1] / "data" / "golden_tokens.json").read_text(encoding="utf-8")
)
CASES = dict(golden.cases())
KINDS = sorted({name.split("/")[0] for name in CASES})


@functools.cache
def tokenizer_of(name: str) -> Any:
    return golden.ALL[name]()


def found(case: dict[str, Any]) -> str:
    samples = golden.MAKERS[case["kind"]](random.Random(7))
    tokenizer = tokenizer_of(case["tokens"])
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer, case.get("template"))
    sizes: dict[str, Any] = {"max_length": case["max_length"], "overlong": case["overlong"], "tick": lambda done: None}
    how = Labelling(renderer, ("x", "y", "z"), case["max_length"], case["overlong"], False)
    encoders: dict[str, Any] = {
        "labelled": lambda rows: encode_row_labels(rows, how, sizes["tick"]),
        "tagged": lambda rows: encode_token_labels(rows, how, "first", sizes["tick"]),
        "written": lambda rows: encode_pairs(rows, renderer, **sizes),
        "windows": lambda rows: encode_windows(rows, renderer, **sizes),
    }
    spans = lambda rows: encode_rows(rows, renderer, train_on=case.get("train_on", "completion"), **sizes)  # noqa: E731
    try:
        return golden.digest(*examples_of(samples, encoders.get(case["kind"], spans)))
    except DataError as error:
        return f"error {hashlib.sha256(str(error).encode()).hexdigest()[:12]}"


def test_every_case_was_written_down() -> None:
    assert CASES.keys() == EXPECTED.keys()
    assert len(set(EXPECTED.values())) > 350  # policies that do not matter give the same


@pytest.mark.parametrize("kind", KINDS)
def test_as_before(kind: str) -> None:
    cases = {name: case for name, case in CASES.items() if case["kind"] == kind}
    other = {name for name, case in cases.items() if found(case) != EXPECTED[name]}
    assert not other
