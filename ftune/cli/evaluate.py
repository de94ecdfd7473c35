"""`ftune eval TARGET` and `ftune generate TARGET`."""

from __future__ import annotations

import sys
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
        Path | None,
        typer.Option("--predictions", help="Write generated answers or predicted labels to this JSONL file."),
    ] = None,
    resamples: Annotated[
        Path | None,
        typer.Option("--resamples", help="Write each metric on 1000 resamples of the rows, for paired tests (JSON)."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shots", help="Training rows shown before each row, such as 4, or 0,1,4: each is scored."),
    ] = None,
    demonstrations: Annotated[
        str | None, typer.Option("--demonstrations", help="How they are chosen: random (default), balanced or nearest.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Subtract what the model says of options without content.")
    ] = False,
    template: Annotated[
        str | None, typer.Option("--template", help="Template of prompts (Jinja), in place of the recipe's.")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--options", help="What is scored of choices: letters or texts; default: as prompted.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark", help="Tasks of lm-evaluation-harness instead: names, task files or folders; commas."
        ),
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
    numbers = _checked(split, shots, demonstrations, options)
    if len(numbers) > 1 and (benchmark is not None or resamples is not None):
        other = "--resamples" if benchmark is None else "--benchmark"
        raise RecipeError([Problem("", f"with {other}, name one number of shots.", "--shots")])
    if benchmark is not None:
        from ftune.cli.benchmark import run_benchmark

        own = {
            "--split": split, "--data": data, "--metrics": metrics, "--max-rows": max_rows,
            "--predictions": predictions,
            "--resamples": resamples, "--demonstrations": demonstrations, "--calibrate": calibrate or None,
            "--template": template, "--options": options,
        }  # fmt: skip
        run_benchmark(
            target, benchmark, own, shots=None if shots is None else numbers[0], limit=limit, batch_size=batch_size,
            overrides=tuple(set or ()), stop=stop, as_json=json, quiet=quiet,
        )  # fmt: skip
        return
    if limit is not None:
        raise RecipeError([Problem("", "has no effect without --benchmark. Leave it out.", "--limit")])
    quiet_libraries()
    from ftune.as_language_model import Asked
    from ftune.cli.progress import Screen
    from ftune.evidence import evidence
    from ftune.few_shot import evaluate_shots
    from ftune.scoring import evaluate
    from ftune.store import Store

    with Screen(stop, quiet=quiet) as screen:
        how: dict[str, Any] = {
            "split": split,
            "data_file": data,
            "metrics": None if metrics is None else [name.strip() for name in metrics.split(",")],
            "max_rows": max_rows,
            "batch_size": batch_size,
            "overrides": tuple(set or ()),
            "tick": screen.tick,
        }
        if shots is None and not calibrate and template is None and options is None:
            results = [evaluate(target, **how)]
        else:
            asked = Asked(numbers, demonstrations or "random", calibrate, template, options)  # type: ignore[arg-type]
            results = evaluate_shots(target, asked, **how)
    if predictions is not None:
        Store(predictions.absolute().parent).write_text(predictions.name, _lines(results))
    if resamples is not None:
        found = evidence(results[0].metrics, results[0].digest)
        Store(resamples.absolute().parent).write_json(resamples.name, found)
    if json:
        print_json(_json(results))
    elif len(results) == 1:
        _print(results[0])
    else:
        _print_side_by_side(results)


def _checked(split: str | None, shots: str | None, demonstrations: str | None, options: str | None) -> tuple[int, ...]:
    """The numbers of shots.

    Raises:
        RecipeError: names everything on the command line that is not what it should be.
    """
    from ftune.errors import Problem, RecipeError

    problems = []
    known = {
        "--split": (split, ("train", "eval", "test")),
        "--demonstrations": (demonstrations, ("random", "balanced", "nearest")),
        "--options": (options, ("letters", "texts")),
    }
    for name, (value, words) in known.items():
        if value is not None and value not in words:
            message = f"expected {', '.join(words[:-1])} or {words[-1]}, received {value!r}."
            problems.append(Problem("", message, name))
    parts = [part.strip() for part in (shots or "0").split(",")]
    good = all(part.isascii() and part.isdecimal() for part in parts)
    if not good or len({*map(int, parts)}) < len(parts):
        message = f"expected numbers from 0 with commas between them, each once, such as 0,1,4; received {shots!r}."
        problems.append(Problem("", message, "--shots"))
    elif demonstrations is not None and not max(map(int, parts)):
        message = "has no effect without demonstrations. Add --shots, such as --shots 4."
        problems.append(Problem("", message, "--demonstrations"))
    if problems:
        raise RecipeError(problems)
    return tuple(map(int, parts))


def _lines(results: list[Evaluation]) -> str:
    """Predictions as JSON lines, each with its number of shots where there are several."""
    from ftune.generation import predictions_lines

    if len(results) == 1:
        return predictions_lines(results[0].predictions)
    lines = [
        {**loads(line), "shots": one.shots}
        for one in results
        for line in predictions_lines(one.predictions).splitlines()
        if line
    ]
    return "".join(f"{dumps(line, ensure_ascii=False)}\n" for line in lines)


def _json(results: list[Evaluation]) -> dict[str, Any]:
    """The contract: of several numbers of shots the first one's keys, with a list of all beside them."""
    first = results[0].to_json()
    if len(results) == 1:
        return first
    own = ("shots", "metrics", "seconds", "demonstrations")
    each = [{key: value for key, value in one.to_json().items() if key in own} for one in results]
    return {**first, "results": each}


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


def _print_side_by_side(results: list[Evaluation]) -> None:
    """A column for each number of shots."""
    from rich.console import Console
    from rich.table import Table

    first = results[0]
    table = Table(title=f"{first.target}: {first.rows} {first.split} rows")
    table.add_column("metric")
    for one in results:
        table.add_column(f"{one.shots} shot{'' if one.shots == 1 else 's'}", justify="right")
    for name in first.metrics:
        cells = []
        for score in (one.metrics.get(name) for one in results):
            interval = "" if score is None or score.ci95 is None else f"\n{score.ci95[0]:.4f} to {score.ci95[1]:.4f}"
            cells.append("" if score is None else f"{score.value:.4f}{interval}")
        table.add_row(name, *cells)
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
    from ftune.answering import answer
    from ftune.cli.progress import Screen

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
