"""`ftune compare RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftune.cli.common import Json, Offline, Quiet, RecipePath, Set, Verbose, begin, guarded, print_json, quiet_libraries

if TYPE_CHECKING:
    from ftune.compare.comparing import Asked

ALL = "full,lora,qlora,adapter,ia3,prefix,prompt,feature_based"
"""Methods that are compared where none is named; those that do not fit the recipe are listed with the reason."""


@guarded
def compare_cli(
    recipe: RecipePath,
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated; others than the recipe's have defaults.")
    ] = ALL,
    shots: Annotated[
        str, typer.Option("--shots", help="Comma-separated numbers of examples in the base model's prompt, or none.")
    ] = "0,4",
    budget: Annotated[
        str | None, typer.Option("--budget", help="'200 steps', '3 epochs' or '50_000 tokens' for each trial.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trials of each setting.")] = 3,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=A,B", help="Vary a key too: method.rank=2,8,32. Repeatable."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What decides; default: the first that is no likelihood.")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", help="Default: runs/compare_RECIPE.")] = None,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Which method should I use? Train them all alike and compare, with error bars."""
    stop = begin(offline=offline, verbose=verbose)
    asked = _asked(recipe, methods, shots, budget, seeds, grid or [], metric, output_dir, set or [])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.compare.comparing import compare
    from ftune.compare.page import comparison_page
    from ftune.compare.table import as_table, draw, to_json, to_markdown
    from ftune.locking import lock
    from ftune.store import Store

    with lock(asked.folder), Screen(stop, quiet=quiet) as screen:
        comparison = compare(asked, stop, screen.tick, screen.note)
        found, store = to_json(comparison), Store(asked.folder)
        store.write_bytes("compare.png", draw(comparison))
        store.write_text("compare.md", to_markdown(comparison))
        store.write_text("compare.html", comparison_page(found))
        store.write_json("compare.json", found)
    if json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    header, rows = as_table(found)
    table = Table(title=f"{recipe}: {asked.metric} of {comparison.scored} {asked.split} rows")
    for name in header:
        table.add_column(name, justify="left" if name == "row" else "right")
    for cells in rows:
        table.add_row(*cells)
    console = Console(highlight=False)
    console.print(table)
    for row in found["rows"]:
        if row["value"] is None:
            console.print(f"{row['name']}: {row['about']}", markup=False)
    console.print(found["recommendation"] or "No row has a figure.", markup=False)
    console.print(f"{asked.folder}/compare.html, compare.md, compare.json, compare.png", markup=False)


def _asked(
    recipe: Path, methods: str, shots: str, budget: str | None, seeds: int, grid: list[str], metric: str | None,
    output_dir: Path | None, overrides: list[str],
) -> Asked:  # fmt: skip
    """Read the options.

    Raises:
        RecipeError: something cannot be compared.
    """
    from ftune.compare.comparing import Asked, choose_metric, choose_split, refuse_foreign_folder
    from ftune.compare.trials import check_names, parse_grid, settings_of
    from ftune.errors import Problem, RecipeError
    from ftune.load import load_recipe

    names = [name.strip() for name in methods.split(",") if name.strip()]
    numbers = [text.strip() for text in shots.split(",") if text.strip() not in ("", "none")]
    if odd := [text for text in numbers if not text.isdecimal()]:
        raise RecipeError([Problem("", f"expected numbers such as 0,4 or none, received {odd[0]!r}.", "--shots")])
    check_names(names)
    own = load_recipe(recipe, overrides)
    settings = settings_of(own, names, parse_grid(grid), budget, overrides)
    folder = (output_dir or Path("runs") / f"compare_{recipe.stem}").absolute()
    refuse_foreign_folder(folder)
    first = own.recipe.seed
    return Asked(
        own, settings, sorted({int(text) for text in numbers}), range(first, first + seeds),
        choose_metric(own, metric), choose_split(own), folder, budget, overrides,
    )  # fmt: skip
