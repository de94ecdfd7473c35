"""`ftune eval TARGET` and `ftune generate TARGET`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from ftune.scoring import Evaluation


@guarded
def eval_cli(
    target: TargetPath,
    split: Annotated[
        str | None, typer.Option("--split", help="train, eval or test; default: test if the recipe has it, else eval.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Score the rows of this file instead.")] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Comma-separated names, such as loss,exact_match.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", min=1, help="Score at most this many rows.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows at a time; never changes results.")] = 8,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write generated answers to this JSONL file.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark", help="Tasks of lm-evaluation-harness instead: names, task files or folders; commas."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="With --benchmark: demonstrations before each question.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="With --benchmark: rows of each task.")] = None,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Score a target on held-out rows, or on standard benchmarks."""
    from ftune.errors import Problem, RecipeError

    stop = begin(offline=offline, verbose=verbose)
    if benchmark is not None:
        from ftune.cli.benchmark import run_benchmark

        own = {"--split": split, "--data": data, "--metrics": metrics, "--max-rows": max_rows,
               "--predictions": predictions}  # fmt: skip
        run_benchmark(
            target, benchmark, own, shots=shots, limit=limit, batch_size=batch_size, overrides=tuple(set or ()),
            stop=stop, as_json=json, quiet=quiet,
        )  # fmt: skip
        return
    for name, value in (("--shots", shots), ("--limit", limit)):
        if value is not None:
            raise RecipeError([Problem("", "has no effect without --benchmark. Leave it out.", name)])
    if split not in (None, "train", "eval", "test"):
        raise RecipeError([Problem("", f"expected train, eval or test, received {split!r}.", "--split")])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.evaluation import predictions_lines
    from ftune.scoring import evaluate
    from ftune.store import Store

    with Screen(stop, quiet=quiet) as screen:
        result = evaluate(
            target,
            split=split,  # type: ignore[arg-type]
            data_file=data,
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
            max_rows=max_rows,
            batch_size=batch_size,
            overrides=tuple(set or ()),
            tick=screen.tick,
        )
    if predictions is not None:
        Store(predictions.absolute().parent).write_text(predictions.name, predictions_lines(result.predictions))
    if json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.target}: {result.rows} {result.split} rows")
    table.add_column("metric")
    for name in ("value", "95% interval", "before training"):
        table.add_column(name, justify="right")
    for name, score in result.metrics.items():
        interval = "" if score.ci95 is None else f"{score.ci95[0]:.4f} to {score.ci95[1]:.4f}"
        before = result.baseline.get(name)
        table.add_row(name, f"{score.value:.4f}", interval, "" if before is None else f"{before:.4f}")
    Console(highlight=False).print(table)


@guarded
def generate_cli(
    target: TargetPath,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to say; repeatable. Without it, stdin is read.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a template.")] = False,
    set: Set = None,  # noqa: A002 - the option's name
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    offline: Offline = False,
) -> None:
    """Let a target answer prompts."""
    from ftune.errors import Problem, RecipeError

    stop = begin(offline=offline, verbose=verbose)
    prompts = list(prompt or [])
    if not prompts:
        prompts = [text] if (text := sys.stdin.read().strip()) else []
    if not prompts:
        raise RecipeError([Problem("", "expected some text, on the command line or on stdin.", "--prompt")])
    quiet_libraries()
    from ftune.cli.progress import Screen
    from ftune.scoring import answer

    with Screen(stop, quiet=quiet) as screen:
        answers = answer(
            target,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=None if temperature == 0 else {"temperature": temperature, "top_p": top_p},
            seed=seed,
            raw=raw,
            overrides=tuple(set or ()),
            tick=screen.tick,
        )
    if json:
        rows = [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        print_json({"target": str(target), "answers": rows})
    else:
        print("\n\n".join(answers))
