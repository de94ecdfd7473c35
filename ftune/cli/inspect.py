"""`check`, `plan`, `methods`, `verify`: verbs that look and never train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ftune.prepare import Prepared
    from ftune.recipe import Recipe


@guarded
def check_cli(
    recipe: RecipePath,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check a recipe and its rows, without torch: every problem at once, with its place."""
    from ftune.data.cache import Cache, cache_root
    from ftune.data.samples import Samples, read_samples
    from ftune.load import load_recipe

    loaded = load_recipe(recipe, tuple(set or ()))
    samples: Samples | None = None
    cache = Cache(cache_root(os.environ, Path.home()))
    if not _uses_hub(loaded.recipe, loaded.folder):
        samples = read_samples(
            loaded.recipe.data,
            loaded.folder,
            accepted=loaded.recipe.formats,
            seed=loaded.recipe.data_seed,
            max_eval_rows=loaded.recipe.eval.max_rows,
            tick=lambda what, done, total: None,
            cache=cache,
        )
    result: dict[str, Any] = {"recipe": str(recipe), "ok": True, "notes": [*loaded.notes, *cache.notes]}
    if samples is not None:
        result["notes"] += samples.readings
        result |= {
            "rows": {"train": len(samples.train), "eval": len(samples.eval), "test": len(samples.test)},
            "formats": list(samples.formats),
            "duplicates": len(samples.duplicates),
            "bad_rows": samples.bad_rows,
            "leaked": {"exact": samples.leaks.exact, "near": samples.leaks.near, "dropped": len(samples.leaked)},
        }
    if json:
        print_json(result)
        return
    print(f"{recipe}: ok")
    for note in result["notes"]:
        print(f"note: {note}")
    if samples is None:
        print("data: a hub set, not looked at")
        return
    counts = ", ".join(f"{count} {name}" for name, count in result["rows"].items() if count)
    print(f"data: {counts} rows, format {', '.join(samples.formats)}")
    if samples.duplicates:
        print(f"data: {len(samples.duplicates)} exact duplicates are left out before the split")
    for name, count in samples.bad_rows.items():
        if count:
            print(f"data: {count} bad rows of {name} are skipped, the first: {samples.skipped[name][0]}")
    if samples.leaked:
        print(f"data: {len(samples.leaked)} training rows that are also in eval or test are left out")
    for note in [*samples.notes, *samples.leaks.notes()]:
        print(f"data: {note}")


def _uses_hub(recipe: Recipe, folder: Path) -> bool:
    from ftune.data.read import uses_hub
    from ftune.quantities import is_share
    from ftune.recipe import sources

    data = recipe.data
    parts = [data.train, data.test, list(recipe.eval.guard)] + ([] if is_share(data.eval) else [data.eval])
    return any(uses_hub(sources(part), folder) for part in parts)


@guarded
def plan_cli(
    recipe: RecipePath,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Show what training will do, every value with its source, without loading weights."""
    from ftune.load import load_recipe

    stop = begin(offline=offline, verbose=verbose)
    loaded = load_recipe(recipe, tuple(set or ()))
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.prepare import prepare

    with Screen(stop, quiet=quiet) as screen:
        prepared = prepare(loaded, screen.tick)
    if json:
        print_json(_plan_json(prepared, loaded.notes))
    else:
        _print_plan(prepared, loaded.notes)


def _plan_json(prepared: Prepared, notes: tuple[str, ...]) -> dict[str, Any]:
    from ftune.data_report import data_summary

    dataset = prepared.dataset
    splits = {"train": dataset.train, "eval": dataset.eval, "test": dataset.test}
    return {
        "plan": prepared.plan.to_json(),
        "data": {name: data_summary(split) for name, split in splits.items() if split is not None},
        "formats": list(dataset.formats),
        "template": dataset.template,
        "story": dataset.story,
        "targets": [{"name": n, "modules": c, "shape": list(s)} for n, c, s in prepared.facts.model.targets],
        "notes": [*notes, *dataset.notes],
    }


def _print_plan(prepared: Prepared, notes: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ftune.data_report import data_summary

    console = Console(highlight=False)
    table = Table(title="plan")
    table.add_column("value")
    table.add_column("is", justify="right")
    table.add_column("because", overflow="fold")
    for name, entry in prepared.plan.to_json().items():
        if name != "memory_bytes":
            table.add_row(name, _shown(name, entry["value"]), entry["source"])
    console.print(table)
    memory = Table(title="memory of one process (estimate)", show_header=False)
    for item, size in prepared.plan.memory_bytes.items():
        memory.add_row(item, f"{size / 2**20:,.1f} MiB")
    memory.add_row("all", f"{sum(prepared.plan.memory_bytes.values()) / 2**20:,.1f} MiB")
    console.print(memory)
    if prepared.facts.model.targets:
        targets = Table(title="layers that are adapted")
        for column in ("name", "modules", "outputs x inputs"):
            targets.add_column(column)
        for name, count, shape in prepared.facts.model.targets:
            targets.add_row(name, str(count), " x ".join(map(str, shape)))
        console.print(targets)
    dataset = prepared.dataset
    print(f"data: {dataset.story}")
    print(f"rows: format {', '.join(dataset.formats)}, rendered by: {dataset.template}")
    for name, split in (("train", dataset.train), ("eval", dataset.eval), ("test", dataset.test)):
        if split is not None:
            summary = data_summary(split)
            dropped = ", ".join(f"{n} {why}" for why, n in summary["dropped"].items()) or "none"
            print(
                f"{name}: {summary['rows']} rows, {summary['kept']} kept, dropped {dropped}, "
                f"{summary['truncated']} truncated, {summary['tokens']:,} tokens, {summary['targets']:,} supervised"
            )
            for note in summary["notes"]:
                print(f"{name}: {note}")
    for note in (*notes, *dataset.notes):
        print(f"note: {note}")


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


@guarded
def methods_cli(json: Json = False) -> None:
    """List the methods: what learns, what merges, the paper, and which objectives work on which models."""
    from ftune import methods

    rows = [_method_row(name) for name in methods.names()]
    if json:
        print_json({"methods": rows})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="methods")
    for column in ("method", "what learns", "merges", "learning rate at width 4096", "paper"):
        table.add_column(column, overflow="fold")
    for row in rows:
        merges = "yes" if row["mergeable"] else "no"
        table.add_row(row["name"], row["learns"], merges, f"{row['learning_rate']:g}", row["paper"])
    console.print(table)
    grid = Table(title="objectives: D on decoders, E on encoders, ED on encoder-decoders")
    objectives = list(rows[0]["cells"])
    for column in ("method", *objectives):
        grid.add_column(column, overflow="fold")
    for row in rows:
        cells = row["cells"].values()
        grid.add_row(row["name"], *(" ".join(_SHORT[f] for f, why in cell.items() if why is None) for cell in cells))
    console.print(grid)


_SHORT = {"decoder": "D", "encoder": "E", "encoder_decoder": "ED"}


def _method_row(name: str) -> dict[str, Any]:
    """A method with, for each objective and family, null where it works and else the reason why not."""
    from ftune import methods, objectives

    method = methods.load(name)
    cells: dict[str, dict[str, str | None]] = {}
    for objective in objectives.names():
        kind = objectives.load(objective)
        cells[objective] = {
            family: f"{objective} is not for {family.replace('_', '-')}s"
            if family not in kind.families
            else f"{name} does not learn from {objective}"
            if objective not in method.objectives
            else method.refusal(objective, family)
            for family in methods.FAMILIES
        }
    return {
        "name": name,
        "learns": method.learns,
        "objectives": sorted(method.objectives),
        "cells": cells,
        "mergeable": method.mergeable,
        "learning_rate": method.learning_rate,
        "learning_rate_power": method.learning_rate_power,
        "paper": method.paper,
    }


@guarded
def verify_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one artefact.", show_default=False)],
    json: Json = False,
) -> None:
    """Check every file of a run's checkpoints and model against its hash."""
    from ftune.checkpoints import step_folders
    from ftune.errors import ArtifactError
    from ftune.manifest import MANIFEST

    results: list[dict[str, Any]] = []
    while not results:
        folders = [folder for _, folder in step_folders(run)]
        folders += [folder for folder in (run / "model", run / "merged", run) if (folder / MANIFEST).is_file()]
        if not folders:
            raise ArtifactError(f"{run}: holds nothing to verify: no checkpoint and no model.")
        results = [result for folder in folders if (result := _verified(folder)) is not None]
    if json:
        print_json({"run": str(run), "ok": all(r["ok"] for r in results), "folders": results})
    else:
        for result in results:
            print(f"{'ok      ' if result['ok'] else 'DAMAGED '} {result['problem'] or result['folder']}")
    if not all(result["ok"] for result in results):
        raise typer.Exit(ArtifactError.exit_code)


def _verified(folder: Path) -> dict[str, Any] | None:
    """What `verify` says of one folder; None where the run, which may go on meanwhile, has deleted it."""
    from ftune.errors import ArtifactError
    from ftune.manifest import verify

    try:
        size = sum(entry["bytes"] for entry in verify(folder)["files"].values())
    except ArtifactError as error:
        if not folder.exists():
            return None
        return {"folder": str(folder), "ok": False, "bytes": None, "problem": str(error)}
    return {"folder": str(folder), "ok": True, "bytes": size, "problem": None}
