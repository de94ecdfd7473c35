"""What a step computes, and where its time goes. This one counts; the one of `profile_view` has a clock."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self

from ftune.data.order import Window
from ftune.flops import Cost

if TYPE_CHECKING:
    from ftune.loop import StepResult


class Meter:
    """Counts the operations of steps.

    Args:
        cost: of a step; None counts nothing.
        peak_flops: operations per second that all devices together can do at most, where that is known.
    """

    def __init__(self, cost: Cost | None = None, peak_flops: float | None = None) -> None:
        self.cost = cost
        self.peak_flops = peak_flops

    def flops(self, work: Window) -> float:
        """Operations that a window needs."""
        return 0.0 if self.cost is None else self.cost.of(work)

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Share of the peak that `flops` in `seconds` come to (Chowdhery et al. 2022); None where no peak is known."""
        return flops / seconds / self.peak_flops if self.peak_flops and flops and seconds > 0 else None

    def span(self, name: str) -> AbstractContextManager[object]:
        """Around work of one kind: `data`, `forward`, `backward`, `clipping`, `optimizer`, `eval` or `save`."""
        return nullcontext()

    def after_step(self, result: StepResult, *, last: bool) -> bool:
        """Whether a profile is ready, after a step and all that followed it; `last` ends one that has begun."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None
