"""`ftune data RECIPE`: look at rows as they enter the model, before training."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    from ftune.data_packs import Packs
    from ftune.data_view import Request, Seen
    from ftune.load import Loaded

Tokens = Annotated[bool, typer.Option("--tokens", help="Show each token with its id, and whether it is learned.")]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write rows and counts as one page.")]


@guarded
def data_cli(
    recipe: RecipePath,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=0, help="Show so many examples; 0 shows the counts alone.")
    ] = 5,
    row: Annotated[
        str | None,
        typer.Option(
            "--row", metavar="[FILE:]N", help="Show one row by its line, as errors name it, also one that was dropped."
        ),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Show rows in the order of the first epoch, drawn by the seed.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="Rows of train, eval or test.")] = "train",
    tokens: Tokens = False,
    html: Page = None,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Show rows as they enter the model: what is learned, what was cut, and counts of everything. Loads no weights."""
    from ftune.errors import Problem, RecipeError
    from ftune.load import load_recipe

    stop = begin(offline=offline, verbose=verbose)
    loaded = load_recipe(recipe, tuple(set or ()))
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.data_packs import packs_of
    from ftune.data_report import account, source_rows
    from ftune.data_view import look_at_rows

    request = _request(split, rows, row, shuffle=shuffle)
    if html is not None and (html.is_dir() or not html.name):
        raise RecipeError([Problem("", f"{html} is a folder. Name a file, such as {html / 'rows.html'}.", "--html")])
    with Screen(stop, quiet=quiet) as screen:
        seen = look_at_rows(loaded, request, screen.tick)
        screen.tick("counting rows")
        accounted, lines = account(loaded.recipe, seen.rows.dataset, source_rows(loaded.recipe, loaded.folder))
    profiles = _profiles(loaded, seen)
    packs = packs_of(loaded.recipe, seen.rows.dataset.train)
    lines += packs.sentences()
    if html is not None:
        _write_page(html, loaded, seen, profiles, lines, tokens=tokens)
    if json:
        print_json(_as_json(loaded, seen, profiles, packs, request.split, accounted=accounted, tokens=tokens))
    else:
        _print(loaded, seen, profiles, lines, html=html, tokens=tokens)


def _request(split: str, rows: int, row: str | None, *, shuffle: bool) -> Request:
    """The options as a request.

    Raises:
        RecipeError: an option says nothing that can be looked at.
    """
    from ftune.data_view import SPLITS, Request
    from ftune.errors import Problem, RecipeError, suggestion

    if split not in SPLITS:
        raise RecipeError([Problem("", f"unknown split '{split}'.{suggestion(split, SPLITS)}", "--split")])
    name = cast("Any", split)
    if row is None:
        return Request(name, rows, shuffle=shuffle)
    if shuffle:
        raise RecipeError([Problem("", "one row cannot be shuffled. Leave out --shuffle.", "--row")])
    file, _, number = row.rpartition(":")
    if not number.isdecimal():
        message = f"expected the number of a row, or FILE:NUMBER as errors name rows, received '{row}'."
        raise RecipeError([Problem("", message, "--row")])
    return Request(name, rows, int(number), file or None)


def _profiles(loaded: Loaded, seen: Seen) -> dict[str, dict[str, Any]]:
    """All that is known of each split."""
    from ftune.data_report import data_profile, data_summary

    names, encoding = seen.rows.dataset.labels, loaded.recipe.objective.encoding
    return {name: data_summary(split) | data_profile(split, names, encoding) for name, split in seen.splits.items()}


def _as_json(
    loaded: Loaded, seen: Seen, profiles: dict[str, dict[str, Any]], packs: Packs, shown: str, *, accounted: bool,
    tokens: bool,
) -> dict[str, Any]:  # fmt: skip
    """The train split, with `eval` and `test` beside it; examples are of the split that was asked for."""
    from ftune.data.view import view_json

    dataset = seen.rows.dataset
    views = [view_json(view, tokens=tokens) for view in seen.views]
    parts = {
        name: {**{k: v for k, v in profile.items() if k != "examples"}, "num_examples": profile["examples"]}
        | {"examples": views if name == shown else []}
        for name, profile in profiles.items()
    }
    return {
        **parts.pop("train"),
        **parts,
        "accounted": accounted,
        "objective": loaded.recipe.objective.name,
        "formats": list(dataset.formats),
        "template": dataset.template,
        "max_length": seen.rows.max_length,
        "label_names": list(dataset.labels),
        "packing": packs.to_json(),
    }


def _about(loaded: Loaded, seen: Seen) -> list[str]:
    """What made the rows what they are."""
    dataset, recipe = seen.rows.dataset, loaded.recipe
    lines = [
        f"{recipe.objective.name} on {recipe.model.name}: format {', '.join(dataset.formats)}, rendered by: "
        f"{dataset.template}; at most {seen.rows.max_length:,} tokens"
    ]
    taken = recipe.learner.positions_taken
    if taken:
        lines.append(f"{recipe.learner.name} puts {taken} learned positions before every row; they are no tokens.")
    return [*lines, *(f"note: {note}" for note in loaded.notes)]


def _remarks(profiles: dict[str, dict[str, Any]], lines: list[str]) -> list[str]:
    """Sentences below the counts."""
    from ftune.data_report import sentences

    found = [line for name, profile in profiles.items() for line in sentences(name, profile)]
    return [*found, *(f"{name}: {note}" for name, profile in profiles.items() for note in profile["notes"]), *lines]


def _print(
    loaded: Loaded,
    seen: Seen,
    profiles: dict[str, dict[str, Any]],
    lines: list[str],
    *,
    html: Path | None,
    tokens: bool,
) -> None:
    """Rows, unless they are in a page, and below them the counts."""
    from ftune.cli.rows import Paper, print_rows, print_summary
    from ftune.data.spell import visible

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rows may hold letters that the terminal's encoding lacks
    console = Paper(highlight=False, markup=False, emoji=False)
    for line in _about(loaded, seen):
        console.print(visible(line), soft_wrap=True)
    if html is None:
        print_rows(console, seen.views, profiles["train"]["unit"], tokens=tokens)
    console.print()
    print_summary(console, profiles)
    for line in _remarks(profiles, lines):
        console.print(visible(line), soft_wrap=True)
    if html is not None:
        console.print(visible(f"{html}: {len(seen.views)} examples"), soft_wrap=True)


def _write_page(
    path: Path,
    loaded: Loaded,
    seen: Seen,
    profiles: dict[str, dict[str, Any]],
    lines: list[str],
    *,
    tokens: bool,
) -> None:
    from ftune.data_page import page
    from ftune.store import Store

    about, remarks = _about(loaded, seen), _remarks(profiles, lines)
    text = page(loaded.path.name, about, seen.views, profiles, remarks, tokens=tokens)
    Store(path.parent).write_text(path.name, text)
