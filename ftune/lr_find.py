"""A learning-rate range test, and short runs at a few rates (Smith 2017, section 3.3, https://arxiv.org/abs/1506.01186).

The rate rises exponentially from step to step, on the recipe's own model, method, rows and batch. The loss falls once
the rate is large enough to learn and rises once it is too large. It is smoothed by an exponential mean,

    m_i = 0.9 m_(i-1) + 0.1 loss_i,   smoothed_i = m_i / (1 - 0.9^i)

and the test ends early where that is 4 times its smallest value so far. The suggestion is a tenth of the rate with the
smallest smoothed loss: at that rate itself the loss is about to rise. docs/results.md has what was tried.

Nothing is written, and what learned is thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ftune.begin import open_trial
from ftune.decide import make_plan
from ftune.errors import DivergedError, Problem, RecipeError
from ftune.evaluation import mean_loss, row_losses
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.loop import StepResult, train_steps
from ftune.model import load_trainable, trainable_state
from ftune.optim import build_optimizer
from ftune.plan import Plan
from ftune.prepare import prepare
from ftune.quantities import Duration
from ftune.session import Run
from ftune.signals import StopFlag
from ftune.start import pad_id_of

if TYPE_CHECKING:
    import torch

SMOOTHING = 0.9
"""Weight of what was before in the mean of losses."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times its smallest."""
BELOW_MINIMUM = 10.0
"""The suggestion is the rate of the smallest smoothed loss, divided by this."""
GRID_FACTOR = math.sqrt(10)
"""Between neighbours of the grid."""


@dataclass(frozen=True)
class Point:
    """One step of the test: the loss is of the rows before the update at this rate, in nats per target."""

    step: int
    learning_rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class Trial:
    """A short run at one rate.

    Args:
        learning_rate: its peak.
        steps: made.
        train_loss, eval_loss: of the last step and of the held-out rows after it; None where it diverged.
        is_default: whether the rate is the method's default.
        is_best: whether no other has a smaller eval loss.
    """

    learning_rate: float
    steps: int
    train_loss: float | None
    eval_loss: float | None
    is_default: bool
    is_best: bool = False


@dataclass(frozen=True)
class Finding:
    """What was found; `suggestion` is None where the loss never fell."""

    method: str
    default: float
    points: list[Point]
    diverged: bool
    suggestion: float | None
    trials: list[Trial]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `ftune lr-find --json`."""
        return asdict(self)


def lr_find(
    loaded: Loaded,
    *,
    first: float,
    last: float,
    steps: int,
    grid: int,
    budget: str,
    listener: Listener,
    stop: StopFlag,
) -> Finding:
    """Run the test on a recipe, and the grid if one is asked for.

    Args:
        loaded: the recipe; its run folder is neither read nor written.
        first: learning rate of the first step, above 0.
        last: of the last step, above `first`.
        steps: of the test, at least 2.
        grid: number of short runs round the suggestion; 0 makes none.
        budget: how long each is, as `train.duration`.
        listener: hears of progress.
        stop: polled.

    Raises:
        RecipeError: the method has no learning rate, or there are no held-out rows for a grid.
        FtuneError: whatever training would have run into at once.
    """
    started = time.monotonic()
    loaded = _for_one_process(loaded)
    _refuse(loaded, first, last, grid, budget)

    def tick(what: str, done: int, total: int) -> None:
        stop.check()
        listener.phase(what, done, total)

    run = open_trial(loaded, prepare(loaded, tick), listener, stop)
    start = {name: tensor.clone() for name, tensor in trainable_state(run.model).items()}
    points, diverged = range_test(run, rates(first, last, steps))
    suggestion = suggest(points)
    method = loaded.recipe.learner
    trials = []
    if grid and suggestion is not None:
        trials = _grid(run, start, suggestion, grid, budget)
    return Finding(method.name, _default(run), points, diverged, suggestion, trials, time.monotonic() - started)


def _for_one_process(loaded: Loaded) -> Loaded:
    """The same steps in one process: neither batch nor gradient depends on their number."""
    alone = loaded.recipe.distributed.model_copy(update={"devices": 1})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"distributed": alone, "tracking": []}))


def _refuse(loaded: Loaded, first: float, last: float, grid: int, budget: str) -> None:
    recipe, problems = loaded.recipe, []
    if recipe.learner.bound(recipe.objective).fits_at_once:
        message = "is fitted to all rows at once by its own solver, and has no learning rate to find."
        problems.append(Problem("method", f"{recipe.learner.name} {message}", loaded.source("method.name")))
    if not 0 < first < last:
        problems.append(Problem("", f"expected 0 < --from < --to, received {first:g} and {last:g}.", "--from, --to"))
    if grid and recipe.data.eval is None:
        message = "the runs of a grid are compared on held-out rows. Give data.eval a path or a share such as '5%'."
        problems.append(Problem("data.eval", message, "--grid"))
    try:
        Duration.parse(budget)
    except ValueError as error:
        problems.append(Problem("", f"{error}.", "--budget"))
    if problems:
        raise RecipeError(problems)


def rates(first: float, last: float, steps: int) -> list[float]:
    """From `first` to `last` in equal factors."""
    return [first * (last / first) ** (i / (steps - 1)) for i in range(steps)]


def range_test(run: Run, rising: Sequence[float]) -> tuple[list[Point], bool]:
    """One step at each rate, and whether the loss diverged before the last."""
    points: list[Point] = []
    mean = 0.0
    plan = run.plan.model_copy(update={"steps": len(rising)})
    try:
        for result in _steps(run, plan, run.optimizer, "range test", lambda step: rising[step]):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * result.loss
            smoothed = mean / (1 - SMOOTHING**result.step)
            points.append(Point(result.step, result.learning_rate, result.loss, smoothed))
            if smoothed > DIVERGED * min(point.smoothed for point in points):
                return points, True
    except DivergedError:
        if not points:
            raise  # the loss was not finite before anything was learned: no rate is to blame
        return points, True
    return points, False


def suggest(points: Sequence[Point]) -> float | None:
    """A tenth of the rate with the smallest smoothed loss, to two digits; None where the loss never fell."""
    lowest = min(points, key=lambda point: point.smoothed)
    return None if lowest is points[0] else float(f"{lowest.learning_rate / BELOW_MINIMUM:.1e}")


def _default(run: Run) -> float:
    return run.loaded.recipe.learner.default_learning_rate(run.prepared.facts.model.width)


def _grid(run: Run, start: dict[str, torch.Tensor], middle: float, count: int, budget: str) -> list[Trial]:
    """Short runs at rates round `middle`, and at the method's default; from the same start, over the same rows."""
    default = _default(run)
    wanted = [float(f"{middle * GRID_FACTOR ** (i - (count - 1) / 2):.2g}") for i in range(count)]
    wanted = sorted({*wanted, default})
    trials = [_trial(run, start, rate, budget, f"run {i} of {len(wanted)}") for i, rate in enumerate(wanted, start=1)]
    scores = [trial.eval_loss for trial in trials if trial.eval_loss is not None]
    return [replace(trial, is_best=bool(scores) and trial.eval_loss == min(scores)) for trial in trials]


def _trial(run: Run, start: dict[str, torch.Tensor], rate: float, budget: str, what: str) -> Trial:
    recipe = run.loaded.recipe
    section = recipe.train.model_copy(update={"duration": budget, "learning_rate": rate, "max_minutes": None})
    asked = recipe.model_copy(update={"train": section})
    plan = make_plan(asked, run.prepared.facts, run.loaded.source).model_copy(update={"compile": False})
    load_trainable(run.model, start)
    optimizer = build_optimizer(plan, recipe.learner, run.model)
    is_default, made, last = rate == _default(run), 0, math.nan
    try:
        for result in _steps(run, plan, optimizer, f"{what}, rate {rate:g}"):
            made, last = result.step, result.loss
        return Trial(rate, made, last, _eval_loss(run), is_default)
    except DivergedError:
        return Trial(rate, made, None, None, is_default)


def _steps(
    run: Run, plan: Plan, optimizer: torch.optim.Optimizer, what: str, rate_of: Callable[[int], float] | None = None
) -> Any:
    """The loop from its first step, shown as `what`; ends with `Interrupted` where that was asked for."""
    dataset = run.prepared.dataset
    found: Sequence[StepResult] | Any = train_steps(
        plan,
        accelerator=run.accelerator,
        module=run.module,
        optimizer=optimizer,
        objective=run.loaded.recipe.objective,
        examples=dataset.train.examples,
        mix=dataset.train.mix,
        pad_id=pad_id_of(run.prepared.tokenizer),
        draw=run.prepared.draw,
        first_step=0,
        interrupted=lambda: run.stop.set,
        meter=run.meter,
        rate_of=rate_of,
    )
    for result in found:
        run.listener.phase(what, result.step, plan.steps)
        yield result
        run.stop.check()
    run.stop.check()


def _eval_loss(run: Run) -> float:
    """Nats per target of the held-out rows.

    Raises:
        DivergedError: a row's loss is not finite.
    """
    split = run.prepared.dataset.eval
    if split is None:
        raise AssertionError("a grid without held-out rows was refused")
    losses = row_losses(
        run.module,
        split.examples,
        objective=run.loaded.recipe.objective,
        accelerator=run.accelerator,
        pad_id=pad_id_of(run.prepared.tokenizer),
        cut=run.plan.padded_cut,
        draw=run.prepared.draw,
        tick=lambda done, total: run.stop.check(),
    )
    return mean_loss(losses)
