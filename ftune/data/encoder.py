"""Samples become examples: which encoder a row goes through, and token files that are made once and kept."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data.cache import Cache, Entry, Write, code_version, key_of
from ftune.data.encode import Encoded
from ftune.data.encode_labels import Labelling, encode_row_labels, encode_token_labels
from ftune.data.encode_pairs import encode_pairs, encode_windows
from ftune.data.encode_text import encode_rows
from ftune.data.encode_tokens import encode_tokens
from ftune.data.render import Renderer
from ftune.data.samples import Reader, Tick
from ftune.data.shape import Sample
from ftune.data.table import Rows, SampleTable
from ftune.data.tally import Outcome
from ftune.data.tokens import TokenFile, write_tokens
from ftune.errors import DataError
from ftune.objectives import Objective
from ftune.recipe import Data, Source

NOT_OF_TOKENS = {
    "train", "eval", "test", "format", "columns", "packing", "on_bad_row", "max_dropped", "group_by", "stratify",
    "near_duplicates", "leakage",
}  # fmt: skip
"""Keys of `data` that do not shape tokens, or do so through the rows. All others are part of a token file's key."""


@dataclass(frozen=True)
class Encoder:
    """How samples become examples.

    Args:
        data: supervised part, overlong policy.
        objective: kind of example.
        renderer: of the model's tokenizer.
        max_length: in tokens.
        labels: names of the head's outputs.
        encoder_decoder: whether the model is one.
    """

    data: Data
    objective: Objective
    renderer: Renderer
    max_length: int
    labels: tuple[str, ...]
    encoder_decoder: bool

    def encode(
        self, rows: Iterable[Sample], tick: Callable[[int], None], *, answered: bool, tokens: bool
    ) -> Iterator[Encoded]:
        """What becomes of each of `rows`, in order.

        Args:
            rows: of one source.
            tick: hears of progress.
            answered: whether rows have answers or are plain text.
            tokens: whether they are tokens already.
        """
        data, kind = self.data, self.objective.encoding
        sizes: dict[str, Any] = {"max_length": self.max_length, "overlong": data.overlong, "tick": tick}
        if tokens:
            return encode_tokens(rows, self.renderer, **sizes)
        if kind == "next_token":
            return encode_rows(rows, self.renderer, train_on=data.train_on, **sizes)
        if kind in ("row_labels", "token_labels"):
            how = Labelling(self.renderer, self.labels, self.max_length, data.overlong, self.encoder_decoder)
            if kind == "row_labels":
                return encode_row_labels(rows, how, tick)
            return encode_token_labels(rows, how, self.objective.label_at, tick)
        return encode_pairs(rows, self.renderer, **sizes) if answered else encode_windows(rows, self.renderer, **sizes)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes tokens besides the rows."""
        tokenizer, objective = self.renderer.tokenizer, self.objective
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return {
            "code": code_version(Path(__file__).parent),
            "libraries": {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")},
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special": [type(tokenizer).__name__, special, tokenizer.split_special_tokens],
            "chat_template": tokenizer.chat_template,
            "data": self.data.model_dump(mode="json", exclude=NOT_OF_TOKENS),
            "max_length": self.max_length,
            "encoding": [objective.encoding, objective.label_at, self.encoder_decoder],
            "labels": self.labels,
        }


class _Abandoned(Exception):
    """Rows are bad and will be refused, so their tokens are not kept."""


@dataclass(frozen=True)
class TokenMaker:
    """Encodes the rows of tables, each table once.

    Args:
        encoder: how.
        cache: where token files are kept.
        tick: hears of progress.
        made: files by table and, where only some of its rows are encoded, by these.
    """

    encoder: Encoder
    cache: Cache
    tick: Tick
    made: dict[tuple[SampleTable, str], TokenFile] = field(default_factory=dict)

    def ahead(self, reader: Reader, block: Source) -> SampleTable:
        """Read a source and encode its rows on the way: one thread waits for the other's work less than for its own.

        From the first bad row on that will be refused, rows are only read, to name all that is wrong.
        """
        tables: list[SampleTable] = []

        def write(folder: Path) -> dict[str, Any]:
            facts: dict[str, Any] = {}

            def follow(rows: Iterator[Sample]) -> None:
                first = next(rows, None)
                every = itertools.chain(() if first is None else (first,), rows)
                answered = first is not None and bool(first.turns)
                tokens = first is not None and bool(first.ids)
                encoded = self.encoder.encode(every, lambda done: None, answered=answered, tokens=tokens)
                facts.update(write_tokens(folder, itertools.count(), encoded))

            tables.append(reader.table(block, follow))
            if tables[-1].facts["bad_rows"] and self.encoder.data.on_bad_row == "error":
                raise _Abandoned
            return facts or self._write(folder, "train", tables[-1], np.arange(len(tables[-1])))

        try:
            entry = self._entry(reader.key(block), "all", write)
        except _Abandoned:
            return tables[-1]
        table = tables[-1] if tables else reader.table(block)
        self.made[table, "all"] = TokenFile(entry, table)
        self.tick("tokenising train", len(table), len(table))
        return table

    def outcome(self, name: str, rows: Rows, keys: Mapping[SampleTable, str | None], *, whole: bool) -> Outcome:
        """What becomes of the rows of one split.

        Args:
            name: of the split, for people.
            rows: of one or more tables.
            keys: of the tables.
            whole: encode all rows of the tables, as another split will ask for the others or ask again.

        Raises:
            DataError: some have an answer and some are plain text, which these objectives learn from in other ways.
        """
        answered = rows.numbers("answered")
        if self.encoder.objective.encoding in ("pairs", "hidden_tokens") and 0 < answered.sum() < len(answered):
            plain = len(answered) - answered.sum()
            raise DataError(f"{answered.sum()} rows have an answer and {plain} are plain text. Use one kind.")
        every = [np.arange(len(table)) for table in rows.tables] if whole else rows.parts()
        pairs = zip(rows.tables, every, strict=True)
        return Outcome.of(rows, [self._file(name, table, some, keys[table]) for table, some in pairs])

    def _file(self, name: str, table: SampleTable, rows: np.ndarray, key: str | None) -> TokenFile:
        drawn = "all" if len(rows) == len(table) else hashlib.sha256(rows.tobytes()).hexdigest()
        if (table, drawn) not in self.made:
            entry = self._entry(key, drawn, lambda folder: self._write(folder, name, table, rows))
            self.made[table, drawn] = TokenFile(entry, table)
        return self.made[table, drawn]

    def _entry(self, rows: str | None, drawn: str, write: Write) -> Entry:
        key = None if rows is None else key_of({"rows": rows, "drawn": drawn, **self._identity})
        return self.cache.entry("tokens", key, write, lambda: self.tick("waiting for another process", 0, 0))

    def _write(self, folder: Path, name: str, table: SampleTable, rows: np.ndarray) -> dict[str, Any]:
        def told(done: int) -> None:
            self.tick(f"tokenising {name}", done, len(rows))

        answered = bool(table.columns["answered"].any())
        tokens = table.facts["format"] == "tokens"
        encoded = self.encoder.encode(Rows((table,), rows), told, answered=answered, tokens=tokens)
        facts = write_tokens(folder, rows, encoded)
        told(len(rows))
        return facts

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return self.encoder.identity
