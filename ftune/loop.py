"""The training loop: a generator that makes one optimizer update per `next()`.

It owns no files and prints nothing; `run` consumes it. The loss of a step is the sum over every target of the whole
window, over all micro-batches and ranks, divided by their number once: neither accumulation nor the number of
processes changes the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ftune.ahead import Ahead, Laid, lay_out
from ftune.data.encode import Example
from ftune.data.order import Draw, Mix, Window, derived_seed, window
from ftune.errors import DivergedError, MachineError, MemoryExhausted
from ftune.meter import Meter
from ftune.optim import learning_rate, set_learning_rate
from ftune.plan import Plan

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ftune.objectives import Batch, Objective


@dataclass(frozen=True)
class StepResult:
    """What one update did.

    Args:
        step: updates done, counting this one.
        loss: nats per target over the whole window.
        grad_norm: before clipping.
        learning_rate: of this update.
        rows, tokens, targets: of the window over all ranks, without pads.
        seconds: wall time.
        data_wait: the part of it that was spent waiting for the rows, in seconds.
        flops: floating-point operations that the window needs, see `ftune.flops`.
        mfu: share of what the devices can do at most, where that is known.
        skipped: why no update was made, where loss or gradient were not finite; else nothing.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    rows: int
    tokens: int
    targets: int
    seconds: float
    data_wait: float
    flops: float
    mfu: float | None
    skipped: str = ""


STOPPED = (
    "Stopped before the update; the last checkpoint is good. Lower train.learning_rate, look at these rows, or allow "
    "some such steps with train.max_skipped_steps."
)


def training_module(model: torch.nn.Module, objective: Objective, chunk: int | None) -> torch.nn.Module:
    """A module whose forward is the objective's loss, or `scored`, so that DDP sees every call.

    Args:
        model: as training begins.
        objective: computes losses.
        chunk: how many targets have logits at once; None makes those of all tokens.
    """
    import torch

    objective = objective.in_chunks(chunk)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch, scored: bool = False) -> tuple[torch.Tensor | None, ...]:
            return objective.scored(self.model, batch) if scored else objective.loss(self.model, batch)

    return Loss()


def train_steps(
    plan: Plan,
    *,
    accelerator: Accelerator,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    examples: Sequence[Example],
    mix: Mix | None,
    pad_id: int,
    draw: Draw | None,
    first_step: int,
    interrupted: Callable[[], bool],
    meter: Meter,
    rate_of: Callable[[int], float] | None = None,
    may_skip: Callable[[], bool] = lambda: False,
) -> Generator[StepResult]:
    """Make updates `first_step` to `plan.steps - 1`. One result a step.

    Args:
        plan: every number of the run.
        accelerator: devices, precision and DDP; nothing else of it is used.
        module: `training_module` as accelerate prepared it.
        optimizer: over what learns.
        objective: collates and scores.
        examples: the encoded training split.
        mix: how often an epoch sees the examples of each source; None sees each once.
        pad_id: id that fills short rows; it is masked by length.
        draw: hides part of each example, where the objective does that.
        first_step: updates already done.
        interrupted: polled between micro-batches of a single process; ends the loop without a partial update.
        meter: counts operations and time.
        rate_of: learning rate of a step, from 0; None is the plan's schedule.
        may_skip: whether a step that is not finite is passed over; asked in all processes alike.

    Raises:
        DivergedError: loss or gradient norm is not finite; raised before the update.
        MemoryExhausted: the micro-batch does not fit.
    """
    module.train()
    card = accelerator.device if accelerator.device.type == "cuda" else None
    collate = objective.collate_packed if plan.packing else partial(objective.collate, pad_id=pad_id)

    def make(step: int) -> Laid:
        work = window(examples, step, batch_size=plan.batch_size, cut=plan.cut, seed=plan.seed, draw=draw, mix=mix)
        return lay_out(work, collate, accelerator.process_index, accelerator.num_processes, pin=card is not None)

    todo = range(first_step, plan.steps)
    with Ahead(make, todo, card).made() as ready:
        for step in todo:
            started = time.perf_counter()
            if plan.compile and step == first_step:
                _compile(make(0), accelerator, module, interrupted)
            with meter.span("data"):
                laid, waited = next(ready)
            rate = learning_rate(plan, step) if rate_of is None else rate_of(step)
            done = _update(plan, laid, rate, accelerator, module, optimizer, interrupted, meter, may_skip)
            if done is None:
                return
            yield _result(laid.window, done, time.perf_counter() - started, waited, meter)


def _compile(laid: Laid, accelerator: Accelerator, module: torch.nn.Module, interrupted: Callable[[], bool]) -> None:
    """Compile by a forward and backward pass over rows of the first step, whose gradient nobody uses.

    Always over the same rows: what is compiled may depend on their number, and a run that was cut goes on to the bit.

    Raises:
        MachineError: the compiler failed, or has no place for what it makes.
    """
    _, _, batch = laid.batches[0]
    there = {name: values.to(accelerator.device) for name, values in batch.items()}
    try:
        with accelerator.no_sync(module):
            accelerator.backward(module(there)[0].sum())
    except (RuntimeError, OSError) as error:
        if interrupted():  # Ctrl-C reaches the compiler's processes as well; the loop ends before its first update
            return
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MachineError(f"train.compile: compiling failed: {reason} Set train.compile to false.") from error


class Done(NamedTuple):
    """What an update did: loss per target, gradient norm before clipping, learning rate; or that there was none."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: str = ""


def _update(
    plan: Plan,
    laid: Laid,
    rate: float,
    accelerator: Accelerator,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    interrupted: Callable[[], bool],
    meter: Meter,
    may_skip: Callable[[], bool],
) -> Done | None:
    """One update of what learns, at learning rate `rate`; None, and no update, when interrupted.

    Raises:
        DivergedError: loss or gradient norm is not finite.
    """
    work = laid.window
    optimizer.zero_grad(set_to_none=True)
    outcome = _accumulate(plan, laid, accelerator, module, interrupted, meter)
    if outcome is None:
        return None
    loss, suspects = outcome
    parameters = [p for p in module.parameters() if p.requires_grad]
    with meter.span("clipping"):
        grad_norm = float(accelerator.clip_grad_norm_(parameters, plan.max_grad_norm or math.inf))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        found = _not_finite(work, loss, grad_norm, _over_ranks(suspects, accelerator))
        if may_skip():
            return Done(loss, grad_norm, rate, f"{found} No update was made.")
        raise DivergedError(f"{found} {STOPPED}")
    set_learning_rate(optimizer, rate)
    with meter.span("optimizer"):
        optimizer.step()
    return Done(loss, grad_norm, rate)


def _result(work: Window, done: Done, seconds: float, waited: float, meter: Meter) -> StepResult:
    flops = meter.flops(work)
    return StepResult(
        work.step + 1, done.loss, done.grad_norm, done.learning_rate, work.num_rows, work.num_tokens, work.num_targets,
        seconds, waited, flops, meter.mfu(flops, seconds), done.skipped,
    )  # fmt: skip


def _accumulate(
    plan: Plan,
    laid: Laid,
    accelerator: Accelerator,
    module: torch.nn.Module,
    interrupted: Callable[[], bool],
    meter: Meter,
) -> tuple[float, list[str]] | None:
    """Leave the window's gradient in the parameters.

    Returns:
        The window's loss per target, and the places of this rank's rows whose loss is not finite; or None when
        interrupted.
    """
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    ranks, work, weight = accelerator.num_processes, laid.window, laid.weight
    sums_of: list[tuple[tuple[Example, ...], torch.Tensor]] = []
    for position, (number, examples, batch) in enumerate(laid.batches):
        if ranks == 1 and interrupted():
            return None
        torch.manual_seed(derived_seed("micro-batch", plan.seed, work.step, number))
        there = {name: values.to(accelerator.device, non_blocking=True) for name, values in batch.items()}
        synchronise = nullcontext() if position == len(laid.batches) - 1 else accelerator.no_sync(module)
        try:
            with synchronise:
                with meter.span("forward"):
                    sums, _ = module(there)
                with meter.span("backward"):
                    accelerator.backward(sums.sum() * (weight * ranks / work.num_targets))
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise MemoryExhausted(_out_of_memory(plan)) from error
            raise
        sums_of.append((examples, sums.detach()))
    total = torch.cat([sums for _, sums in sums_of]).sum() * weight
    if ranks > 1:
        total = accelerator.reduce(total, reduction="sum")
    loss = float(total) / work.num_targets
    if math.isfinite(loss):
        return loss, []
    odd = [e.place for group, sums in sums_of for e, value in zip(group, sums.tolist(), strict=True)
           if not math.isfinite(value)]  # fmt: skip
    return loss, odd


def _over_ranks(places: list[str], accelerator: Accelerator) -> list[str]:
    from accelerate.utils import gather_object

    return list(gather_object(places)) if accelerator.num_processes > 1 else places


def _not_finite(work: Window, loss: float, grad_norm: float, suspects: list[str]) -> str:
    places = suspects or [example.place for batch in work.micro_batches for example in batch]
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return f"step {work.step + 1}: loss {loss}, gradient norm {grad_norm}; expected finite numbers. Rows: {shown}."


def _out_of_memory(plan: Plan) -> str:
    counted = plan.micro_batch_tokens is None
    most = plan.micro_batch_size if plan.micro_batch_tokens is None else plan.micro_batch_tokens // plan.max_length
    hint = f"Set train.micro_batch_size: {max(1, most // 2)}" if plan.micro_batch_size > 1 else "Lower data.max_length"
    size = f"micro_batch_size {plan.micro_batch_size}" if counted else f"{plan.micro_batch_tokens} tokens a forward"
    return (
        f"out of memory with {size} and max_length {plan.max_length}. {hint}, or "
        "train.activation_checkpointing: true. The global batch stays the same."
    )
