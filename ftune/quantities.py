"""Quantities a recipe writes as text: `3 epochs`, `500 steps`, `2_000_000 tokens`, `10%`, `train[:400]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["epochs", "steps", "tokens"]
MAX_COUNT = 10**15
"""Below 2**53, so that every whole count is exact as a float."""


@dataclass(frozen=True)
class Duration:
    """How long to train: a positive count of epochs (may be a fraction), steps or tokens."""

    count: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `3 epochs`, `0.5 epochs`, `500 steps` or `2_000_000 tokens`.

        Raises:
            ValueError: `text` is none of these.
        """
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s+(epoch|step|token)s?\s*", text)
        if match is None:
            raise ValueError(f"expected '3 epochs', '500 steps' or '2_000_000 tokens', received {text!r}")
        count, unit = float(match[1].replace("_", "")), f"{match[2]}s"
        if count > MAX_COUNT:
            raise ValueError(f"expected at most {MAX_COUNT:g}, received {text!r}")
        if count <= 0 or (unit != "epochs" and count != int(count)):
            raise ValueError(f"expected a positive {'' if unit == 'epochs' else 'whole '}number, received {text!r}")
        return cls(count, unit)  # type: ignore[arg-type]


def parse_share(text: str) -> float:
    """Read `5%` as 0.05.

    Raises:
        ValueError: not a percentage above 0 and at most 100.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError(f"expected a share such as '5%', received {text!r}")
    return float(match[1]) / 100


def is_share(value: object) -> bool:
    """Whether `value` is written as a percentage."""
    return isinstance(value, str) and value.strip().endswith("%")


def steps_of(cadence: int | str, total: int) -> int:
    """A number of steps, given as such or as a share of `total`; at least 1."""
    return max(1, round(parse_share(cadence) * total)) if isinstance(cadence, str) else cadence


@dataclass(frozen=True)
class Slice:
    """Part of a split: `train`, `train[:400]`, `[100:200]`, `test[50%:]`."""

    name: str
    start: str
    stop: str

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Read a split with an optional range in rows or percent.

        Raises:
            ValueError: the range is not `[start:stop]`, or is empty for every number of rows.
        """
        bound = r"(?:[0-9]{1,15}%?)?"
        match = re.fullmatch(rf"\s*([\w.\-]*)(?:\[({bound}):({bound})\])?\s*", text)
        if match is None:
            raise ValueError(f"expected 'train', 'train[:400]' or '[10%:20%]', received {text!r}")
        start, stop = match[2] or "", match[3] or ""
        same_unit = start.endswith("%") == stop.endswith("%")
        if stop and (same_unit or not start) and int(start.rstrip("%") or 0) >= int(stop.rstrip("%")):
            raise ValueError(f"expected a range that starts before it stops, received {text!r}")
        return cls(match[1], start, stop)

    def bounds(self, rows: int) -> tuple[int, int]:
        """First row and one past the last, of `rows` rows."""

        def position(text: str, default: int) -> int:
            if not text:
                return default
            number = rows * int(text[:-1]) // 100 if text.endswith("%") else int(text)
            return min(number, rows)

        start = position(self.start, 0)
        return start, max(start, position(self.stop, rows))
