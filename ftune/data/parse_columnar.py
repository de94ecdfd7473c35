"""Parquet and Arrow files (also Feather, and the Arrow streams that `datasets` keeps), a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ftune.data.streams import Damaged, Fault, Item, not_utf8, open_seekable
from ftune.file_formats import FileFormat

if TYPE_CHECKING:
    import pyarrow

FORMATS = frozenset({"parquet", "arrow"})
BATCH = 1024


def rows(path: Path, file_format: FileFormat, codec: str | None) -> Iterator[Item]:
    """All rows of one file; where it is damaged, those before it and one fault.

    Raises:
        OSError: it cannot be opened.
    """
    import pyarrow

    number = 0
    try:
        with open_seekable(path, codec) as file:
            names, batches = _opened(file, file_format)
            if len(set(names)) < len(names):
                yield 1, Fault(f"the header names a column twice: {', '.join(names)}.", ends=True)
                return
            for batch in batches:
                for values in _values(batch):
                    number += 1
                    yield number, values
    except (pyarrow.ArrowException, OSError, Damaged) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system; Arrow's own have no number
            raise
        what = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        yield number + 1, Fault(f"is not readable {file_format}: {what}.", ends=True)


def _opened(file: BinaryIO, file_format: FileFormat) -> tuple[list[str], Iterator[pyarrow.RecordBatch]]:
    """Names of the columns, and the batches."""
    import pyarrow
    import pyarrow.parquet

    if file_format == "parquet":
        table = pyarrow.parquet.ParquetFile(file)
        return table.schema_arrow.names, table.iter_batches(batch_size=BATCH)
    seekable = file.read(6) == b"ARROW1"
    file.seek(0)
    if not seekable:
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema.names, iter(stream)
    whole = pyarrow.ipc.open_file(file)
    return whole.schema.names, (whole.get_batch(i) for i in range(whole.num_record_batches))


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Fault]:
    """Rows of a batch in small pieces, and one by one where a piece holds what Python cannot."""
    for start in range(0, batch.num_rows, BATCH):
        piece = batch.slice(start, BATCH)
        try:
            found: list[dict[str, Any] | Fault] = piece.to_pylist()
        except (ValueError, OverflowError):
            found = [_row(piece.slice(index, 1)) for index in range(piece.num_rows)]
        yield from found


def _row(batch: pyarrow.RecordBatch) -> dict[str, Any] | Fault:
    try:
        values: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return not_utf8(error.object[error.start])
    except (ValueError, OverflowError) as error:  # such as a date beyond what Python knows
        return Fault(f"holds a value that cannot be read: {error}.")
    return values
