"""The end of a run: choose the best step, write `model/`, score exactly that artefact, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune import quantisation, stopping
from ftune.data.build import Split
from ftune.data.order import Draw
from ftune.data.pack import Cut
from ftune.data_report import data_profile, data_summary
from ftune.device import peak_memory_bytes
from ftune.disk_need import artefact_bytes
from ftune.evaluation import Scores, forward_scores, row_losses
from ftune.evidence import RESAMPLES, evidence, rows_digest
from ftune.generation import Prediction, predict, predictions_lines, text_scores
from ftune.label_predictions import LabelPrediction, class_table, label_predictions
from ftune.loop import training_module
from ftune.manifest import verify
from ftune.metrics.custom import RowScores
from ftune.model import cast_weights, load_trainable
from ftune.report import Report
from ftune.report_files import write_report
from ftune.run_files import read_run
from ftune.start import SIDECAR, record_json
from ftune.target import Target, open_target

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from ftune.session import Run


@dataclass(frozen=True)
class Scored:
    """What a target is worth on one split.

    Args:
        scores: metrics by name.
        predictions: of a classifier for each row; of a language model where a metric needs generated text.
        classes: what happened to each label, for JSON; empty where there are none.
    """

    scores: Scores
    predictions: Sequence[Prediction | LabelPrediction] = ()
    classes: dict[str, Any] = field(default_factory=dict)


def finish(run: Run) -> Report:
    """Publish `model/`, evaluate what was published, write the report. May be repeated after a kill."""
    step = _choose_step(run)
    if run.leads:
        publish_artefact(run, step)
    run.accelerator.wait_for_everyone()
    run.optimizer.state.clear()
    quantisation.release(run.model)
    run.model.to("meta")  # the artefact is loaded next; two models need not fit
    target = open_target(run.folder)
    held = {"eval": run.prepared.dataset.eval, "test": run.prepared.dataset.test}
    splits = {name: split for name, split in held.items() if split is not None}
    scored = {name: score(run, target, split, name) for name, split in splits.items()}
    for name, found in scored.items() if run.leads else ():
        if found.predictions:
            run.store.write_text(f"predictions_{name}.jsonl", predictions_lines(found.predictions))
    guard = {name: score(run, target, split, name).scores for name, split in run.prepared.dataset.guard.items()}
    report = _report(run, step, scored, guard)
    if run.leads:
        known = {name: evidence(one.scores, rows_digest(splits[name].examples)) for name, one in scored.items()}
        run.store.write_json(RESAMPLES, known)
        _write_report(run, report)
    if run.loaded.recipe.tracking:
        run.accelerator.end_training()
    run.accelerator.wait_for_everyone()
    run.listener.finished(report, run.folder)
    return report


def _choose_step(run: Run) -> int:
    """Put the weights of the step that becomes `model/` into the model: the best, else the last."""
    step = stopping.model_step(run.state, run.plan)
    if step == run.state.step:
        return step
    from safetensors.torch import load_file

    folder = run.folder / "checkpoints" / f"step_{step:06d}"
    verify(folder)
    load_trainable(run.model, load_file(folder / "weights.safetensors"))
    return step


def publish_artefact(run: Run, step: int) -> None:
    """`model/` in the ecosystem's own format, with tokenizer and sidecar; whole models in the base's type."""
    recipe, prepared = run.loaded.recipe, run.prepared
    record = record_json(prepared.record)

    def write(folder: Path) -> None:
        if recipe.learner.standalone:
            import torch

            cast_weights(run.model, getattr(torch, prepared.facts.model.stored_dtype))
        write_artefact(run.model, prepared.tokenizer, prepared.renderer.stop_ids, folder, recipe.learner.save)
        _write_json(folder / SIDECAR, record)

    facts = {"step": step, "base": prepared.facts.model.fingerprint}
    run.store.publish("model", write, facts, artefact_bytes(recipe.learner, prepared.facts.model))


def write_artefact(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    folder: Path,
    save: Any,
) -> None:
    """Model and tokenizer into `folder`, with generation ending where training taught it to."""
    settings = getattr(model, "generation_config", None)
    if settings is not None and stop_ids:
        settings.eos_token_id = list(stop_ids)
    save(model, folder)
    tokenizer.save_pretrained(str(folder))


def _write_json(path: Path, value: Any) -> None:
    import json

    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def score(run: Run, target: Target, split: Split, name: str) -> Scored:
    """Metrics of the artefact on one split, with intervals."""

    def tick(done: int, total: int) -> None:
        run.stop.check()
        run.listener.phase(f"scoring {name}", done, total)

    return score_target(
        target,
        split,
        metrics=run.plan.metrics,
        functions=run.prepared.functions,
        accelerator=run.accelerator,
        cut=run.plan.padded_cut,
        batch_size=run.plan.eval_batch_size,
        chunk=run.plan.loss_chunk,
        draw=run.prepared.draw,
        tick=tick,
    )


def score_target(
    target: Target,
    split: Split,
    *,
    metrics: tuple[str, ...],
    functions: Mapping[str, RowScores],
    accelerator: Accelerator,
    cut: Cut,
    batch_size: int,
    chunk: int | None,
    draw: Draw | None,
    tick: Any,
) -> Scored:
    """Metrics and predictions of a loaded target on an encoded split.

    Args:
        target: what is scored.
        split: the rows.
        metrics: their names.
        functions: the user's own of them.
        accelerator: where.
        cut: how rows become forwards.
        batch_size: answers that are written at a time.
        chunk: how many targets have logits at once; None makes those of all tokens.
        draw: hides parts of rows, where the objective does.
        tick: hears of progress; may raise to stop.
    """
    if target.record is None:
        raise AssertionError("a target without a recipe has no split")
    recipe = target.record.recipe
    module = accelerator.prepare_model(training_module(target.model, recipe.objective, chunk), evaluation_mode=True)
    losses = row_losses(
        module,
        split.examples,
        objective=recipe.objective,
        accelerator=accelerator,
        pad_id=target.pad_id,
        cut=cut,
        draw=draw,
        tick=tick,
    )
    labels = target.record.labels
    scores = forward_scores(losses, recipe.objective, labels, metrics, functions, intervals=True)
    if recipe.objective.generates(metrics):
        predictions = predict(
            target.model,
            split.samples,
            target.renderer,
            pad_id=target.pad_id,
            max_new_tokens=recipe.eval.max_new_tokens,
            batch_size=batch_size,
            tick=tick,
        )
        return Scored(scores | text_scores(predictions, metrics, functions, intervals=True), predictions)
    return Scored(
        scores,
        label_predictions(losses, recipe.objective, labels, split.samples),
        class_table(losses, recipe.objective, labels),
    )


def _report(run: Run, step: int, scored: dict[str, Scored], guard: dict[str, Scores]) -> Report:
    recipe, plan, state, dataset = run.loaded.recipe, run.plan, run.state, run.prepared.dataset
    splits = {"train": dataset.train, "eval": dataset.eval, "test": dataset.test}
    return {
        "name": run.folder.name,
        "model": recipe.model.name,
        "method": recipe.method.name,
        "objective": recipe.objective.name,
        "mergeable": recipe.learner.mergeable and not recipe.learner.standalone,
        "writes": bool(recipe.objective.generation_metrics),
        "finished": state.finished,
        "forgetting": stopping.forgetting(state, plan),
        "steps": state.step,
        "skipped_steps": state.skipped_steps,
        "model_step": step,
        "baseline": state.baseline,
        "prompted": read_run(run.folder).prompted,
        "metrics": {name: {key: s.to_json() for key, s in found.scores.items()} for name, found in scored.items()},
        "classes": {name: found.classes for name, found in scored.items() if found.classes},
        "guard": {
            name: {"before": state.guard_baseline.get(name, {}), "after": {k: v.to_json() for k, v in scores.items()}}
            for name, scores in guard.items()
        },
        "trainable_parameters": plan.trainable_parameters,
        "total_parameters": plan.total_parameters,
        "rows_seen": state.rows_seen,
        "tokens_seen": state.tokens_seen,
        "targets_seen": state.targets_seen,
        "train_seconds": state.train_seconds,
        "tokens_per_second": state.tokens_seen / max(state.train_seconds, 1e-9),
        "flops_per_second": state.flops / max(state.train_seconds, 1e-9),
        "mfu": run.meter.mfu(state.flops, state.train_seconds),
        "peak_memory_bytes": _peak(run),
        "planned_memory_bytes": sum(plan.memory_bytes.values()),
        "details": recipe.learner.bound(recipe.objective).details(run.model),
        "data": {
            name: data_summary(split)
            | data_profile(split, dataset.labels, recipe.objective.encoding)
            | {"fingerprint": split.fingerprint}
            for name, split in splits.items()
            if split is not None
        },
    }


def _peak(run: Run) -> int:
    """Of this process and of those that made steps before it was cut."""
    logged: list[int] = [event.get("memory_bytes", 0) for event in read_run(run.folder).of_kind("step")]
    return max(peak_memory_bytes(run.plan.device), *logged, 0)


def _write_report(run: Run, report: Report) -> None:
    """`report.json` last: it marks the run as complete."""
    write_report(run.store, replace(read_run(run.folder), report=report))
    run.log("finish", finished=report["finished"])
    run.store.sync("metrics.jsonl")
    run.store.write_json("report.json", report)
