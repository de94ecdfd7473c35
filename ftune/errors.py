"""Every way ftune can fail, and the exit code each way has.

    FtuneError              1   a bug of ours, please report
    |- RecipeError          2   the recipe or the command line is wrong (holds ALL problems)
    |- MetricError          2   a metric of the user's own fails
    |- DataError            3   rows that cannot be read, rendered or trained on
    |- ArtifactError        4   a checkpoint, run or model is damaged or does not match
    |- DiskError            5   full, read-only or forbidden
    |- LockedError          6   another process owns the run folder
    |- DivergedError        7   loss or gradient is not finite
    |- LaunchError          8   a process of a distributed run died
    |- MemoryExhausted      9   out of memory
    |- MachineError        10   a package, a device or a model is missing
    `- Interrupted    130/143   SIGINT or SIGTERM, after saving

Messages have four parts, in this order: what is wrong, what was expected, what was received, what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

_PASSWORD = re.compile(r"(:/{1,2})[^/\s@:]*:[^/\s@]+@")
"""The user and password of a URL, also of one that was taken for a path and lost a slash."""


def without_passwords(text: str) -> str:
    """`text` with stars in place of what URLs in it bring along to log in."""
    return _PASSWORD.sub(r"\1***@", text)


class FtuneError(Exception):
    """Base of every error that is meant to be read by a user."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe.

    Args:
        path: dotted key, such as `train.batch_size`; empty for the file as a whole.
        message: what is wrong, expected, received and to be done, in one line.
        where: `file:line:column` of the key or value, or `--set` for the command line.
    """

    path: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where} " if self.where else ""
        key = f"{self.path}: " if self.path else ""
        return f"{place}{key}{self.message}"


class RecipeError(FtuneError, ValueError):
    """The recipe cannot be run as written. Holds every problem found, not the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([*lines, f"{count}. Nothing was run."]))


class MetricError(FtuneError, ValueError):
    """A metric of the user's own cannot be found, fails, or returns no finite number for a row."""

    exit_code = 2


@dataclass(frozen=True)
class RowProblem:
    """One row that cannot be used: `file:row field: message`. `ends`: nothing after it in the file could be read."""

    file: str
    row: int
    message: str
    field: str = ""
    ends: bool = False

    def __str__(self) -> str:
        field = f" {self.field}" if self.field else ""
        return f"{self.file}:{self.row}{field}: {self.message}"


class DataError(FtuneError, ValueError):
    """Rows that cannot be used. Shows the first 20 and says how many there are.

    Args:
        message: what is wrong with all of them; may be empty.
        problems: of rows, in order.
        total: how many problems there are, where `problems` are only the first; 0 when they are all.
    """

    exit_code = 3
    SHOWN: ClassVar[int] = 20

    def __init__(self, message: str = "", problems: Sequence[RowProblem] = (), total: int = 0) -> None:
        self.problems = tuple(problems)
        total = max(total, len(self.problems))
        lines = [message] if message else []
        lines += [str(problem) for problem in self.problems[: self.SHOWN]]
        if total > self.SHOWN:
            lines.append(f"... and {total - self.SHOWN} more, {total} in all.")
        super().__init__("\n".join(lines))


class ArtifactError(FtuneError, RuntimeError):
    """A checkpoint, a run folder or a model is damaged or belongs to something else."""

    exit_code = 4


class NotMergeable(FtuneError, TypeError):
    """The method has no weights that could be added to the base model's."""

    exit_code = 2


class DiskError(FtuneError, OSError):
    """The disk is full, read-only or forbidden."""

    exit_code = 5


class LockedError(FtuneError, RuntimeError):
    """Another process owns the run folder."""

    exit_code = 6


class DivergedError(FtuneError, ArithmeticError):
    """Loss or gradient norm is not finite; raised before the update."""

    exit_code = 7


class LaunchError(FtuneError, RuntimeError):
    """A process of a distributed run died without a code of its own."""

    exit_code = 8


class MemoryExhausted(FtuneError, MemoryError):
    """The device has not enough memory for this micro-batch."""

    exit_code = 9


class MachineError(FtuneError, RuntimeError):
    """A package, a device or a model is not here."""

    exit_code = 10


class Interrupted(FtuneError):
    """SIGINT or SIGTERM arrived; what could be saved is saved.

    Args:
        signal_number: 2 or 15, from which the exit code (130 or 143) follows.
        message: what was saved and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        super().__init__(message)

    @property
    def code(self) -> int:
        """128 + the signal's number, as shells do."""
        return 128 + self.signal_number


def exit_code_of(error: FtuneError) -> int:
    """The process exit code for `error`."""
    return error.code if isinstance(error, Interrupted) else error.exit_code


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'rank'?` when a known word is near, else the list of known words."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
