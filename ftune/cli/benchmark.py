"""`ftune eval TARGET --benchmark TASK`: scores of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.cli.common import print_json, quiet_libraries

if TYPE_CHECKING:
    from ftune.benchmark import Benchmarks
    from ftune.signals import StopFlag


def run_benchmark(
    target: Path, names: str, own: Mapping[str, Any], *, shots: int | None, limit: int | None, batch_size: int,
    overrides: tuple[str, ...], stop: StopFlag, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Score and print.

    Args:
        target: TARGET.
        names: of tasks, with commas.
        own: options that choose rows and metrics of the recipe, which a task brings itself.
        shots: demonstrations before each question.
        limit: rows of each task.
        batch_size: rows at a time.
        overrides: `--set`.
        stop: polled.
        as_json: whether one JSON object is printed.
        quiet: whether no progress is shown.

    Raises:
        RecipeError: an option has no effect, or there is no such task.
        MachineError: the harness is not installed.
    """
    from ftune.errors import Problem, RecipeError

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    message = "has no effect with --benchmark: a task brings its rows and metrics. Leave it out."
    problems = [Problem("", message, option) for option, value in own.items() if value is not None]
    problems += [] if wanted else [Problem("", f"expected names of tasks, received {names!r}.", "--benchmark")]
    if problems:
        raise RecipeError(problems)
    quiet_libraries()
    from ftune.benchmark import benchmark
    from ftune.cli.progress import Screen

    with Screen(stop, quiet=quiet) as screen:
        result = benchmark(
            target, wanted, shots=shots, limit=limit, batch_size=batch_size, overrides=overrides, tick=screen.tick
        )
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: Benchmarks) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.target}: {result.harness}")
    for column in ("task", "metric", "value", "standard error", "rows", "shots"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for name, task in result.tasks.items():
        for metric, score in task.metrics.items():
            error = "" if score["stderr"] is None else f"{score['stderr']:.4f}"
            counts = ["" if count is None else str(count) for count in (task.rows, task.shots)]
            table.add_row(name, metric, f"{score['value']:.4f}", error, *counts)
    Console(highlight=False).print(table)
