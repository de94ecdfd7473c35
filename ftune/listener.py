"""What a run tells the outside while it works. The default says nothing; the command line shows progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftune.loop import StepResult
from ftune.plan import Plan


class Listener:
    """Hears of everything a run does. Override what you want to show."""

    def note(self, text: str) -> None:
        """A line worth reading."""

    def warn(self, text: str) -> None:
        """A line that must be read, also by who wants no progress."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Work other than training: `total` is 0 when it is not known."""

    def planned(self, plan: Plan, first_step: int) -> None:
        """Training begins or goes on after `first_step` updates."""

    def step(self, result: StepResult, plan: Plan, memory_bytes: int) -> None:
        """One update was made."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The held-out rows were scored."""

    def finished(self, report: Mapping[str, Any], folder: Path) -> None:
        """The run is complete."""
