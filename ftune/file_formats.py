"""What a file holds, as its name tells: the ending, and before that an ending of compression such as `.gz`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

FileFormat = Literal["txt", "lines", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "conll"]
ENDINGS: dict[str, FileFormat] = {
    ".txt": "txt", ".md": "txt", ".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".conll": "conll", ".bio": "conll",
}  # fmt: skip
"""Endings that are known, and how a file with each of them is read."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files, and pyarrow's names for the codecs."""
TABLES = frozenset({"csv", "tsv"})


def codec_of(name: str) -> str | None:
    """How a file of this name is compressed; None if it is not."""
    return COMPRESSED.get(PurePath(name).suffix.lower())


def ending_of(name: str) -> str:
    """The ending that says what the file holds, without that of a compression: `.jsonl` of `rows.jsonl.gz`."""
    path = PurePath(name)
    return (PurePath(path.stem) if codec_of(name) else path).suffix.lower()
