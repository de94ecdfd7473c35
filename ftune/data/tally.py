"""What became of the rows of a split, in counts that reconcile. Read off arrays, never off examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ftune.data.columns import chunks, where
from ftune.data.conversation import REWRITTEN
from ftune.data.encode import BAD_ROW, TOO_LONG
from ftune.data.table import Rows
from ftune.data.tokens import Examples, TokenFile
from ftune.errors import DataError, RowProblem

DUPLICATE = "duplicate"
LEAKED = "leaked"
INTENDED = frozenset({DUPLICATE, LEAKED})
"""Reasons that the recipe names: such rows are not lost."""


@dataclass
class Report:
    """What became of the rows of one split; `rows == kept + sum(dropped)`.

    Args:
        rows, kept: counted.
        dropped: rows that are not trained on, by reason.
        truncated, truncated_rows: rows that were cut to size, and the first of them.
        windows: examples.
        tokens, targets, longest: of all examples, and of the longest.
        labels: how many rows have each label.
        notes: for people.
    """

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    truncated_rows: list[str] = field(default_factory=list)
    windows: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, examples: Examples) -> None:
        """Note how much there is to train on."""
        self.targets = int(examples.num_targets.sum())
        tokens = examples.num_tokens
        self.tokens, self.longest = int(tokens.sum()), int(tokens.max(initial=0))

    def leave_out(self, reason: str, rows: int) -> None:
        """Count rows that were left out before anything was encoded."""
        if rows:
            self.rows += rows
            self.dropped[reason] = self.dropped.get(reason, 0) + rows

    @property
    def lost(self) -> int:
        """Dropped rows, but for those that the recipe means to leave out."""
        return sum(count for reason, count in self.dropped.items() if reason not in INTENDED)


@dataclass(frozen=True)
class Outcome:
    """What became of rows that were encoded.

    Args:
        rows: a split.
        files: its tokens, one for each table of the rows.
        masks: which of the encoded rows of each file are in the split, bool.
    """

    rows: Rows
    files: tuple[TokenFile, ...]
    masks: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, rows: Rows, files: Sequence[TokenFile]) -> Outcome:
        """Find the rows of a split among those that were encoded."""
        pairs = zip(files, rows.parts(), strict=True)
        return cls(rows, tuple(files), tuple(file.columns.among("row", part) for file, part in pairs))

    @property
    def examples(self) -> Examples:
        """Examples of these rows."""
        pairs = zip(self.files, self.masks, strict=True)
        chosen = [mask[of] for file, mask in pairs for of in chunks(file.columns["of"])]
        return Examples(self.files, where(chosen))

    def refused(self, reasons: Sequence[str]) -> tuple[list[RowProblem], int]:
        """Problems of the first rows that were refused for one of `reasons`, and how many there are."""
        found: list[RowProblem] = []
        total = 0
        for file, mask in zip(self.files, self.masks, strict=True):
            numbers = [i for i, reason in enumerate(file.facts["reasons"]) if reason in reasons]
            chosen = mask & np.isin(file.columns["reason"], numbers)
            total += int(chosen.sum())
            found += file.problems(chosen)
        return found, total

    def report(self) -> Report:
        """Counts, with the places of the first rows of each kind."""
        examples = self.examples
        report = Report(rows=len(self.rows), windows=len(examples))
        report.count(examples)
        names, reasons = self._named("reason")
        counts = _counted(reasons, len(names))
        report.dropped = {name: int(counts[number]) for number, name in enumerate(names) if name and counts[number]}
        shown = [np.flatnonzero(reasons == number)[: DataError.SHOWN] for number, name in enumerate(names) if name]
        for at in sorted(int(at) for some in shown for at in some):
            report.notes.append(f"dropped ({names[reasons[at]]}): {self.rows.place(at)}")
        report.kept = report.rows - sum(report.dropped.values())
        truncated = np.flatnonzero(self._each("truncated"))
        report.truncated = len(truncated)
        report.truncated_rows = [self.rows.place(int(at)) for at in truncated[: DataError.SHOWN]]
        if merged := int(self._each("merges").sum()):
            report.notes.append(
                f"{merged} rows: one token spells the end of the prompt and the start of the answer, so a prompt alone "
                "is tokenised otherwise. End prompts without a space, and begin answers with one."
            )
        if lost := int(self._each("lost").sum()):
            report.notes.append(f"{lost} words have no token of their own (cut off, or unknown to the tokenizer).")
        report.notes += self._said()
        return report

    def _said(self) -> list[str]:
        """What is to be said of some of the rows, each thing once."""
        found, numbers = self._named("note")
        said: Counter[str] = Counter()
        rewritten = np.zeros(len(numbers), dtype=bool)
        for number, note in enumerate(found):
            rows = numbers == number
            said.update(dict.fromkeys(note.splitlines(), int(rows.sum())))
            if REWRITTEN in note.splitlines():
                rewritten |= rows
        notes = [f"{count} rows: {note}." for note, count in said.items() if count and note != REWRITTEN]
        if rewritten.any():
            pairs = zip(self.files, self.masks, strict=True)
            sizes = [np.bincount(file.columns["of"], minlength=len(mask))[mask] for file, mask in pairs]
            became = int(np.concatenate(sizes)[rewritten].sum())
            notes.append(
                f"{rewritten.sum()} rows became {became} examples because {REWRITTEN}: each of their answers is an "
                "example of its own, which ends with it and shows what the model sees in use when it writes it."
            )
        return notes

    def _named(self, what: Literal["reason", "note"]) -> tuple[list[str], np.ndarray]:
        """Every reason or note, and the number of each row's, int16 [R]; a row without one has the empty one."""
        names = list(dict.fromkeys(name for file in self.files for name in file.facts[f"{what}s"]))
        each = [
            np.array([names.index(name) for name in file.facts[f"{what}s"]], np.int16)[file.columns[what][mask]]
            for file, mask in zip(self.files, self.masks, strict=True)
        ]
        return names, np.concatenate(each)

    def _each(self, name: str) -> np.ndarray:
        """A number of each row."""
        return np.concatenate([file.columns[name][mask] for file, mask in zip(self.files, self.masks, strict=True)])


def _counted(numbers: np.ndarray, size: int) -> np.ndarray:
    """How often each number below `size` occurs, int64 [size]."""
    return sum((np.bincount(piece, minlength=size) for piece in chunks(numbers)), np.zeros(size, np.int64))


def refuse(outcomes: Sequence[Outcome], *, skip_bad_rows: bool) -> None:
    """Stop for rows that were refused, of all splits together.

    Raises:
        DataError: there are any; rows that are wrong only where these are not skipped.
    """
    found = [outcome.refused((TOO_LONG,) if skip_bad_rows else (TOO_LONG, BAD_ROW)) for outcome in outcomes]
    total = sum(count for _, count in found)
    if total:
        raise DataError(problems=[problem for problems, _ in found for problem in problems], total=total)


def refuse_losses(reports: Sequence[Report], name: str, allowed: float) -> None:
    """Stop when more rows were dropped than a user expects.

    Args:
        reports: of splits of the same rows.
        name: of the rows, for the message.
        allowed: share of the rows.

    Raises:
        DataError: more were dropped.
    """
    rows, lost = sum(report.rows for report in reports), sum(report.lost for report in reports)
    if lost <= allowed * rows:
        return
    message = (
        f"data.{name}: {lost} of {rows} rows would be dropped ({_reasons(reports)}), more than data.max_dropped allows "
        f"({100 * allowed:g}%). Look at these rows, choose another data.overlong, or raise data.max_dropped."
    )
    raise DataError("\n".join([message, *_first(reports)]))


def nothing_left(report: Report, name: str) -> DataError:
    """What to say when none of the rows called `name` can be learned from."""
    reasons = _reasons([report])
    message = f"data.{name}: no row is left to learn from{f' ({reasons})' if reasons else ''}. See data.overlong."
    return DataError("\n".join([message, *_first([report])]))


def _reasons(reports: Sequence[Report]) -> str:
    """How many rows were dropped for what, save those that are left out on purpose."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update({reason: count for reason, count in report.dropped.items() if reason not in INTENDED})
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _first(reports: Sequence[Report]) -> list[str]:
    """The places of the first rows that were dropped."""
    return [note for report in reports for note in report.notes if note.startswith("dropped ")][: DataError.SHOWN]
