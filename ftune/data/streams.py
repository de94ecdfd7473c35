"""Files as bytes and as numbered lines, decompressed on the way, in flat memory."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

BLOCK = 1 << 16
"""Bytes that are decompressed at a time."""
LONGEST_LINE = 2**27
"""Bytes of one line: a small file may unpack to one that no memory holds."""


class Fault(NamedTuple):
    """What is wrong at one place of a file; `ends` says that nothing after it could be read."""

    message: str
    ends: bool = False


Item = tuple[int, dict[str, Any] | Fault]
"""A number with the row's values, or with what is wrong there."""


class Damaged(ValueError):
    """A compressed file that is cut off, or holds what no compressor wrote."""


def not_utf8(byte: int, *, ends: bool = False) -> Fault:
    """A byte that is no UTF-8."""
    return Fault(f"is not UTF-8 text (byte 0x{byte:02x}). Save the file as UTF-8.", ends)


def open_bytes(path: Path, codec: str | None) -> BinaryIO:
    """The bytes of a file, decompressed.

    Raises:
        OSError: it cannot be opened.
        Damaged: on reading, at the end of what could be decompressed.
    """
    if codec is None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Decompressed(path, codec), BLOCK))


def open_seekable(path: Path, codec: str | None) -> BinaryIO:
    """The same for readers that jump about: what is compressed goes to a temporary file first.

    Raises:
        OSError: it cannot be opened.
        Damaged: it cannot be decompressed.
    """
    if codec is None:
        return path.open("rb")
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with open_bytes(path, codec) as stream:
            shutil.copyfileobj(stream, plain)
    except BaseException:
        plain.close()
        raise
    plain.seek(0)
    return cast(BinaryIO, plain)


class _Decompressed(io.RawIOBase):
    """Arrow's decompressor, which forgets the last block before a damage: here all that came before it is given."""

    def __init__(self, path: Path, codec: str) -> None:
        self.path, self.codec = path, codec
        self.given = 0
        self.fault: Damaged | None = None
        self.stream = self._start()

    def _start(self) -> Any:
        import pyarrow

        self.file = self.path.open("rb")
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(self.file, mode="r"), self.codec)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or as much of it as there is before the end or a damage."""
        import pyarrow

        if self.fault is not None:
            raise self.fault
        try:
            data = self.stream.read(len(buffer))
        except (OSError, pyarrow.ArrowException) as error:
            self.fault = Damaged(_first_line(error))
            data = self._before_damage()
            if not data:
                raise self.fault from error
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)

    def _before_damage(self) -> bytes:
        import pyarrow

        self.file.close()
        self.stream, found = self._start(), bytearray()
        left = self.given
        while left:
            left -= len(self.stream.read(min(left, BLOCK)))
        try:
            while byte := self.stream.read(1):
                found += byte
        except (OSError, pyarrow.ArrowException):
            return bytes(found)
        return bytes(found)

    def close(self) -> None:
        """Close the file as well."""
        if not self.closed:
            self.file.close()
        super().close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Lines:
    """Lines of a stream, counted from 1.

    Args:
        stream: of a whole file.

    Attributes:
        number: of the last line that was given.
        bad: the first byte that is no UTF-8 of each line that has one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.number = 0
        self.bad: dict[int, int] = {}

    def _bounded(self) -> Iterator[bytes]:
        while line := self.stream.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise Damaged(f"a line of more than {LONGEST_LINE:,} bytes")
            yield line

    def raw(self) -> Iterator[bytes]:
        """Each line as bytes; only a line feed ends one."""
        for line in self._bounded():
            self.number += 1
            yield line

    def text(self) -> Iterator[str]:
        """Each line as text with its end, which may be of Unix, Windows or old Macs.

        A line with bytes that are no UTF-8 is given all the same, so that the caller can tell where it belongs.
        """
        encoding = "utf-8-sig"
        for line in self._bounded():
            try:
                text, byte = line.decode(encoding), None
            except UnicodeDecodeError as error:
                text, byte = line.decode(encoding, "surrogateescape"), error.object[error.start]
            encoding = "utf-8"
            carriage = text.count("\r")
            for part in (text,) if carriage == text.endswith("\r\n") else io.StringIO(text, newline=""):
                self.number += 1
                if byte is not None:
                    self.bad[self.number] = byte
                yield part

    def fault(self, first: int) -> Fault | None:
        """What is wrong with the bytes of the lines from `first` to the last that was given; forgets it."""
        bad = [self.bad.pop(number) for number in range(first, self.number + 1) if number in self.bad]
        return not_utf8(bad[0]) if bad else None
