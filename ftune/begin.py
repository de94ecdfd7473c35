"""Start a run, or take up one that is there: model, optimizer and state as they are before the next step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftune import drift, provenance, stopping
from ftune.attention import use_packed_attention
from ftune.checkpoints import prune
from ftune.compiled import compile_blocks, kernels
from ftune.data.build import Split
from ftune.data.cache import cache_root
from ftune.data.order import derived_seed, window
from ftune.data.samples import Tick
from ftune.device import build_accelerator, torch_dtype
from ftune.drift import data_files
from ftune.errors import ArtifactError
from ftune.features import FeatureSource
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.loop import training_module
from ftune.manifest import read_manifest
from ftune.model import frozen_fingerprint, load_trainable, read_weights
from ftune.optim import build_optimizer, load_optimizer_state
from ftune.plan import Plan
from ftune.prepare import Prepared
from ftune.prompted import score_base
from ftune.resuming import newest_checkpoint, state_of
from ftune.session import Run
from ftune.signals import StopFlag
from ftune.start import pad_id_of, record_json
from ftune.state import TrainState
from ftune.store import Store
from ftune.target import SETTLED, attached

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def open_run(
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
        plan = plan.continuing(Plan.of_run(folder), loaded.recipe)
    accelerator = build_accelerator(plan.runtime, tracking=tuple(loaded.recipe.tracking), folder=folder)
    if accelerator.is_main_process:
        prepared.dataset.train.report.notes.extend(disk.sweep())
    accelerator.wait_for_everyone()
    checkpoint = newest_checkpoint(loaded, plan, folder, listener) if exists else None
    state = TrainState() if checkpoint is None else state_of(checkpoint[1], plan, listener)
    stopping.refuse_without_baseline(state, plan, prepared.dataset.guard)
    if accelerator.is_main_process:
        _write_head(disk, loaded, prepared, plan, overwrite=overwrite)
    accelerator.wait_for_everyone()
    score_base(loaded, plan, prepared.facts.model.fingerprint, disk, accelerator, _ticker(listener, stop))
    run = _loaded(loaded, prepared, plan, folder, listener, stop, disk, accelerator)
    recipe, model = loaded.recipe, run.model
    if recipe.learner.storage_constraint() is not None:
        run.frozen_hash = frozen_fingerprint(model)  # attaching changed the base: a resumed run must change it equally
    _take_up(run, checkpoint, state)
    _read_features(run, None if checkpoint is None else checkpoint[1])
    if plan.compile:
        compile_blocks(body_of(model), kernels(cache_root(os.environ, Path.home())))
        listener.phase("compiling", 0, 0)  # at the first forward and backward pass
    if recipe.tracking:
        accelerator.init_trackers("ftune", config={"recipe": json.dumps(recipe.model_dump(mode="json"))})
    return run


def _ticker(listener: Listener, stop: StopFlag) -> Tick:
    def tick(what: str, done: int, total: int) -> None:
        stop.check()
        listener.phase(what, done, total)

    return tick


def open_trial(loaded: Loaded, prepared: Prepared, listener: Listener, stop: StopFlag) -> Run:
    """A model as training would begin with it, for steps that are thrown away. Writes nothing and tells no tracker.

    Args:
        loaded: a recipe for one process.
        prepared: what was prepared for it.
        listener: hears of progress.
        stop: polled.
    """
    folder, plan = loaded.output_dir.absolute(), prepared.plan.model_copy(update={"compile": False})
    accelerator = build_accelerator(plan.runtime)
    run = _loaded(loaded, prepared, plan, folder, listener, stop, Store(folder), accelerator)
    _look_at_rows(run)
    _read_features(run, None)
    return run


def _loaded(
    loaded: Loaded, prepared: Prepared, plan: Plan, folder: Path, listener: Listener, stop: StopFlag, disk: Store,
    accelerator: Accelerator,
) -> Run:  # fmt: skip
    """Base weights with the method attached, on the device, with a fresh optimizer."""
    listener.phase("loading the model", 0, 0)
    recipe = loaded.recipe
    model = attached(prepared.start, prepared.record, prepared.tokenizer, torch_dtype(plan.frozen_dtype))
    stop.check()
    make_ready(model, plan)
    objective = recipe.objective.bound(prepared.dataset.labels, prepared.dataset.label_counts)
    module = accelerator.prepare_model(training_module(model, objective, plan.loss_chunk))
    optimizer = build_optimizer(plan, recipe.learner, model)
    return Run(
        loaded, prepared, plan, folder, disk, listener, stop, accelerator, model, module, optimizer, TrainState()
    )


def body_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model of transformers in whatever a method wraps around it."""
    from transformers import PreTrainedModel

    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


def make_ready(model: torch.nn.Module, plan: Plan) -> None:
    """Set `model` up for the forward and backward passes that the plan decided on."""
    if plan.packing:
        use_packed_attention(body_of(model))
    if plan.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]


def _write_head(disk: Store, loaded: Loaded, prepared: Prepared, plan: Plan, *, overwrite: bool) -> None:
    """What a run folder says of itself before training."""
    if overwrite:
        last = "run.json"  # it says that the folder is ours
        for name in (*sorted(drift.OURS - {".lock", ".lock.json", last}), last):
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


def _take_up(run: Run, checkpoint: tuple[int, Path] | None, state: TrainState) -> None:
    """Put the checkpoint's weights, optimizer and `state` in place, and cut the log back to its step.

    Raises:
        ArtifactError: it does not fit the model.
    """
    if checkpoint is None:
        _look_at_rows(run)
        if run.leads:
            run.store.keep_lines("metrics.jsonl", lambda event: False)
        run.log("start", time=provenance.now())
        return
    step, folder = checkpoint
    if read_manifest(folder)["frozen_hash"] != run.frozen_hash:
        raise ArtifactError(f"{folder}: attaching the method gave other base weights than when the run began.")
    run.state = state
    load_trainable(run.model, read_weights(folder / "weights.safetensors"))
    if step > 0 and not run.method.fits_at_once:
        load_optimizer_state(run.optimizer, run.model, read_weights(folder / "optimizer.safetensors"))
    run.saved = run.state.model_copy()
    if run.leads:
        run.store.keep_lines("metrics.jsonl", lambda event: event["step"] <= step)
        # the run may have ended between a save and the deletion of what it replaced
        prune(run.store, run.plan.keep, {step, stopping.model_step(run.state, run.plan)})
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
        cache=cache_root(os.environ, Path.home()) / "features",
        identity=identity,
        batch_size=plan.eval_batch_size,
        pad_id=pad_id_of(prepared.tokenizer),
        autocast=run.accelerator.autocast,
        tick=tick,
    )


def _look_at_rows(run: Run) -> None:
    """Let the method look at training rows once; every process looks at the same."""
    import torch

    plan = run.plan
    objective = run.loaded.recipe.objective.in_chunks(plan.loss_chunk)
    pad_id = pad_id_of(run.prepared.tokenizer)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for step in range(plan.steps_per_epoch):
            work = window(
                run.prepared.dataset.train.examples, step, batch_size=plan.batch_size,
                cut=plan.padded_cut, seed=plan.seed, draw=run.prepared.draw,
                mix=run.prepared.dataset.train.mix,
            )  # fmt: skip
            for examples in work.micro_batches:
                run.stop.check()
                batch = objective.collate(list(examples), pad_id)
                yield {name: value.to(run.accelerator.device) for name, value in batch.items()}

    torch.manual_seed(derived_seed("prepare", plan.seed))
    run.method.prepare(run.model, batches(), objective.loss)
