"""`ftune merge TARGET`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftune.cli.common import (
    Json,
    Offline,
    Quiet,
    TargetPath,
    Verbose,
    begin,
    guarded,
    print_json,
    quiet_libraries,
)

if TYPE_CHECKING:
    from ftune.merging import MergeResult


@guarded
def merge_cli(
    target: TargetPath,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: merged inside the run.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="fp32, bf16 or fp16; default: what the base was published in.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="Of a quantised base: dequantized (default), what was trained on, or original, as it was published.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Merge what was learned into the base model, verified against the trained model."""
    from ftune.errors import Problem, RecipeError

    stop = begin(offline=offline, verbose=verbose)
    if dtype not in (None, "fp32", "bf16", "fp16"):
        raise RecipeError([Problem("", f"expected fp32, bf16 or fp16, received {dtype!r}.", "--dtype")])
    if base not in (None, "dequantized", "original"):
        raise RecipeError([Problem("", f"expected dequantized or original, received {base!r}.", "--base")])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.merging import merge

    with Screen(stop, quiet=quiet) as screen:
        result = merge(target, out, dtype=dtype, base=base, tick=screen.tick)  # type: ignore[arg-type]
    if json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: MergeResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"merged into {result.base}", show_header=False)
    table.add_row("folder", result.folder)
    table.add_row("weights", f"{result.dtype}, read back equal, SHA-256 {result.sha256[:16]}")
    exact = f"max {result.max_difference:.1e}, mean {result.mean_difference:.1e}"
    table.add_row(f"logits, merged against the adapter on {result.base_weights} weights", exact)
    if result.base_weights == "original":
        table.add_row("drift from what was trained", f"logits differ by up to {result.drift:.2g}")
    table.add_row(f"logits once in {result.dtype}", f"max {result.cast_max_difference:.1e}")
    table.add_row("greedy tokens that agree", f"{result.token_agreement:.1%}")
    Console(highlight=False).print(table)
    print(f"It opens with plain transformers: {result.opens_with}.from_pretrained({result.folder!r})")
