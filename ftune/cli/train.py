"""`ftune train RECIPE`: start, go on, or say that it is complete."""

from __future__ import annotations

import os
import sys
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
    from ftune.load import Loaded
    from ftune.signals import StopFlag
    from ftune.store import OnOperation


@guarded
def train_cli(
    recipe: RecipePath,
    set: Set = None,  # noqa: A002 - the option's name
    output_dir: Annotated[
        str | None, typer.Option("--output-dir", help="Run folder; overrides output_dir of the recipe.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the run that is there, or refuse to.")
    ] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try the recipe on a tiny model in seconds.")] = False,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Processes on this machine; overrides distributed.devices.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of a few steps and a table of where their time went.")
    ] = False,
    profile_steps: Annotated[int, typer.Option("--profile-steps", min=1, help="Steps that --profile looks at.")] = 3,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Train a recipe. The same command starts, resumes, or says that the run is already complete."""
    from ftune.errors import Problem, RecipeError
    from ftune.load import load_recipe
    from ftune.overlay import literal

    stop = begin(offline=offline, verbose=verbose)
    overrides = list(set or [])
    overrides += [f"distributed.devices={devices}"] if devices is not None else []
    overrides += [literal("output_dir", output_dir)] if output_dir is not None else []
    loaded = load_recipe(recipe, overrides)
    if profile:
        if smoke:
            message = "makes too few steps to profile. Leave out --smoke or --profile."
            raise RecipeError([Problem("--smoke", message)])
        for name in ("KINETO_LOG_LEVEL", "TORCH_CPP_LOG_LEVEL"):
            os.environ.setdefault(name, "3")  # the profiler talks to itself on stderr
    if smoke:
        _smoke(loaded, stop, as_json=json, quiet=quiet)
        return
    processes = loaded.recipe.distributed.devices
    if processes > 1 and "RANK" not in os.environ:
        from ftune.facts import cores
        from ftune.launch import launch

        launch(processes, sys.argv[1:], cores=cores())
        return
    leads = os.environ.get("RANK", "0") == "0"
    _train(
        loaded, stop, leads=leads, overwrite=overwrite, resume=resume, profile_steps=profile_steps if profile else None,
        as_json=json, quiet=quiet or not leads,
    )  # fmt: skip


def _train(
    loaded: Loaded, stop: StopFlag, *, leads: bool, overwrite: bool, resume: bool, profile_steps: int | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from contextlib import nullcontext

    from ftune import drift
    from ftune.errors import Problem, RecipeError
    from ftune.locking import lock

    folder = loaded.output_dir.absolute()
    drift.refuse_foreign_folder(folder, loaded.text)
    with lock(folder) if leads else nullcontext():
        if not overwrite and drift.is_complete(folder, loaded):
            _say_complete(folder, as_json=as_json)
            return
        if not resume and not overwrite and (folder / "run.json").is_file():
            message = f"{folder} holds a run. Leave out --no-resume to go on, or add --overwrite to start anew."
            raise RecipeError([Problem("output_dir", message)])
        quiet_libraries()
        from ftune.cli.progress import Screen, card
        from ftune.run import train

        with Screen(stop, quiet=quiet) as screen:
            for note in loaded.notes:
                screen.note(f"note: {note}")
            report = train(
                loaded, listener=screen, stop=stop, overwrite=overwrite, on_operation=_faults_of_tests(),
                profile_steps=profile_steps,
            )  # fmt: skip
    if leads and as_json:
        print_json(report)
    elif leads:
        from rich.console import Console

        Console(highlight=False).print(card(report, folder))


def _say_complete(folder: Path, *, as_json: bool) -> None:
    from ftune.report import read_report

    report = read_report(folder)
    if as_json:
        print_json(report)
    else:
        print(f"{folder}: already complete, {report['steps']} steps ({report['finished']}). Nothing was done.")


def _smoke(loaded: Loaded, stop: StopFlag, *, as_json: bool, quiet: bool) -> None:
    import tempfile

    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.smoke import smoke

    with tempfile.TemporaryDirectory(prefix="ftune-smoke-") as folder, Screen(stop, quiet=quiet) as screen:
        stages = smoke(loaded, Path(folder), listener=screen, stop=stop)
    if as_json:
        print_json({"stages": [{"name": s.name, "outcome": s.outcome, "seconds": s.seconds} for s in stages]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"smoke: {loaded.path}", show_header=False)
    for stage in stages:
        table.add_row(stage.name, stage.outcome, f"{stage.seconds:.1f} s")
    Console(highlight=False).print(table)


def _faults_of_tests() -> OnOperation | None:
    """For tests: die or fail at the n-th durable operation, FTUNE_TESTING=1 with FTUNE_FAULT=N:KILL or N:ENOSPC.

    With N+ all operations from the n-th on fail, as on a disk that stays full.
    """
    wanted = os.environ.get("FTUNE_FAULT")
    if os.environ.get("FTUNE_TESTING") != "1" or wanted is None:
        return None
    import errno
    import signal

    number, _, kind = wanted.partition(":")
    first, for_good = int(number.removesuffix("+")), number.endswith("+")
    count = 0

    def fault(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count < first or (count > first and not for_good):
            return
        if kind == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        code: Any = getattr(errno, kind)
        raise OSError(code, os.strerror(code), str(path))

    return fault
