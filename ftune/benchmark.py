"""Standard benchmarks on any target, by lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

The harness reads the tasks, builds the prompts and computes the metrics, so that numbers can be compared with published
ones. It is given the opened model and its tokenizer, not a path: adapters, prefixes and soft prompts are scored as
they are. No code of a hub runs: the harness is never allowed to trust any.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftune.data.samples import Tick
from ftune.decide import choose_threads
from ftune.device import build_accelerator
from ftune.errors import FtuneError, MachineError, Problem, RecipeError, suggestion
from ftune.facts import look_at_machine
from ftune.plan import Runtime
from ftune.scoring import open_scorable
from ftune.target import Target, kind_of, open_target

RESAMPLES = 1000
"""Of the harness's bootstrap, for the error of metrics that are no means."""


@dataclass(frozen=True)
class TaskScore:
    """What a task of the harness came to.

    Args:
        metrics: by name, `{"value", "stderr"}`; the name has the harness's filter behind a comma, where there is one.
            The standard error is None where the harness knows none.
        rows: that were scored; None for a group, which is the mean of tasks.
        shots: demonstrations before each question.
        version: of the task.
    """

    metrics: dict[str, dict[str, float | None]]
    rows: int | None
    shots: int | None
    version: Any


@dataclass(frozen=True)
class Benchmarks:
    """Scores of a target by task, and which harness computed them."""

    target: str
    tasks: dict[str, TaskScore]
    harness: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `ftune eval --benchmark --json`."""
        return asdict(self)


def benchmark(
    path: Path,
    names: Sequence[str],
    *,
    shots: int | None,
    limit: int | None,
    batch_size: int,
    overrides: tuple[str, ...],
    tick: Tick,
) -> Benchmarks:
    """Score a target on tasks of the harness.

    Args:
        path: any TARGET whose objective writes or continues text.
        names: of tasks or groups, or paths of task files and of folders with task files.
        shots: demonstrations before each question; None takes the task's own number.
        limit: at most so many rows of each task; None takes all.
        batch_size: rows at a time.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        MachineError: the harness is not installed, or a task's data is not here.
        RecipeError: there is no such task, or the target writes no text.
    """
    started = time.monotonic()
    evaluator, tasks, models = _harness()
    tick("loading tasks", 0, 0)
    manager, wanted = _tasks(tasks, names)
    tick("loading", 0, 0)
    target, runtime = _opened(path, overrides)
    build_accelerator(runtime)
    model = _wrapped(models, target, runtime, batch_size, tick)
    with _explained(names):
        found = evaluator.simple_evaluate(
            model=model, tasks=wanted, num_fewshot=shots, limit=limit, task_manager=manager, log_samples=False,
            bootstrap_iters=RESAMPLES,
        )  # fmt: skip
    if found is None:
        raise AssertionError("a single process has the results")
    harness = f"lm_eval {version('lm_eval')}"
    return Benchmarks(str(path), _scores(found), harness, time.monotonic() - started)


def _harness() -> tuple[Any, Any, Any]:
    """Modules of the harness: evaluator, tasks, models.

    Raises:
        MachineError: it is not installed.
    """
    try:
        from lm_eval import evaluator, tasks
        from lm_eval.models import huggingface
    except ImportError as error:
        message = f"--benchmark needs the package lm_eval, and {error.name or 'it'} is not installed."
        raise MachineError(f"{message} Install it with: pip install 'ftune[benchmarks]'") from error
    return evaluator, tasks, huggingface


def _tasks(tasks: Any, names: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's index, and what to ask it for: names, and task files as paths.

    Raises:
        RecipeError: a name is unknown, or a path is no task.
    """
    files = [name for name in names if _is_path(name)]
    folders = [name for name in files if Path(name).is_dir()]
    manager = tasks.TaskManager(include_path=folders or None, include_defaults=len(files) < len(names))
    wanted, problems = [], []
    for name in names:
        if name in folders:
            inside = Path(name).resolve()
            entries = [e for e in manager.task_index.values() if e.yaml_path is not None]
            found = sorted(
                e.name for e in entries if e.yaml_path.resolve().is_relative_to(inside) and e.kind.name != "TAG"
            )
            wanted += found
            problems += [] if found else [f"{name}: no file in this folder is a task of the harness."]
        elif name in files:
            wanted.append(name)
            problems += [] if Path(name).is_file() else [f"{name}: no such task file or folder."]
        elif name in manager.all_tasks:
            wanted.append(name)
        else:
            hint = suggestion(name, manager.all_tasks) if len(manager.all_tasks) < 100 else _near(name, manager)
            problems.append(f"no task '{name}'.{hint} A task file of your own is named by its path: ./{name}.yaml")
    if problems:
        raise RecipeError([Problem("", message, "--benchmark") for message in problems])
    return manager, list(dict.fromkeys(wanted))


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or name.startswith((".", "/"))


def _near(name: str, manager: Any) -> str:
    """A suggestion out of thousands of names, without the list of them."""
    import difflib

    near = difflib.get_close_matches(name, manager.all_tasks, n=3)
    return f" Did you mean {', '.join(repr(other) for other in near)}?" if near else ""


def _opened(path: Path, overrides: tuple[str, ...]) -> tuple[Target, Runtime]:
    """The target on the device.

    Raises:
        RecipeError: it labels rows rather than continuing text.
    """
    if kind_of(path) == "model":
        machine = look_at_machine(Path())
        threads, _ = choose_threads(machine, 1)
        target = open_target(path, overrides=overrides)
        runtime = Runtime(machine.device, "fp32", 1, threads, machine.device == "cpu")
    else:
        target, record, runtime = open_scorable(path, overrides)
        if not record.recipe.objective.generation_metrics:
            message = f"objective {record.recipe.objective.name} continues no text, and benchmarks ask for that."
            raise RecipeError([Problem("", message, str(path))])
    target.model.to(runtime.device)
    return target, runtime


def _wrapped(models: Any, target: Target, runtime: Runtime, batch_size: int, tick: Tick) -> Any:
    """The target as a model of the harness, that stops where `tick` raises."""
    from ftune.base import limit_of

    tokenizer = target.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(target.pad_id)
    config: Any = target.model.config
    limit = limit_of(config)
    taken = 0 if target.record is None else target.record.recipe.learner.positions_taken
    model = models.HFLM(
        pretrained=target.model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=None if limit is None else limit - taken,
        mixed_precision_dtype="bfloat16" if runtime.precision == "bf16" else None,
        trust_remote_code=False,
    )
    done = itertools.count()
    for name in ("_model_call", "_model_generate"):
        setattr(model, name, _ticking(getattr(model, name), done, tick))
    return model


def _ticking(call: Callable[..., Any], done: Iterator[int], tick: Tick) -> Callable[..., Any]:
    """`call` that tells `tick` first, which raises where the user wants an end."""

    def told(*arguments: Any, **options: Any) -> Any:
        tick("benchmark, forward passes", next(done), 0)
        return call(*arguments, **options)

    return told


@contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """Turn what the harness and its loader of data raise into our errors.

    Raises:
        MachineError: a task's data is not here.
        RecipeError: a task cannot be used.
    """
    try:
        yield
    except FtuneError:
        raise
    except (OSError, ConnectionError) as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MachineError(f"--benchmark {','.join(names)}: its data cannot be had: {what}") from error
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
        what = (str(error).strip().splitlines() or [""])[0]
        message = f"{','.join(names)}: the harness cannot run it: {type(error).__name__}: {what}"
        raise RecipeError([Problem("", message, "--benchmark")]) from error


def _scores(found: dict[str, Any]) -> dict[str, TaskScore]:
    """The harness's results by task; groups are among them."""
    return {name: _task_score(name, values, found) for name, values in found["results"].items()}


def _task_score(name: str, values: dict[str, Any], found: dict[str, Any]) -> TaskScore:
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        shown = metric if filtered == "none" else key
        metrics[shown] = {"value": float(value), "stderr": float(error) if isinstance(error, (int, float)) else None}
    rows = found.get("n-samples", {}).get(name, {}).get("effective")
    return TaskScore(metrics, rows, found.get("n-shot", {}).get(name), found.get("versions", {}).get(name))
