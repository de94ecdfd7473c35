"""Train: joins the parts, plan -> model and data -> loop -> checkpoint -> report. The one place with side effects.

The same call starts a run, goes on with one that was cut, or finishes one whose training is done. What a run needs to
go on is in its checkpoints; everything else is recomputed, since order and randomness are functions of the seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from ftune import drift, finish, stopping
from ftune.begin import open_run
from ftune.checkpoints import prune
from ftune.data.build import Split
from ftune.data.order import first_epoch
from ftune.device import peak_memory_bytes
from ftune.errors import DivergedError, Interrupted, MemoryExhausted
from ftune.evaluation import forward_scores, mean_loss, row_losses
from ftune.generation import predict, text_scores
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.loop import StepResult, train_steps
from ftune.model import trainable_state
from ftune.optim import optimizer_state
from ftune.out_of_memory import cut_smaller
from ftune.prepare import output_dir_of, prepare
from ftune.profile_view import meter_of, publish_profile
from ftune.report import Report
from ftune.session import Run
from ftune.signals import StopFlag
from ftune.start import pad_id_of
from ftune.state import TrainState
from ftune.store import OnOperation, Store
from ftune.target import SETTLED


def train(
    loaded: Loaded,
    *,
    listener: Listener,
    stop: StopFlag,
    overwrite: bool = False,
    on_operation: OnOperation | None = None,
    profile_steps: int | None = None,
) -> Report:
    """Run the recipe to its end and return the report.

    Args:
        loaded: the recipe. The caller holds the lock of its run folder.
        listener: hears of progress.
        stop: set by signals; polled in every phase.
        overwrite: delete what an earlier run left in the folder first.
        on_operation: fault injection for tests, see `Store`.
        profile_steps: how many steps of this start the profiler looks at; None looks at none.

    Raises:
        FtuneError: whatever went wrong, with its exit code. `Interrupted` after saving.
    """
    folder = output_dir_of(loaded)
    drift.refuse_foreign_folder(folder, loaded.text)

    def tick(what: str, done: int, total: int) -> None:
        stop.check()
        listener.phase(what, done, total)

    prepared = prepare(loaded, tick, None if overwrite else folder)
    for note in (f"data: {prepared.dataset.story}", *prepared.dataset.notes):
        listener.note(note)
    run = open_run(loaded, prepared, folder, listener, stop, Store(folder, on_operation), overwrite)
    run.meter = meter_of(run, profile_steps)
    if stopping.goes_on(run.state, run.plan):
        run.state.finished = None
        _train(run)
    return finish.finish(run)


def _steps(run: Run) -> Generator[StepResult]:
    """The updates that are left to make."""
    if run.method.fits_at_once:
        return _fit(run)
    return train_steps(
        run.plan,
        accelerator=run.accelerator,
        module=run.module,
        optimizer=run.optimizer,
        objective=run.loaded.recipe.objective,
        examples=run.prepared.dataset.train.examples,
        mix=run.prepared.dataset.train.mix,
        pad_id=pad_id_of(run.prepared.tokenizer),
        draw=run.prepared.draw,
        first_step=run.state.step,
        interrupted=lambda: run.stop.set,
        meter=run.meter,
        may_skip=lambda: run.state.skipped_steps < run.loaded.recipe.train.max_skipped_steps,
    )


def _fit(run: Run) -> Generator[StepResult]:
    """One step over all rows; all processes get what the first one fitted. No gradient is taken: its norm is 0."""
    if run.state.step > 0:
        return
    started, train = time.perf_counter(), run.prepared.dataset.train
    rows = first_epoch(train.examples, train.mix, run.plan.seed)
    if run.leads and (remark := run.method.fit(run.model, rows)) is not None:
        run.listener.note(remark)
    if run.accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(broadcast(parameter.data))
    seconds = time.perf_counter() - started
    loss = _score(run, train)["loss"]
    yield StepResult(1, loss, 0.0, 0.0, len(rows), train.report.tokens, train.report.targets, seconds, 0.0, 0.0, None)


def _train(run: Run) -> None:
    """Make the steps that are left: log, evaluate, save, stop."""
    plan, state, guard = run.plan, run.state, run.prepared.dataset.guard
    run.listener.planned(plan, state.step)
    if state.step == 0 and (not state.baseline or state.guard_baseline.keys() != guard.keys()):
        state.guard_baseline = {name: _score(run, split) for name, split in guard.items()}
        state.baseline = _evaluate(run, generate=False)
    elif state.evaluated_step < state.step and _due(state.step, plan.eval_every, plan.steps):
        _after_step(run)  # the run was cut between this step and its evaluation
    with run.meter:
        while not _made_all_steps(run):
            pass
    if state.finished is None:
        _save_and_leave(run)


def _made_all_steps(run: Run) -> bool:
    """Consume the loop to its end; False where a step did not fit and is to be made again in smaller parts."""
    plan, state = run.plan, run.state
    try:
        with closing(_steps(run)) as steps:  # whatever ends training, no thread stays behind
            while state.finished is None and not _interrupted_anywhere(run):
                result = next(steps, None)
                if result is None:
                    break
                _count(state, result)
                memory = peak_memory_bytes(plan.device)
                rates = {
                    "tokens_per_second": result.tokens / result.seconds,
                    "flops_per_second": result.flops / result.seconds,
                }
                found = {k: v for k, v in asdict(result).items() if k != "step" and v != ""}
                run.log("step", memory_bytes=memory, **rates, **found)
                if result.skipped:
                    run.listener.note(result.skipped)
                run.listener.step(result, plan, memory)
                _after_step(run)
                if run.meter.after_step(result, last=state.finished is not None):
                    publish_profile(run, memory)
    except MemoryExhausted as error:
        cut_smaller(run, error, lambda: _save(run))
        return False
    return True


def _save_and_leave(run: Run) -> None:
    """Save this step and end, because a signal asked for it."""
    _save(run)
    number = run.stop.signal_number or 15
    done = f"step {run.state.step} of {run.plan.steps} is saved"
    raise Interrupted(number, f"interrupted; {done}. The same command goes on.")


def _count(state: TrainState, result: StepResult) -> None:
    state.step = result.step
    state.skipped_steps += bool(result.skipped)
    state.rows_seen += result.rows
    state.tokens_seen += result.tokens
    state.targets_seen += result.targets
    state.flops += result.flops
    state.train_seconds += result.seconds


def _due(step: int, every: int | None, last: int) -> bool:
    return every is not None and (step % every == 0 or step == last)


def _after_step(run: Run) -> None:
    """Evaluate and save when due; decide whether to end."""
    plan, state = run.plan, run.state
    better = False
    if _due(state.step, plan.eval_every, plan.steps):
        with run.meter.span("eval"):
            metrics = _evaluate(run, generate=_due(state.step, plan.generate_every, -1))
            _score_guards(run)
        state.evaluated_step = state.step
        better = stopping.note_evaluation(state, metrics.get("loss"), plan)
        state.finished = stopping.reason_to_stop(state, plan)
    if state.step == plan.steps:
        state.finished = "complete"
    elif plan.max_minutes is not None and _anywhere(run, time.monotonic() - run.started) >= 60 * plan.max_minutes:
        state.finished = state.finished or "max_minutes"
    asked, run.stop.save_asked = run.stop.save_asked, False
    asked = _anywhere(run, asked) > 0
    if better or asked or state.finished is not None or _due(state.step, plan.checkpoint_every, plan.steps):
        with run.meter.span("save"):
            _save(run)


def _interrupted_anywhere(run: Run) -> bool:
    """Whether any process was told to stop; all of them learn of it."""
    number = int(_anywhere(run, run.stop.signal_number or 0))
    run.stop.signal_number = number or run.stop.signal_number  # one may have come while they were asked
    return number > 0


def _anywhere(run: Run, value: float) -> float:
    """The largest `value` of any process: what ends or delays a step must be decided alike in all."""
    if run.accelerator.num_processes == 1:
        return value
    import torch

    here = torch.tensor([value], dtype=torch.float32, device=run.accelerator.device)
    return float(run.accelerator.gather(here).max())


def _evaluate(run: Run, *, generate: bool) -> dict[str, float]:
    """Score the held-out rows; without any, an empty dict."""
    split, plan = run.prepared.dataset.eval, run.plan
    if split is None:
        return {}
    metrics = _score(run, split)
    if generate and run.loaded.recipe.objective.generates(plan.metrics):
        answers = predict(
            run.model,
            split.samples,
            run.prepared.renderer,
            pad_id=pad_id_of(run.prepared.tokenizer),
            max_new_tokens=run.loaded.recipe.eval.max_new_tokens,
            batch_size=plan.eval_batch_size,
            tick=lambda done, total: _during_evaluation(run, done, total),
        )
        scores = text_scores(answers, plan.metrics, run.prepared.functions, intervals=False)
        metrics |= {name: score.value for name, score in scores.items()}
    run.log("eval", **metrics)
    run.listener.evaluated(run.state.step, metrics)
    return metrics


def _score_guards(run: Run) -> None:
    """Where the rule of forgetting is on, score the guard sets."""
    state = run.state
    if run.plan.max_forgetting is None:
        return
    state.guard_losses = {name: _score(run, split)["loss"] for name, split in run.prepared.dataset.guard.items()}
    for name, rise in stopping.rises(state).items():
        run.log("guard", name=name, loss=state.guard_losses[name], rise=rise)
    shown = {f"guard {name}": loss for name, loss in state.guard_losses.items()}
    run.listener.evaluated(state.step, shown)


def _score(run: Run, split: Split) -> dict[str, float]:
    """What one forward pass says of the rows of `split`.

    Raises:
        DivergedError: a row's loss is not finite.
    """
    objective, dataset = run.loaded.recipe.objective, run.prepared.dataset
    try:
        losses = row_losses(
            run.module,
            split.examples,
            objective=objective,
            accelerator=run.accelerator,
            pad_id=pad_id_of(run.prepared.tokenizer),
            cut=run.plan.padded_cut,
            draw=run.prepared.draw,
            tick=lambda done, total: _during_evaluation(run, done, total),
        )
    except DivergedError as error:
        raise DivergedError(f"evaluation after step {run.state.step}: {error}") from error
    functions = run.prepared.functions
    scores = forward_scores(losses, objective, dataset.labels, run.plan.metrics, functions, intervals=False)
    return {name: score.value for name, score in scores.items()} | {"loss": mean_loss(losses)}


def _during_evaluation(run: Run, done: int, total: int) -> None:
    run.listener.phase("evaluating", done, total)
    if run.accelerator.num_processes == 1 and run.stop.set:
        _save_and_leave(run)


def _save(run: Run) -> None:
    """Publish a checkpoint of this step, unless the same is on disk already. All processes wait for it."""
    if run.leads and run.saved != run.state:
        publish_checkpoint(run)
    run.saved = run.state.model_copy()
    run.accelerator.wait_for_everyone()


def publish_checkpoint(run: Run) -> None:
    """Weights that learn, optimizer, state: whole or absent on disk."""
    from safetensors.torch import save_file

    state = run.state

    def write(folder: Path) -> None:
        save_file(trainable_state(run.model), folder / "weights.safetensors")
        if state.step > 0 and not run.method.fits_at_once:
            save_file(optimizer_state(run.optimizer, run.model), folder / "optimizer.safetensors")
        (folder / "state.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
        if (settled := run.method.settled(run.model)) is not None:
            (folder / SETTLED).write_text(json.dumps(settled), encoding="utf-8")

    run.store.sync("metrics.jsonl")  # what a checkpoint has learned from stays in the log
    facts = {"step": state.step, "frozen_hash": run.frozen_hash, "base": run.prepared.facts.model.fingerprint}
    run.store.publish(f"checkpoints/step_{state.step:06d}", write, facts, run.plan.checkpoint_bytes)
    prune(run.store, run.plan.keep, {state.step, stopping.model_step(state, run.plan)})
    run.log("checkpoint")
