"""Progress of a run on stderr: one live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ftune.cli.common import plain
from ftune.flops import readable_flops
from ftune.listener import Listener
from ftune.loop import StepResult
from ftune.plan import Plan
from ftune.signals import StopFlag

PLAIN_LINES = 10
"""Lines that training prints when stderr is no terminal."""


class Screen(Listener):
    """Shows a run. Use as a context manager, so that the bar is taken down whatever happens."""

    def __init__(self, stop: StopFlag, *, quiet: bool) -> None:
        self.stop = stop
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.training: TaskID | None = None
        self.other: TaskID | None = None
        self.last_phase = ""

    def __enter__(self) -> Screen:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def tick(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show progress of work that may be interrupted anywhere.

        Raises:
            Interrupted: a signal asked for an end.
        """
        self.stop.check()
        self.phase(what, done, total)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line above the bar, or without one."""
        if self.console.quiet:
            print(plain(text), file=sys.stderr)
        else:
            self.note(text)

    def phase(self, name: str, done: int, total: int) -> None:
        """A second bar while something other than training goes on."""
        if self.live:
            if self.other is None:
                self.other = self.bar.add_task(name, total=None, detail="")
            self.bar.update(self.other, description=name, completed=done, total=total or None, visible=True)
        elif name != self.last_phase and self.training is None:
            self.note(name)
        self.last_phase = name

    def planned(self, plan: Plan, first_step: int) -> None:
        """Start the training bar."""
        self._hide_other()
        share = plan.trainable_parameters / plan.total_parameters
        self.note(
            f"{plan.steps} steps of {plan.batch_size} examples, {plan.trainable_parameters:,} of "
            f"{plan.total_parameters:,} parameters learn ({share:.2%}), {plan.precision} on {plan.device}"
        )
        self.training = self.bar.add_task("training", total=plan.steps, completed=first_step, detail="")

    def step(self, result: StepResult, plan: Plan, memory_bytes: int) -> None:
        """Move the bar; elsewhere print a line now and then."""
        self._hide_other()
        speed = f"{result.tokens / result.seconds:,.0f} tokens/s"
        if result.flops:
            speed += f"  {readable_flops(result.flops / result.seconds)}"
            speed += "" if result.mfu is None else f" ({result.mfu:.0%} of peak)"
        detail = f"loss {result.loss:.4f}  {speed}  {memory_bytes / 2**20:,.0f} MiB"
        if self.live and self.training is not None:
            self.bar.update(self.training, completed=result.step, detail=detail)
        elif result.step % max(1, math.ceil(plan.steps / PLAIN_LINES)) == 0 or result.step == plan.steps:
            self.note(f"step {result.step}/{plan.steps}  {detail}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line for each evaluation."""
        self._hide_other()
        self.note(f"eval at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def _hide_other(self) -> None:
        if self.other is not None:
            self.bar.update(self.other, visible=False)

    def finished(self, report: Mapping[str, Any], folder: Path) -> None:
        """Take the bars down."""
        self.bar.stop()


def _of_base(report: Mapping[str, Any], split: str, name: str) -> str:
    """What the base model scored with training rows in its prompt."""
    found = report.get("prompted", {}).get(split, {})  # older reports have none
    said = [f"{count}-shot {scores[name]['value']:.4f}" for count, scores in found.items() if name in scores]
    return f" (base: {', '.join(said)})" if said else ""


def card(report: Mapping[str, Any], folder: Path) -> Table:
    """What came of a run: quality, cost, where it is, what to do next."""
    shown = _relative(folder)
    table = Table(title=f"{report['name']}: {report['finished']} after {report['steps']} steps", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for split in ("eval", "test"):
        for name, score in report["metrics"].get(split, {}).items():
            before = report["baseline"].get(name) if split == "eval" else None
            arrow = "" if before is None else f"{before:.4f} -> "
            table.add_row(f"{split} {name}", f"{arrow}{score['value']:.4f}{_of_base(report, split, name)}")
    table.add_row("time in steps", f"{report['train_seconds']:.1f} s, {report['tokens_per_second']:,.0f} tokens/s")
    table.add_row("peak memory", f"{report['peak_memory_bytes'] / 2**20:,.0f} MiB")
    share = report["trainable_parameters"] / report["total_parameters"]
    table.add_row("learned", f"{report['trainable_parameters']:,} parameters ({share:.2%})")
    table.add_row("artefact", f"{shown}/model (step {report['model_step']})")
    table.add_row("report", f"{shown}/report.md, {shown}/report.html")
    table.add_row("next", f"ftune eval {shown}")
    if report["writes"]:
        table.add_row("", f"ftune generate {shown} --prompt '...'")
    if report["mergeable"]:
        table.add_row("", f"ftune merge {shown}")
    return table


def _relative(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
