"""`ftune cache ls | rm`: rows, tokens and features that were kept for the next start."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftune.cli.common import Json, guarded, print_json

if TYPE_CHECKING:
    from ftune.data.cache import Listed

app = typer.Typer(
    help="List and delete what was kept of data: rows, tokens, features.", no_args_is_help=True, rich_markup_mode=None
)
SECONDS = {"m": 60, "h": 3600, "d": 86400}


def _root() -> Path:
    from ftune.data.cache import cache_root

    return cache_root(os.environ, Path.home())


@app.command("ls")
@guarded
def ls_cli(json: Json = False) -> None:
    """List what is kept, the longest unused first."""
    from ftune.data.cache import listed

    root, found = _root(), listed(_root())
    if json:
        print_json({"folder": str(root), "bytes": sum(e.size for e in found), "entries": [_shown(e) for e in found]})
        return
    for entry in found:
        rows = "" if entry.rows is None else f"{entry.rows:,} rows"
        lock = "  (being made)" if entry.locked else ""
        used = f"made {_when(entry.made)}, used {_when(entry.used)}"
        print(f"{entry.kind:<8}  {entry.key[:12]}  {_size(entry.size):>10}  {rows:>16}  {used}{lock}")
    print(f"{root}: {len(found)} entries, {_size(sum(entry.size for entry in found))}")


@app.command("rm")
@guarded
def rm_cli(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="30d", help="What was not used for so long; in d, h, m.", show_default=False
        ),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Everything.")] = False,  # noqa: A002 - the option's name
    json: Json = False,
) -> None:
    """Delete entries. What a process is making stays."""
    from ftune.data.cache import Listed, listed, remove

    seconds = _seconds(older_than, everything=all)
    root, now = _root(), time.time()
    removed, kept = list[Listed](), list[Listed]()
    for entry in listed(root):
        if now - entry.used >= seconds:
            (removed if remove(root, entry) else kept).append(entry)
    if json:
        print_json({"removed": [_shown(entry) for entry in removed], "locked": [_shown(entry) for entry in kept]})
        return
    print(f"{root}: {len(removed)} entries deleted, {_size(sum(entry.size for entry in removed))}")
    if kept:
        print(f"{root}: {len(kept)} entries are being made and stay")


def _seconds(older_than: str | None, *, everything: bool) -> float:
    """How long an entry must not have been used.

    Raises:
        RecipeError: neither or both were asked for, or the time is none.
    """
    from ftune.errors import Problem, RecipeError

    if everything == (older_than is not None):
        raise RecipeError([Problem("", "say what to delete: --all, or --older-than 30d.", "cache rm")])
    if older_than is None:
        return -float("inf")
    match = re.fullmatch(r"([0-9]{1,6})([dhm])", older_than.strip())
    if match is None:
        message = f"expected a time such as 30d, 12h or 10m, received {older_than!r}."
        raise RecipeError([Problem("", message, "--older-than")])
    return float(match[1]) * SECONDS[match[2]]


def _shown(entry: Listed) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "bytes": entry.size,
        "rows": entry.rows,
        "made": _when(entry.made),
        "used": _when(entry.used),
        "locked": entry.locked,
    }


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
