"""`ftune lr-find RECIPE`: which learning rate."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftune.cli.common import (
    Json,
    Offline,
    Quiet,
    RecipePath,
    Set,
    Verbose,
    begin,
    guarded,
    print_json,
    quiet_libraries,
)

if TYPE_CHECKING:
    from ftune.lr_find import Finding

ROWS = 15
"""Lines of the table of the test; --json has every step."""


@guarded
def lr_find_cli(
    recipe: RecipePath,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps of the range test.")] = 60,
    first: Annotated[float, typer.Option("--from", help="Learning rate of the first step.")] = 1e-7,
    last: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 10.0,
    grid: Annotated[
        int, typer.Option("--grid", min=0, help="Short runs round the suggestion, a factor of sqrt(10) apart.")
    ] = 0,
    budget: Annotated[str, typer.Option("--budget", help="How long each of them is, as train.duration.")] = "50 steps",
    png: Annotated[Path | None, typer.Option("--png", help="Draw loss over learning rate into this file.")] = None,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Look for a learning rate by steps that are thrown away: a range test and, with --grid, short runs."""
    from ftune.errors import Problem, RecipeError
    from ftune.load import load_recipe

    stop = begin(offline=offline, verbose=verbose)
    loaded = load_recipe(recipe, tuple(set or ()))
    if png is not None and not png.absolute().parent.is_dir():
        raise RecipeError([Problem("", f"no such folder: {png.absolute().parent}.", "--png")])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.lr_find import lr_find

    with Screen(stop, quiet=quiet) as screen:
        finding = lr_find(
            loaded, first=first, last=last, steps=steps, grid=grid, budget=budget, listener=screen, stop=stop
        )
    if png is not None:
        _draw(finding, png)
    if json:
        print_json({"recipe": str(recipe), **finding.to_json()})
    else:
        _print(finding)


def _print(finding: Finding) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="learning-rate range test")
    for column in ("step", "learning rate", "loss", "smoothed"):
        table.add_column(column, justify="right")
    points = finding.points
    for point in points[:: -(-len(points) // ROWS)]:
        table.add_row(str(point.step), f"{point.learning_rate:.1e}", f"{point.loss:.4f}", f"{point.smoothed:.4f}")
    console.print(table)
    lowest = min(points, key=lambda point: point.smoothed)
    ended = f"diverged at {points[-1].learning_rate:.1e}" if finding.diverged else "did not diverge"
    print(f"smallest smoothed loss: {lowest.smoothed:.4f} at {lowest.learning_rate:.1e}; the loss {ended}")
    if finding.suggestion is None:
        print("suggestion: none, for the loss never fell. Lower --from, or look at the rows.")
    else:
        print(f"suggestion: {finding.suggestion:g}, a tenth of that rate")
    print(f"default of {finding.method}: {finding.default:g}")
    if finding.trials:
        console.print(_trials(finding))


def _trials(finding: Finding) -> object:
    from rich.table import Table

    table = Table(title=f"short runs of {max(trial.steps for trial in finding.trials)} steps")
    for column in ("learning rate", "train loss", "eval loss", ""):
        table.add_column(column, justify="left" if not column else "right")
    for trial in finding.trials:
        losses = ["diverged" if loss is None else f"{loss:.4f}" for loss in (trial.train_loss, trial.eval_loss)]
        marks = ["best"] * trial.is_best + ["method's default"] * trial.is_default
        table.add_row(f"{trial.learning_rate:g}", *losses, ", ".join(marks))
    return table


def _draw(finding: Finding, path: Path) -> None:
    """Loss over learning rate; the suggestion and the method's default as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ftune.store import Store

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [point.learning_rate for point in finding.points]
    axes.plot(shown, [point.loss for point in finding.points], color="0.75", linewidth=1, label="loss")
    axes.plot(shown, [point.smoothed for point in finding.points], color="tab:blue", label="smoothed")
    if finding.suggestion is not None:
        axes.axvline(finding.suggestion, color="tab:green", label=f"suggestion {finding.suggestion:g}")
    axes.axvline(finding.default, color="0.4", linestyle="--", label=f"default {finding.default:g}")
    axes.set_xscale("log")
    axes.set_ylim(top=min(max(p.loss for p in finding.points), 2 * finding.points[0].loss))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Store(path.absolute().parent).write_bytes(path.name, drawn.getvalue())
