"""`ftune report RUN...`: make a run's report anew, or hold runs against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftune.cli.common import Json, Verbose, guarded, prepare_process, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftune.run_files import RunFiles

Page = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the page to this file; of one run, nothing else is written."),
]


@guarded
def report_cli(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One run folder, or several.", show_default=False)
    ],
    html: Page = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make the report of a run anew, also of one that is not finished; of several runs, show what differs."""
    from ftune.errors import Problem, RecipeError
    from ftune.run_files import read_run

    prepare_process(offline=True, verbose=verbose)
    if html is not None and (html.is_dir() or not html.name):
        raise RecipeError([Problem("", f"{html} is a folder. Name a file, such as {html / 'report.html'}.", "--html")])
    found = [read_run(folder) for folder in runs]
    if len(found) == 1:
        _one(runs[0], found[0], html, as_json=json)
    else:
        _several(found, html, as_json=json)


def _one(folder: Path, run: RunFiles, html: Path | None, *, as_json: bool) -> None:
    from ftune.report_files import write_report
    from ftune.store import Store

    if html is None:
        written = [str(folder / name) for name in write_report(Store(folder), run)]
    else:
        from ftune.report_page import run_page

        written = [str(_write(html, run_page(run)))]
    if as_json:
        print_json(run.known)
        return
    _print_run(run)
    print(f"written: {', '.join(written)}")


def _several(runs: Sequence[RunFiles], html: Path | None, *, as_json: bool) -> None:
    from ftune.report_diff import difference

    found = difference(runs)
    if html is not None:
        from ftune.report_diff_page import diff_page

        _write(html, diff_page(runs, found))
    if as_json:
        print_json(found)
        return
    from ftune.report import headline
    from ftune.report_diff_page import SECTIONS, labels, line_rows, metric_rows

    names = labels(runs)
    _print("runs", ("run", "what"), [(name, headline(run.known)) for name, run in zip(names, runs, strict=True)])
    _print("results", ("metric", *names), metric_rows(found["metrics"]))
    for key, title, none in SECTIONS:
        _print(title.lower(), ("what", *names), line_rows(found[key]), none)  # type: ignore[literal-required]
    if html is not None:
        print(f"written: {html}")


def _write(path: Path, text: str) -> Path:
    from ftune.store import Store

    Store(path.absolute().parent).write_text(path.name, text)
    return path


def _print_run(run: RunFiles) -> None:
    """The tables of `report.md`."""
    from ftune.page import number
    from ftune.report import beside_base, costs, headline, interval, results, which_step

    report = run.known
    _say(headline(report))
    rows = [
        (row.what, *("" if v is None else number(v) for v in (row.before, row.value)), interval(row.ci95))
        for row in results(report)
    ]
    _print("result", ("metric", "before", "value", "95% interval"), rows, "No rows were held out.")
    header, beside = beside_base(report)
    if beside:
        _print("beside the base model", header, beside)
    _say(which_step(report, best=run.plan.get("best") is not None))
    _print("cost", ("what", "value"), list(costs(report).items()))


def _say(text: str) -> None:
    from ftune.data.spell import visible

    print(visible(text))


def _print(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], none: str = "") -> None:
    """A table in which nothing drives the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ftune.data.spell import visible

    console = Console(highlight=False, markup=False, emoji=False)
    found = Table(title=title, title_justify="left")
    for column in header:
        found.add_column(Text(visible(column)), overflow="fold")
    for row in rows:
        found.add_row(*(Text(visible(str(cell))) for cell in row))
    if found.row_count:
        console.print(found)
    elif none:
        console.print(none)
