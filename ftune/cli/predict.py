"""`ftune predict TARGET`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from ftune.cli.common import (
    Json,
    Offline,
    Quiet,
    Set,
    TargetPath,
    Verbose,
    begin,
    guarded,
    print_json,
    quiet_libraries,
)


@guarded
def predict_cli(
    target: TargetPath,
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write, a line for each row.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows of this file instead; they need no answers.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, eval or test; default: test if the recipe has it, else eval.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", min=1, help="At most this many rows.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows at a time; never changes results.")] = 8,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Write what a target says of every row, also of rows without an answer, as JSON lines."""
    from ftune.errors import Problem, RecipeError

    stop = begin(offline=offline, verbose=verbose)
    if split not in (None, "train", "eval", "test"):
        raise RecipeError([Problem("", f"expected train, eval or test, received {split!r}.", "--split")])
    if split is not None and data is not None:
        raise RecipeError([Problem("", "has no effect with --data, which names other rows. Remove one.", "--split")])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.predicting import predict_rows
    from ftune.store import Store

    with Screen(stop, quiet=quiet) as screen:
        found = predict_rows(
            target,
            split=split,  # type: ignore[arg-type]
            data_file=data,
            max_rows=max_rows,
            batch_size=batch_size,
            overrides=tuple(set or ()),
            tick=screen.tick,
        )
    lines = "".join(f"{dumps(line, ensure_ascii=False)}\n" for line in found.lines)
    Store(out.absolute().parent).write_text(out.name, lines)
    if json:
        print_json(found.to_json(out))
    else:
        left = f", {found.left_out} left out" if found.left_out else ""
        print(f"{out}: {len(found.lines)} {found.split} rows{left}")
