"""Train: joins the parts, plan -> model and data -> loop -> checkpoint -> report. The one place with side effects.

The same call starts a run, goes on with one that was cut, or finishes one whose training is done. What a run needs to
go on is in its checkpoints; everything else is recomputed, since order and randomness are functions of the seed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune import drift, finish, provenance
from ftune.data.build import Split
from ftune.data.order import derived_seed, window
from ftune.device import build_accelerator, peak_memory_bytes, torch_dtype
from ftune.drift import data_files
from ftune.errors import ArtifactError, DivergedError, Interrupted, Problem, RecipeError
from ftune.evaluation import forward_scores, mean_loss, predict, row_losses, text_scores
from ftune.features import FeatureSource, cache_folder
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.loop import StepResult, train_steps, training_module
from ftune.manifest import read_manifest
from ftune.model import frozen_fingerprint, load_trainable, trainable_state
from ftune.optim import build_optimizer, load_optimizer_state, optimizer_state
from ftune.plan import Plan
from ftune.prepare import Prepared, output_dir_of, prepare
from ftune.report import Report
from ftune.signals import StopFlag
from ftune.start import pad_id_of, record_json
from ftune.state import TrainState
from ftune.store import OnOperation, Store, newest_good, prune
from ftune.target import SETTLED, attached

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from ftune.methods import Method


@dataclass
class Run:
    """A run in progress: what was decided, what is loaded, where it stands."""

    loaded: Loaded
    prepared: Prepared
    plan: Plan
    folder: Path
    store: Store
    listener: Listener
    stop: StopFlag
    accelerator: Accelerator
    model: torch.nn.Module
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState
    saved: TrainState | None = None
    frozen_hash: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def method(self) -> Method:
        """What holds the weights, once the objective is known."""
        return self.loaded.recipe.learner.bound(self.loaded.recipe.objective)

    def log(self, event: str, **values: Any) -> None:
        """Append one event to `metrics.jsonl` and to the trackers."""
        if self.leads:
            written = {key: _json_number(value) for key, value in values.items()}
            self.store.append_json("metrics.jsonl", {"event": event, "step": self.state.step, **written})
            if self.loaded.recipe.tracking and event in ("step", "eval"):
                numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
                self.accelerator.log(numbers, step=self.state.step)


def _json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are written as text rather than hidden."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def train(
    loaded: Loaded,
    *,
    listener: Listener,
    stop: StopFlag,
    overwrite: bool = False,
    on_operation: OnOperation | None = None,
) -> Report:
    """Run the recipe to its end and return the report.

    Args:
        loaded: the recipe. The caller holds the lock of its run folder.
        listener: hears of progress.
        stop: set by signals; polled in every phase.
        overwrite: delete what an earlier run left in the folder first.
        on_operation: fault injection for tests, see `Store`.

    Raises:
        FtuneError: whatever went wrong, with its exit code. `Interrupted` after saving.
    """
    folder = output_dir_of(loaded)
    drift.refuse_foreign_folder(folder)

    def tick(what: str, done: int, total: int) -> None:
        stop.check()
        listener.phase(what, done, total)

    prepared = prepare(loaded, tick)
    run = _open(loaded, prepared, folder, listener, stop, Store(folder, on_operation), overwrite)
    if _goes_on(run):
        run.state.finished = None
        _train(run)
    return finish.finish(run)


def _goes_on(run: Run) -> bool:
    """Whether steps are left to make, also after the recipe was extended."""
    state, plan = run.state, run.plan
    if state.finished == "early_stopping" and plan.patience is not None:
        return state.evaluations_without_gain < plan.patience
    return state.finished is None or state.step < plan.steps


def _open(
    loaded: Loaded,
    prepared: Prepared,
    folder: Path,
    listener: Listener,
    stop: StopFlag,
    disk: Store,
    overwrite: bool,
) -> Run:
    """Start a run or take up one that is there. Nothing is written before everything is known to fit."""
    plan = prepared.plan
    exists = (folder / "run.json").is_file() and not overwrite
    if exists:
        drift.refuse_drift(folder, loaded, provenance.fingerprints(prepared))
        stored = Plan.from_json(json.loads((folder / "plan.json").read_text(encoding="utf-8")))
        plan = plan.continuing(stored, loaded.recipe)
    accelerator = build_accelerator(plan.runtime, tracking=tuple(loaded.recipe.tracking), folder=folder)
    if accelerator.is_main_process:
        prepared.dataset.train.report.notes.extend(disk.sweep())
    accelerator.wait_for_everyone()
    checkpoint = _newest_checkpoint(loaded, plan, folder, listener) if exists else None
    if accelerator.is_main_process:
        _write_head(disk, loaded, prepared, plan, overwrite=overwrite)
    accelerator.wait_for_everyone()
    listener.phase("loading the model", 0, 0)
    recipe = loaded.recipe
    model = attached(prepared.start, prepared.record, prepared.tokenizer, torch_dtype(plan.frozen_dtype))
    stop.check()
    if plan.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    objective = recipe.objective.bound(prepared.dataset.labels, prepared.dataset.label_counts)
    module = accelerator.prepare_model(training_module(model, objective))
    optimizer = build_optimizer(plan, recipe.learner, model)
    run = Run(loaded, prepared, plan, folder, disk, listener, stop, accelerator, model, module, optimizer, TrainState())
    if recipe.learner.storage_constraint() is not None:
        run.frozen_hash = frozen_fingerprint(model)  # attaching changed the base: a resumed run must change it equally
    _take_up(run, checkpoint)
    _read_features(run, None if checkpoint is None else checkpoint[1])
    if recipe.tracking:
        accelerator.init_trackers("ftune", config={"recipe": json.dumps(recipe.model_dump(mode="json"))})
    return run


def _write_head(disk: Store, loaded: Loaded, prepared: Prepared, plan: Plan, *, overwrite: bool) -> None:
    """What a run folder says of itself before training."""
    if overwrite:
        for name in sorted(drift.OURS - {".lock", ".lock.json"}):
            disk.remove(name)
    there = sum(file.stat().st_size for file in (disk.root / "checkpoints").rglob("*") if file.is_file())
    disk.require_space(max(plan.checkpoint_bytes, plan.disk_bytes - there), "this run")
    disk.write_text("recipe.yaml", loaded.text)
    disk.write_json("resolved.json", record_json(prepared.record))
    disk.write_json("plan.json", plan.to_json())
    begun = disk.root / "run.json"
    if begun.is_file():
        disk.remove("report.json")  # a run that goes on is not finished
        first = json.loads(begun.read_text(encoding="utf-8"))
        disk.write_json("run.json", {**first, "files": data_files(loaded.recipe, loaded.folder)})  # they may have moved
    else:
        disk.write_json("run.json", provenance.describe(loaded, prepared))


def _newest_checkpoint(loaded: Loaded, plan: Plan, folder: Path, listener: Listener) -> tuple[int, Path] | None:
    """The newest checkpoint that verifies; None when there is none yet.

    Raises:
        ArtifactError: there are checkpoints, and none is good.
        RecipeError: the run has made more steps than the recipe now asks for.
    """
    found, skipped = newest_good(folder)
    for message in skipped:
        listener.note(message)
    if found is None and skipped:
        message = f"{folder}: every checkpoint is damaged. Start anew with --overwrite."
        raise ArtifactError("\n".join([message, *skipped]))
    if found is not None and found[0] > plan.steps:
        message = f"the run has made {found[0]} steps already, more than the {plan.steps} asked for now. Raise it."
        raise RecipeError([Problem("train.duration", message, loaded.source("train.duration"))])
    return found


def _take_up(run: Run, checkpoint: tuple[int, Path] | None) -> None:
    """Put the checkpoint's weights, optimizer and state in place, and cut the log back to its step.

    Raises:
        ArtifactError: it does not fit the model.
    """
    if checkpoint is None:
        _look_at_rows(run)
        if run.leads:
            run.store.keep_lines("metrics.jsonl", lambda event: False)
        run.log("start", time=provenance.now())
        return
    from safetensors.torch import load_file

    step, folder = checkpoint
    if read_manifest(folder)["frozen_hash"] != run.frozen_hash:
        raise ArtifactError(f"{folder}: attaching the method gave other base weights than when the run began.")
    run.state = TrainState.model_validate_json((folder / "state.json").read_text(encoding="utf-8"))
    load_trainable(run.model, load_file(folder / "weights.safetensors"))
    if step > 0 and not run.method.fits_at_once:
        load_optimizer_state(run.optimizer, run.model, load_file(folder / "optimizer.safetensors"))
    run.saved = run.state.model_copy()
    if run.leads:
        run.store.keep_lines("metrics.jsonl", lambda event: event["step"] <= step)
    run.log("resume", time=provenance.now())
    run.listener.note(f"goes on after step {step} of {run.plan.steps}")


def _read_features(run: Run, checkpoint: Path | None) -> None:
    """Where the method learns from what a frozen body says of rows, let it settle on how, and read all rows.

    What a run settled on is in its checkpoints; processes settle on what the first one does.
    """
    method, dataset = run.method, run.prepared.dataset
    body = method.frozen_body(run.model)
    if body is None:
        return
    features = _feature_source(run, body)
    if checkpoint is not None:
        settled = json.loads((checkpoint / SETTLED).read_text(encoding="utf-8"))
    else:
        method.settle(run.model, dataset.train.examples, features, derived_seed("settle", run.plan.seed))
        settled = method.settled(run.model)
        if run.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            settled = broadcast_object_list([settled])[0]
    method.put_back(run.model, settled)

    def read(split: Split) -> Split:
        return replace(split, examples=method.featurise(run.model, split.examples, features))

    held, test = (None if split is None else read(split) for split in (dataset.eval, dataset.test))
    guard = {name: read(split) for name, split in dataset.guard.items()}
    dataset = replace(dataset, train=read(dataset.train), eval=held, test=test, guard=guard)
    run.prepared = replace(run.prepared, dataset=dataset)


def _feature_source(run: Run, body: PreTrainedModel) -> FeatureSource:
    """Features of the frozen body, kept in the user's cache."""
    plan, prepared = run.plan, run.prepared
    identity = {"base": prepared.facts.model.fingerprint, "dtype": plan.frozen_dtype, "precision": plan.precision}
    if prepared.start.base.random:  # its fingerprint tells neither seed nor size
        identity["weights"] = frozen_fingerprint(body)

    def tick(done: int, total: int) -> None:
        run.stop.check()
        run.listener.phase("reading rows with the frozen model", done, total)

    return FeatureSource(
        body=body,
        cache=cache_folder(os.environ, Path.home()),
        identity=identity,
        batch_size=plan.eval_batch_size,
        pad_id=pad_id_of(prepared.tokenizer),
        autocast=run.accelerator.autocast,
        tick=tick,
    )


def _steps(run: Run) -> Iterator[StepResult]:
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
        pad_id=pad_id_of(run.prepared.tokenizer),
        draw=run.prepared.draw,
        first_step=run.state.step,
        interrupted=lambda: run.stop.set,
    )


def _fit(run: Run) -> Iterator[StepResult]:
    """One step over all rows; all processes get what the first one fitted. No gradient is taken: its norm is 0."""
    if run.state.step > 0:
        return
    started, train = time.perf_counter(), run.prepared.dataset.train
    if run.leads and (remark := run.method.fit(run.model, train.examples)) is not None:
        run.listener.note(remark)
    if run.accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(broadcast(parameter.data))
    seconds = time.perf_counter() - started
    loss, rows = _score(run, train)["loss"], len(train.examples)
    yield StepResult(1, loss, 0.0, 0.0, rows, train.report.tokens, train.report.targets, seconds)


def _look_at_rows(run: Run) -> None:
    """Let the method look at training rows once; every process looks at the same."""
    import torch

    plan, objective = run.plan, run.loaded.recipe.objective
    pad_id = pad_id_of(run.prepared.tokenizer)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for step in range(plan.steps_per_epoch):
            work = window(
                run.prepared.dataset.train.examples, step, batch_size=plan.batch_size,
                micro_batch_size=plan.micro_batch_size, seed=plan.seed, draw=run.prepared.draw,
            )  # fmt: skip
            for examples in work.micro_batches:
                run.stop.check()
                batch = objective.collate(list(examples), pad_id)
                yield {name: value.to(run.accelerator.device) for name, value in batch.items()}

    torch.manual_seed(derived_seed("prepare", plan.seed))
    run.method.prepare(run.model, batches(), objective.loss)


def _train(run: Run) -> None:
    """Consume the loop: log, evaluate, save, stop."""
    plan, state = run.plan, run.state
    run.listener.planned(plan, state.step)
    if state.step == 0 and not state.baseline:
        state.guard_baseline = {name: _score(run, split) for name, split in run.prepared.dataset.guard.items()}
        state.baseline = _evaluate(run, generate=False)
    elif state.evaluated_step < state.step and _due(state.step, plan.eval_every, plan.steps):
        _after_step(run)  # the run was cut between this step and its evaluation
    steps = _steps(run)
    while state.finished is None and not _interrupted_anywhere(run):
        result = next(steps, None)
        if result is None:
            break
        _count(state, result)
        memory = peak_memory_bytes(plan.device)
        run.log("step", memory_bytes=memory, **{k: v for k, v in asdict(result).items() if k != "step"})
        run.listener.step(result, plan, memory)
        _after_step(run)
    if state.finished is None:
        _save_and_leave(run)


def _save_and_leave(run: Run) -> None:
    """Save this step and end, because a signal asked for it."""
    _save(run)
    number = run.stop.signal_number or 15
    done = f"step {run.state.step} of {run.plan.steps} is saved"
    raise Interrupted(number, f"interrupted; {done}. The same command goes on.")


def _count(state: TrainState, result: StepResult) -> None:
    state.step = result.step
    state.rows_seen += result.rows
    state.tokens_seen += result.tokens
    state.targets_seen += result.targets
    state.train_seconds += result.seconds


def _due(step: int, every: int | None, last: int) -> bool:
    return every is not None and (step % every == 0 or step == last)


def _after_step(run: Run) -> None:
    """Evaluate and save when due; decide whether to end."""
    plan, state = run.plan, run.state
    better = False
    if _due(state.step, plan.eval_every, plan.steps):
        metrics = _evaluate(run, generate=_due(state.step, plan.generate_every, -1))
        state.evaluated_step = state.step
        better = _note_best(state, metrics["loss"], plan)
        if plan.patience is not None and state.evaluations_without_gain >= plan.patience:
            state.finished = "early_stopping"
    if state.step == plan.steps:
        state.finished = "complete"
    elif plan.max_minutes is not None and _anywhere(run, time.monotonic() - run.started) >= 60 * plan.max_minutes:
        state.finished = state.finished or "max_minutes"
    asked, run.stop.save_asked = run.stop.save_asked, False
    asked = _anywhere(run, asked) > 0
    if better or asked or state.finished is not None or _due(state.step, plan.checkpoint_every, plan.steps):
        _save(run)


def _note_best(state: TrainState, loss: float, plan: Plan) -> bool:
    """Update the best and the early-stopping counter; no loss that is not finite counts. True for a new best."""
    if math.isfinite(loss) and (state.watched_loss is None or loss < state.watched_loss - plan.min_delta):
        state.watched_loss, state.evaluations_without_gain = loss, 0
    else:
        state.evaluations_without_gain += 1
    if plan.best is None:
        state.best_loss = state.best_step = None  # its checkpoint is not protected, and may be gone later
        return False
    better = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
    if better:
        state.best_loss, state.best_step = loss, state.step
    return better


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
    if generate and set(plan.metrics) & set(run.loaded.recipe.objective.generation_metrics):
        answers = predict(
            run.model,
            split.samples,
            run.prepared.renderer,
            pad_id=pad_id_of(run.prepared.tokenizer),
            max_new_tokens=run.loaded.recipe.eval.max_new_tokens,
            batch_size=plan.eval_batch_size,
            tick=lambda done, total: _during_evaluation(run, done, total),
        )
        scores = text_scores(answers, plan.metrics, intervals=False)
        metrics |= {name: score.value for name, score in scores.items()}
    run.log("eval", **metrics)
    run.listener.evaluated(run.state.step, metrics)
    return metrics


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
            batch_size=run.plan.eval_batch_size,
            draw=run.prepared.draw,
            tick=lambda done, total: _during_evaluation(run, done, total),
        )
    except DivergedError as error:
        raise DivergedError(f"evaluation after step {run.state.step}: {error}") from error
    scores = forward_scores(losses, objective, dataset.labels, run.plan.metrics, intervals=False)
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

    facts = {"step": state.step, "frozen_hash": run.frozen_hash, "base": run.prepared.facts.model.fingerprint}
    run.store.publish(f"checkpoints/step_{state.step:06d}", write, facts)
    protected = {state.step} | ({state.best_step} if run.plan.best and state.best_step is not None else set())
    prune(run.store, run.plan.keep, protected)
    run.log("checkpoint")
