"""Rows and tokens in a folder of their own, for tests of what is made of a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ftune.data.cache import Cache
from ftune.data.encode import Encoded, Example
from ftune.data.encode_text import encode_rows
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.data.table import Rows, SampleTable, TableWriter
from ftune.data.tally import Outcome, Report, refuse
from ftune.data.tokens import TokenFile, write_tokens


def table_of(samples: Sequence[Sample]) -> SampleTable:
    """Samples on disk, for as long as the table is there."""

    def write(folder: Path) -> dict[str, Any]:
        with TableWriter(folder) as writer:
            for sample in samples:
                writer.add(sample)
        return writer.facts([])

    return SampleTable(Cache().entry("rows", None, write, lambda: None), [])


def outcome_of(samples: Sequence[Sample], encode: Callable[[Rows], Iterable[Encoded]]) -> Outcome:
    """What becomes of samples that go through the disk."""
    rows = Rows.all([table_of(samples)])
    entry = Cache().entry("tokens", None, lambda folder: write_tokens(folder, rows.chosen, encode(rows)), lambda: None)
    return Outcome.of(rows, [TokenFile(entry, rows.tables[0])])


def examples_of(samples: Sequence[Sample], encode: Callable[[Rows], Iterable[Encoded]]) -> tuple[list[Example], Report]:
    """Examples and counts of samples.

    Raises:
        DataError: as training would.
    """
    outcome = outcome_of(samples, encode)
    refuse([outcome], skip_bad_rows=False)
    return list(outcome.examples), outcome.report()


def encode_all(samples: Sequence[Sample], renderer: Renderer, **settings: Any) -> tuple[list[Example], Report]:
    """Examples and counts of samples for a decoder; `settings` are those of `encode_rows`.

    Raises:
        DataError: as training would.
    """
    return examples_of(samples, lambda rows: encode_rows(rows, renderer, **settings))
