"""What the next step needs is made by a background thread while the device works on this one.

What is made is a function of the step alone and draws from no generator that the model draws from, so a run is the same
to the bit with and without the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ftune.data.encode import Example
from ftune.data.order import Window

if TYPE_CHECKING:
    import torch

    from ftune.objectives import Batch

Made = TypeVar("Made")


@dataclass(frozen=True)
class Laid:
    """A window with the batches of this process.

    Args:
        window: the rows of the step, over all processes.
        batches: for each micro-batch of this process its number in the window, its examples, their tensors.
        weight: of their loss; 0 where this process has no rows and takes part only so that others need not wait.
    """

    window: Window
    batches: tuple[tuple[int, tuple[Example, ...], Batch], ...]
    weight: float


def lay_out(window: Window, collate: Callable[[list[Example]], Batch], rank: int, num_ranks: int, pin: bool) -> Laid:
    """Make the batches of this process.

    Args:
        window: all rows of the step.
        collate: makes tensors of the examples of a micro-batch.
        rank: of this process, from 0.
        num_ranks: processes.
        pin: keep the tensors where a graphics card can fetch them while it computes.
    """
    mine, weight = window.of_rank(rank, num_ranks), 1.0
    if not mine:  # DDP waits for every rank's last backward: a zero-weighted dummy keeps it in step
        mine, weight = [(0, window.micro_batches[0])], 0.0
    made = []
    for number, examples in mine:
        try:
            batch = collate(list(examples))
        except Exception as error:
            error.add_note(f"step {window.step + 1}, rows {', '.join(example.place for example in examples)}")
            raise
        batch = {name: values.pin_memory() for name, values in batch.items()} if pin else batch
        made.append((number, examples, batch))
    return Laid(window, tuple(made), weight)


class Ahead(Generic[Made]):
    """Makes things one step ahead, in a thread of its own that lives as long as the `with` block.

    Args:
        make: what a step needs; called in the thread, in the order of the steps.
        steps: that are to be made.
        device: current in the thread; None where there are no graphics cards.
    """

    def __init__(self, make: Callable[[int], Made], steps: range, device: torch.device | None = None) -> None:
        self._make = make
        self._steps = steps
        self._device = device

    @contextmanager
    def made(self) -> Iterator[Iterator[tuple[Made, float]]]:
        """What each step needs, with the seconds that were waited for it. An error in the thread is raised here."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="ftune-ahead", initializer=self._begin)
        try:
            yield self._in_turn(executor)
        finally:
            executor.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        if self._device is not None and self._device.index is not None:  # else it is the first, as in a new thread
            import torch

            torch.cuda.set_device(self._device)

    def _in_turn(self, executor: ThreadPoolExecutor) -> Iterator[tuple[Made, float]]:
        following: Future[Made] | None = None
        for step in self._steps:
            started = time.perf_counter()
            current = following or executor.submit(self._make, step)
            made = current.result()
            seconds = time.perf_counter() - started
            following = executor.submit(self._make, step + 1) if step + 1 in self._steps else None
            yield made, seconds
